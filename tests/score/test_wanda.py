"""Wanda's scores are invariant where magnitude is not, and outliers are counted over a block."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import InputError
from secateur.score import wanda
from secateur.select import weights


def test_wanda_is_invariant_under_rescaled_inputs_and_magnitude_is_not():
    weight, squares = torch.randn(6, 40), torch.rand(40) + 0.1
    scale = torch.rand(40) * 10 + 0.1
    keep = weights.best(wanda.scores(weight, squares), 0.5, "row")
    rescaled = wanda.scores(weight / scale, squares * scale.square())
    assert torch.equal(weights.best(rescaled, 0.5, "row"), keep)
    assert not torch.equal(weights.best((weight / scale).abs(), 0.5, "row"), keep)
    assert torch.equal(weights.best(wanda.scores(weight * 3.0, squares), 0.5, "row"), keep)


def test_outliers_are_counted_over_all_matrices_of_a_block():
    first, second = torch.ones(4, 5), torch.ones(2, 5)
    second[0, 0] = 100.0
    assert wanda.outliers([first, second], 5.0) == pytest.approx(100 / 30)
    assert wanda.outliers([first], 5.0) == 0.0


def test_shapes_must_fit():
    with pytest.raises(InputError, match="d_in"):
        wanda.scores(torch.ones(2, 3), torch.ones(4))
