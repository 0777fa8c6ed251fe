"""ReviewKD against its equations written out, and what is left of it in a student: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.errors import InputError
from secateur.recover.distillation import review

SHAPES = [(4, 8, 8), (6, 4, 4), (10, 2, 2)]
THEIRS = [(5, 8, 8), (7, 4, 4), (9, 2, 2)]


def maps(shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *shape, generator=draw) for shape in shapes]


def test_the_loss_is_the_formula():
    ours, theirs = maps(SHAPES), maps(SHAPES, 1)
    wanted = 0.0
    for one, other, levels in zip(ours, theirs, ((4, 2, 1), (2, 1), (1,)), strict=True):
        parts = [functional.mse_loss(one, other)]
        parts += [functional.mse_loss(*(functional.adaptive_avg_pool2d(x, n) for x in (one, other))) for n in levels]
        weights = [0.5**i for i in range(len(parts))]
        wanted += sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
    assert review.hierarchical(ours, theirs).item() == pytest.approx(3 * wanted.item(), rel=1e-5)
    assert review.hierarchical(ours, ours).item() == 0.0
    theirs = [one.requires_grad_() for one in theirs]
    ours = [one.requires_grad_() for one in ours]
    review.hierarchical(ours, theirs).backward()
    assert all(one.grad is None for one in theirs)
    assert all(one.grad is not None for one in ours)


def test_maps_are_joined_from_the_deepest_on():
    torch.manual_seed(0)
    made = review.Review(SHAPES, THEIRS).eval()
    found, given = made(maps(SHAPES)), maps(SHAPES)
    assert [tuple(one.shape[1:]) for one in found] == THEIRS
    deep = made.narrow[2](given[2])
    torch.testing.assert_close(found[2], made.widen[2](deep))
    here, again = made.narrow[1](given[1]), functional.interpolate(deep, (4, 4), mode="nearest")
    a, b = torch.sigmoid(made.attend[1](torch.cat([here, again], 1))).split(1, 1)
    torch.testing.assert_close(found[1], made.widen[1](a * here + b * again))
    changed = [*given[:2], given[2] + 1]
    assert not torch.equal(made(changed)[0], found[0])  # what is deep is seen in all that is shallower
    assert torch.equal(made([given[0] + 1, *given[1:]])[1], found[1])  # and not the other way


def test_maps_of_another_size_are_brought_to_the_teachers():
    made = review.Review(SHAPES, [(5, 16, 16), (7, 8, 8), (9, 4, 4)])
    assert [one.shape[2:] for one in made(maps(SHAPES))] == [(16, 16), (8, 8), (4, 4)]


def test_stages_are_the_last_maps_of_each_size():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    names, shapes = review.stages(net, lambda model: model(torch.rand(2, 1, 8, 8)))
    assert names == ["1", "4"]
    assert shapes == [(4, 8, 8), (6, 4, 4)]
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(InputError, match="no stages to review"):
        review.stages(nn.Sequential(nn.Linear(2, 2)), lambda model: model(torch.rand(1, 2)))


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="3 stages of a student, 2 of its teacher"):
        review.Review(SHAPES, THEIRS[:2])
    with pytest.raises(InputError, match="name those with large maps first"):
        review.Review(SHAPES[::-1], THEIRS)
    with pytest.raises(InputError, match="bring them to one shape"):
        review.hierarchical(maps(SHAPES), maps(THEIRS))
