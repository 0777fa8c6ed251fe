"""Errors along a path, and the regime that they and similarity tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secateur.errors import MeasurementError
from secateur.measure.connectivity import blend, connectivity, label, midpoint, normalise


@pytest.mark.parametrize(
    ("errors", "mc"),
    [
        ([0.1, 0.1, 0.1], 0.0),
        ([0.1, 0.6, 0.1], -0.5),
        ([0.2, 0.1, 0.3, 0.9, 0.4], -0.6),
        ([0.3, 0.1, 0.3], 0.2),
        ([0.1, 0.15, 0.2], 0.0),  # rises alone: the ends are as far above the middle as below
        ([0.0, 0.4, 0.2], -0.3),
    ],
)
def test_connectivity_is_the_farthest_from_the_mean_of_the_ends_and_the_same_from_both(errors, mc):
    assert connectivity(errors) == pytest.approx(mc)
    assert connectivity(errors[::-1]) == connectivity(errors)


@pytest.mark.parametrize("errors", [[0.1], [0.1, math.nan, 0.1]])
def test_a_path_without_errors_has_none(errors):
    with pytest.raises(MeasurementError, match="give two finite ones"):
        connectivity(errors)


def test_a_blend_is_symmetric_keeps_zeros_and_leaves_counts_alone():
    torch.manual_seed(0)
    mask = torch.rand(50) < 0.3
    first, second = ({"w": torch.randn(50) * mask, "seen": torch.tensor(n)} for n in (3, 4))
    for step in range(11):
        there, back = blend(first, second, step, 10), blend(second, first, 10 - step, 10)
        assert torch.equal(there["w"], back["w"])
        assert not there["w"][~mask].any()
        assert int(there["seen"]) == 3
    assert torch.equal(blend(first, second, 0, 10)["w"], first["w"])
    assert torch.equal(blend(first, second, 10, 10)["w"], second["w"])


def test_each_density_has_a_best_temperature():
    errors = np.array([[0.3, 0.1, math.nan], [0.2, 0.4, math.nan]])
    found = normalise(errors)
    assert found[:, :2].min(0).tolist() == [0.0, 0.0]
    assert found[0, 0] == pytest.approx(0.1)
    assert np.isnan(found[:, 2]).all()


def test_regimes_of_cells():
    split = midpoint([-0.5, 0.0, 0.0, -0.04], [0.1, 0.9, 0.98, 0.95], 0.05)
    assert split == pytest.approx(0.94)
    how = {"barrier": 0.05, "similar": split}
    assert [label(mc, cka, **how) for mc, cka in ((-0.06, 0.99), (-0.05, 0.99), (0.1, 0.9))] == ["I", "II-B", "II-A"]
    assert midpoint([-0.5], [0.9], 0.05) == 0.0
