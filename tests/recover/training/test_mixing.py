"""Mixup and CutMix against what their papers say of one batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import InputError
from secateur.recover.training.mixing import Mix


def batch(count: int = 4, channels: int = 2, height: int = 6, width: int = 9) -> Tensor:
    """No two numbers alike, so that each tells where it is from."""
    return torch.arange(count * channels * height * width, dtype=torch.float32).view(count, channels, height, width)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 4, 4)])
def test_mixup_blends_whole_inputs(shape):
    torch.manual_seed(1)
    inputs = torch.rand(shape)
    mixed, order, share = Mix(mixup=0.8)(inputs)
    assert 0 < share < 1
    assert sorted(order.tolist()) == list(range(5))
    torch.testing.assert_close(mixed, share * inputs + (1 - share) * inputs[order])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_cutmix_puts_in_one_box_and_the_share_is_the_area_that_stayed(seed, height, width):
    torch.manual_seed(seed)
    inputs = batch(height=height, width=width)
    kept = inputs.clone()
    mixed, order, share = Mix(cutmix=1.0)(inputs)
    assert torch.equal(inputs, kept), "the batch itself stays as it was"
    own, other = mixed == inputs, mixed == inputs[order]
    assert (own | other).all(), "each place is of the image or of the one that it is mixed with"
    for row in (row for row in range(4) if order[row] != row):
        put = other[row]
        assert torch.equal(put[0], put[1]), "one box for all channels"
        assert share == pytest.approx(1 - put[0].float().mean().item(), abs=1e-6)
        rows, columns = put[0].any(1).sum(), put[0].any(0).sum()
        assert put[0].sum() == rows * columns, "a box"


def test_the_share_of_cutmix_is_that_of_its_beta():
    torch.manual_seed(0)
    shares = [Mix(cutmix=1.0)(batch(2, 1, 64, 64))[2] for _ in range(1000)]
    # A side of r, about any place of a line of length 1, has r - r^2 / 4 of its length on it; r^2 is of Beta(1, 1).
    mean = 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert sum(shares) / len(shares) == pytest.approx(mean, abs=0.03)


def test_with_both_alphas_half_of_the_batches_are_cut():
    torch.manual_seed(0)
    inputs = batch(8)
    both = Mix(mixup=0.8, cutmix=1.0)
    drawn = [both(inputs)[:2] for _ in range(200)]
    cut = [bool(((mixed == inputs) | (mixed == inputs[order])).all()) for mixed, order in drawn]
    assert 60 < sum(cut) < 140


def test_nothing_is_mixed_without_an_alpha():
    assert not Mix()
    assert Mix(mixup=0.1)
    assert Mix(cutmix=0.1)


def test_what_can_not_be_mixed_is_refused():
    with pytest.raises(InputError, match=r"cutmix=1 is for images \[B, C, H, W\], and these are \[5, 3\]"):
        Mix(cutmix=1.0)(torch.rand(5, 3))
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="give an alpha of at least 0"):
            Mix(mixup=alpha)
