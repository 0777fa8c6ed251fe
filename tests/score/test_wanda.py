"""Wanda's scores are invariant where magnitude is not, and outliers are counted over a block."""

from __future__ import annotations

from types import SimpleNamespace

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


def test_a_unit_is_worth_what_its_columns_add():
    """For one column at a time, the norm of the change of the output when its input is silenced."""
    model, inputs = torch.nn.Sequential(torch.nn.Linear(6, 3, bias=False)), torch.randn(2, 5, 6)
    consumer = SimpleNamespace(module="0", block=1, conv1d=False)
    found = wanda.units(
        lambda batch: model(batch["x"]), model, [{"x": row[None]} for row in inputs], {"site": consumer}
    )
    for column in range(6):
        silenced = inputs.clone()
        silenced[..., column] = 0
        change = (model(inputs) - model(silenced)).norm().detach()
        assert float(found["site"][column]) == pytest.approx(float(change), rel=1e-5)
