import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import DataError, NumericalError
from secateur.score import ablation


def test_the_layer_that_matters_most_scores_highest():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    with torch.no_grad():
        for scale, layer in zip((0.1, 3.0, 1.0), layers, strict=True):
            layer.weight.mul_(scale)
    x = torch.randn(16, 4)

    def run(without):
        y = x
        for i, layer in enumerate(layers):
            y = y if i == without else y + layer(y)
        return y.detach()

    scores = ablation.without(lambda i: (run(i) - run(None)).square().mean().item(), range(3))
    assert scores.argsort().tolist() == [0, 2, 1]


def test_nan_is_named():
    with pytest.raises(NumericalError, match="without 'layer 1' is NaN"):
        ablation.without(lambda c: math.nan if c == "layer 1" else 0.0, ["layer 0", "layer 1"])


class Watch(TorchDispatchMode):
    """Notes how many numbers each float64 tensor has that is made."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.seen.append(out.numel())
        return out


def test_the_normalised_mse_is_that_of_the_logits_over_all_batches():
    whole, less = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 0.0]), torch.zeros(2)]
    batches = [0, 1]
    found = ablation.normalized_mse(
        lambda batch: whole[batch], lambda batch, c: less[batch] if c else whole[batch], batches, [False, True]
    )
    assert found.tolist() == [0.0, pytest.approx((4 + 9) / (1 + 4 + 9))]
    with Watch() as watch:
        many = torch.ones(2, 3 << 20, dtype=torch.bfloat16)
        assert ablation.normalized_mse(lambda _: many, lambda *_: many / 2, [0], [1]).tolist() == [0.25]
    assert max(watch.seen) <= 1 << 22  # of a large vocabulary a slice at a time
    with pytest.raises(DataError, match="nothing to compare logits on"):
        ablation.normalized_mse(lambda batch: whole[batch], lambda batch, c: whole[batch], [], [1])
    with pytest.raises(NumericalError, match="not finite"):
        ablation.normalized_mse(lambda batch: whole[batch], lambda batch, c: whole[batch] / 0, batches, [1])


def test_units_go_one_by_one_and_the_rest_is_judged_anew():
    """Alone, 0 is missed least; 1 and 2 stand for one another, so that after one of them went the other counts."""
    losses = {(0,): 0.1, (1,): 0.2, (2,): 0.3, (0, 1): 0.4, (0, 2): 0.35, (0, 2, 1): 9.0}
    found = ablation.list_in_order(lambda sets: torch.tensor([losses[one] for one in sets]), [0, 1, 2], 3)
    assert [unit for unit, _ in found] == [0, 2, 1]
    assert [score for _, score in found] == pytest.approx([0.1, 0.35, 9.0])
