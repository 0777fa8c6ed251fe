"""Uniform and guided widths keep to their budgets and to their proportions."""

from __future__ import annotations

import pytest
from torch import nn

from recipes.vision import nets
from secateur.errors import InputError
from secateur.methods.published_rules import prune
from secateur.studies import architectures
from secateur.vocabulary import Budget


@pytest.fixture(scope="module")
def shallow():
    return nets.opened(nets.vgg(depth=1))


@pytest.fixture(scope="module")
def deep():
    return nets.opened(nets.vgg(depth=3))


def widths(subject):
    return [module.out_channels for module in subject.model if isinstance(module, nn.Conv2d)]


def params(subject):
    return sum(p.numel() for p in subject.model.parameters())


def test_stages_are_told_by_the_size_of_the_maps(shallow, deep):
    assert list(architectures.stages(shallow).values()) == [0, 0, 1, 1]
    assert list(architectures.stages(deep).values()) == [0] * 4 + [1] * 4


def test_uniform_multiplies_every_width_alike_and_is_the_largest_within(shallow):
    small, cut = architectures.uniform(shallow, "params=40%")
    whole = params(shallow)
    assert params(small) <= 0.4 * whole
    found = widths(small)
    assert max(abs(found[0] / 8 - width / whole) for width, whole in zip(found, (8, 8, 12, 12), strict=True)) < 0.13
    assert cut.after["params"] == params(small)
    larger, _ = architectures.uniform(shallow, "params=50%")
    assert all(a <= b for a, b in zip(found, widths(larger), strict=True))


def test_the_pattern_of_a_cut_is_the_mean_share_of_its_stages(shallow):
    pruned = prune(shallow, Budget.parse("channels=60%"), "l1", widths="4,2,12,6")
    assert architectures.shares(shallow, pruned.cut) == {0: pytest.approx(0.375), 1: pytest.approx(0.75)}
    assert architectures.average([{0: 0.2, 1: 1.0}, {0: 0.4, 1: 0.5}]) == {0: pytest.approx(0.3), 1: 0.75}
    with pytest.raises(InputError, match="stages"):
        architectures.average([{0: 0.2}, {1: 0.5}])


def test_guided_widths_are_in_proportion_at_another_depth(deep):
    small, _ = architectures.cut_by_pattern(deep, {0: 0.25, 1: 0.75}, "params=40%")
    assert params(small) <= 0.4 * params(deep)
    found = widths(small)
    assert len(set(found[:4])) <= 2
    first, last = sum(found[:4]) / 32, sum(found[4:]) / 48
    assert first / last == pytest.approx(1 / 3, abs=0.12)
    with pytest.raises(InputError, match="stage 1"):
        architectures.cut_by_pattern(deep, {0: 0.5}, "params=40%")


def test_a_flat_pattern_is_the_uniform_design(deep):
    ours, _ = architectures.cut_by_pattern(deep, {0: 0.5, 1: 0.5}, "params=40%")
    theirs, _ = architectures.uniform(deep, "params=40%")
    assert all(abs(a - b) <= 1 for a, b in zip(widths(ours), widths(theirs), strict=True))
