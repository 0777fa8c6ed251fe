"""Silenced operators give, where channels are kept, what the operator gives for these channels alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.subjects.network.recording import Example, record

KEPT = torch.tensor([True, False, True, True, False, True, True, True])


class Step(nn.Module):
    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.step = nn.Parameter(torch.randn(3, 8, 5, 1)), step

    def forward(self) -> Tensor:
        return self.step(self.weight)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.mean(1),
        lambda x: x.mean(),
        lambda x: x.var(1),
        lambda x: x.std((1, 2), unbiased=False, keepdim=True),
        lambda x: torch.var_mean(x, 1, correction=0)[1],
        lambda x: x.sum(1),
        lambda x: x.amax(1),
        lambda x: x.max(1).values,
        lambda x: (-x).min(1).values,
        lambda x: x.norm(dim=1),
        lambda x: x.logsumexp(2).mean(1),
        lambda x: (x.softmax(1) ** 2).sum(1),
        lambda x: F.layer_norm(x.transpose(1, 3), (x.shape[1],)).pow(3).sum(-1),
        lambda x: F.rms_norm(x.transpose(1, 3), (x.shape[1],)).pow(3).sum(-1),
        lambda x: F.group_norm(x, 1).pow(3).sum(1),
        lambda x: F.batch_norm(x.reshape(1, 3, -1), None, None, training=True).pow(3).sum(2),
    ],
)
def test_only_what_is_kept_counts(step: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Step(step).eval()

    def kept(atoms):
        mask = torch.ones(atoms.count, dtype=torch.bool)
        (axis,) = [axis for axis in atoms.axes if axis.dim == 1]
        mask[axis.start : axis.start + axis.size] = KEPT
        return mask

    found = record(model, Example(), kept).output
    torch.testing.assert_close(found, step(model.weight.detach()[:, KEPT]))


class Pair(nn.Module):
    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.step = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8, 3)), step

    def forward(self) -> Tensor:
        return self.step(self.a, self.b)


@pytest.mark.parametrize(
    "step",
    [
        lambda a, b: a @ b,
        lambda a, b: torch.ones(5, len(b)) @ b + a.sum(1, keepdim=True),
        lambda a, b: (a * 2 + 1) @ b,
        lambda a, b: torch.cat([a, a + 1]) @ b,
        lambda a, b: a.t().contiguous().t() @ b,
        lambda a, b: F.linear(a.exp(), b.t()),
    ],
)
def test_parameters_that_are_not_zero_where_they_go_do_not_count_there(step) -> None:
    torch.manual_seed(0)
    model = Pair(step).eval()
    before = [parameter.clone() for parameter in model.parameters()]

    def kept(atoms):
        mask = torch.ones(atoms.count, dtype=torch.bool)
        for axis in atoms.axes:
            if axis.size == 8:
                mask[axis.start : axis.start + axis.size] = KEPT
        return mask

    found = record(model, Example(), kept).output
    torch.testing.assert_close(found, step(model.a.detach()[:, KEPT], model.b.detach()[KEPT]))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "move", [lambda w: w[None].squeeze_(0), lambda w: w.detach().transpose_(0, 1).transpose_(0, 1)]
)
def test_a_view_of_a_parameter_may_move_its_dimensions_in_place(move: Callable[[Tensor], Tensor]) -> None:
    """A copy with zeros was moved in its place, and the network met another shape than it had made."""

    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.out = nn.Parameter(torch.randn(12, 7)), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(F.linear(x, move(self.w)).relu())
            return result

    model = Moving()
    before = model.w.detach().clone()
    assert secateur.prune(model, torch.randn(2, 7)).cut.removed == {"w.channels": (6, 12)}
    assert torch.equal(model.w, before)
