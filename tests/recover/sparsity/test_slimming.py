"""Rates over time, and a penalty whose gradient is the sign."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import InputError
from secateur.recover.sparsity import slimming


def test_decay_is_the_published_formula_and_rise_its_mirror():
    assert slimming.rate(0.0, initial=0.01) == 0.01
    assert slimming.rate(1.0, initial=0.01) == pytest.approx(0.001)
    assert slimming.rate(0.5, initial=0.01) == pytest.approx(0.01 * 0.55)
    assert slimming.rate(0.0, initial=0.01, schedule="rise") == pytest.approx(0.001)
    assert slimming.rate(1.0, initial=0.01, schedule="rise") == pytest.approx(0.01)
    assert slimming.rate(0.7, initial=0.01, schedule="constant") == 0.01
    with pytest.raises(InputError, match="schedule"):
        slimming.rate(0.5, initial=1.0, schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share"):
        slimming.rate(1.5, initial=1.0)


def test_the_variable_rate_takes_two_levels_after_the_switch():
    scales = [torch.tensor([0.1, -0.9, 0.2]), torch.tensor([0.8, 0.3, 0.05, -0.7])]
    before = torch.cat(slimming.variable(scales, 0.4, initial=0.1))
    assert bool((before == 0.1).all())
    after = torch.cat(slimming.variable(scales, 0.41, initial=0.1, quantile=0.5))
    # Of 7 scales, sorted[int(7 * 0.5)] is 0.3: it and what is larger keeps a hundredth.
    assert torch.allclose(after, torch.tensor([0.1, 0.001, 0.1, 0.001, 0.001, 0.1, 0.001]))
    moved = torch.cat(
        slimming.variable([one * torch.tensor(-1.0) + 0.5 for one in scales], 0.9, initial=0.1, quantile=0.5)
    )
    assert not torch.equal(after, moved), "theta follows the scales"


def test_the_penalty_is_the_subgradient():
    scales = [torch.nn.Parameter(torch.tensor([0.5, -2.0, 0.0])), torch.nn.Parameter(torch.tensor([1.0]))]
    rates = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4])]
    value = slimming.penalty(scales, rates)
    assert value.item() == pytest.approx(0.05 + 0.4 + 0.4)
    value.backward()
    assert torch.allclose(scales[0].grad, torch.tensor([0.1, -0.2, 0.0]))
    assert torch.allclose(scales[1].grad, torch.tensor([0.4]))
    assert slimming.penalty(scales, 2.0).item() == pytest.approx(7.0)
