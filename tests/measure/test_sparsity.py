"""Zeros are counted, packed and checked against a pattern exactly."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import InputError
from secateur.measure import sparsity
from secateur.select.pattern import n_of_m


def dense(rows=8, columns=32, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def two_four(dtype=torch.float32, **shape):
    weight = dense(**shape)
    return (weight * n_of_m(weight.abs(), 2, 4)).to(dtype)


def test_weights_and_zeros_are_counted_over_all_matrices():
    matrices = {"a": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "b": torch.ones(1, 4)}
    assert sparsity.weights(matrices) == 6
    assert sparsity.zeros(matrices) == 0.25
    assert sparsity.zeros({}) == 0.0


@pytest.mark.parametrize(("bits", "packed", "of"), [(16, 36, 64), (8, 20, 32), (4, 20, 32)])
def test_two_of_four_costs_what_the_format_costs(bits, packed, of):
    group = of // bits
    assert sparsity.packed_bits(bits) * group == packed


def test_bytes_of_a_two_four_matrix_hold_its_places():
    half, single = two_four(torch.float16), two_four()
    assert sparsity.packed_bytes(half) == half.numel() * 36 / 64 * 2
    assert sparsity.packed_bytes(single, bits=8) == single.numel() * 20 / 32
    # Against float32: 6.4 times smaller in eight bits, 12.8 times in four (where the pattern is one of pairs).
    assert single.numel() * 4 / sparsity.packed_bytes(single, bits=8) == 6.4
    pairs = dense() * n_of_m(dense().abs().unflatten(1, (-1, 2)).sum(2), 2, 4).repeat_interleave(2, 1)
    assert pairs.numel() * 4 / sparsity.packed_bytes(pairs, bits=4) == 12.8
    # A 2:4 matrix that is not one of pairs has no kernel in four bits: only the bitmap is left, 3 bits for a weight.
    assert sparsity.packed_bytes(single, bits=4) == single.numel() * 3 / 8


def test_unstructured_zeros_cost_one_bit_each_and_pack_only_where_that_pays():
    weight = dense()
    weight[:, :24] = 0.0  # three quarters, in no 2:4 pattern that would cost less
    assert sparsity.packed_bytes(weight) == 8 * 8 * 4 + 8 * 32 // 8
    few = dense()
    few[0, 0] = 0.0
    assert sparsity.packed_bytes(few) == few.numel() * 4


def test_a_pattern_that_breaks_names_the_first_matrix_and_counts_runs():
    good, bad = two_four(), two_four(seed=1)
    bad[2, 4:8] = 1.0
    bad[3, 0:4] = 1.0
    assert sparsity.broken({"good": good}, 2, 4) == {}
    assert list(sparsity.broken({"good": good, "bad": bad, "worse": dense()}, 2, 4)) == ["bad", "worse"]
    assert sparsity.broken({"bad": bad}, 2, 4) == {"bad": 2}
    assert sparsity.broken({"bad": bad}, 4, 8) != {}


def test_exactly_is_for_masks_and_a_tail_is_free():
    mask = n_of_m(dense(columns=30).abs(), 2, 4)
    assert sparsity.broken({"mask": mask}, 2, 4, exact=True) == {}
    mask[0, :4] = False
    assert sparsity.broken({"mask": mask}, 2, 4) == {}
    assert sparsity.broken({"mask": mask}, 2, 4, exact=True) == {"mask": 1}


def test_kernels_take_no_tail():
    assert sparsity.two_of_four(two_four())
    assert not sparsity.two_of_four(two_four(columns=30))
    assert not sparsity.two_of_four(two_four(), in_pairs=True)
    assert not sparsity.two_of_four(two_four(columns=3), in_pairs=True)


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(InputError, match="3:2 is not n:m"):
        sparsity.broken({}, 3, 2)
