"""Held weights stay at zero whatever the optimiser, and patterns of kernels are kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.recover.sparsity import masks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3)
    )


def closed(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in masks.convolutions(model).items()}


def test_only_convolutions_are_pruned():
    assert list(masks.convolutions(network())) == ["0.weight", "3.weight"]


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
        partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "adam"],
)
def test_closed_weights_stay_exactly_zero(make):
    model = network()
    chosen = closed(model)
    before = {name: weight.detach().clone() for name, weight in masks.convolutions(model).items()}
    optimizer = make(model.parameters())
    with masks.hold(model, chosen):
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 2, 6, 6)).square().mean().backward()
            optimizer.step()
    for name, weight in masks.convolutions(model).items():
        assert bool((weight[~chosen[name]] == 0).all())
        assert not torch.equal(weight[chosen[name]], before[name][chosen[name]])
    model(torch.randn(8, 2, 6, 6)).square().mean().backward()
    optimizer.step()
    assert all(bool((weight[~chosen[name]] != 0).any()) for name, weight in masks.convolutions(model).items())


def test_a_mask_that_does_not_fit_is_refused():
    model = network()
    with pytest.raises(InputError, match="not there"):
        masks.apply(model, {"9.weight": torch.ones(2)})
    with pytest.raises(InputError, match="shape"), masks.hold(model, {"0.weight": torch.ones(2)}):
        pass


def test_positions_are_counted_and_drawn_again():
    mask = torch.zeros(10, 4, 3, 3, dtype=torch.bool)
    mask[..., 1, 1] = True
    mask[:5, :, 0, 0] = True
    pattern = masks.positions({"a": mask, "b": torch.ones(2, 2, 1, 1)})
    assert set(pattern) == {(3, 3), (1, 1)}
    assert pattern[3, 3][1, 1] == 1.0
    assert pattern[3, 3][0, 0] == 0.5
    assert pattern[3, 3].sum() == 1.5
    drawn = masks.draw({"deep": torch.empty(16, 8, 3, 3)}, pattern, seed=1)["deep"]
    assert drawn[..., 1, 1].all()
    assert int(drawn[..., 0, 0].sum()) == 64
    assert int(drawn.sum()) == 128 + 64
    with pytest.raises(InputError, match="5x5"):
        masks.draw({"x": torch.empty(2, 2, 5, 5)}, pattern)


def test_shares_and_shuffled_masks():
    mask = torch.zeros(6, 2, 3, 3, dtype=torch.bool)
    mask[0] = True
    assert masks.share({"a": mask}) == pytest.approx(1 / 6)
    other = masks.shuffle({"a": mask}, seed=3)["a"]
    assert other.shape == mask.shape
    assert int(other.sum()) == int(mask.sum())
    assert not torch.equal(other, mask)
    assert torch.equal(other, masks.shuffle({"a": mask}, seed=3)["a"])
