"""The trace of a Hessian that is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import DataError
from secateur.score import curvature


def test_the_trace_of_a_quadratic_is_its_own():
    model = nn.Linear(3, 1, bias=False)
    scale = torch.tensor([1.0, 2.0, 4.0])

    def loss(batch):
        return 0.5 * batch * (scale * model.weight.square()).sum()

    assert curvature.trace(loss, model, [1.0, 3.0], [model.weight]) == pytest.approx(2.0 * 7.0)
    model.requires_grad_(False)
    assert curvature.trace(loss, model, [1.0], [model.weight]) == pytest.approx(7.0), "frozen weights count, too"
    assert not model.weight.requires_grad
    assert model.weight.grad is None


def test_many_draws_come_near_where_weights_act_on_one_another():
    weight = nn.Parameter(torch.zeros(4))
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T

    def loss(batch):
        return 0.5 * weight @ matrix @ weight

    assert curvature.trace(loss, nn.Identity(), [0], [weight], draws=400) == pytest.approx(
        float(matrix.trace()), rel=0.1
    )
    assert curvature.trace(lambda batch: weight.sum(), nn.Identity(), [0], [weight]) == 0.0


def test_no_batches_are_said():
    with pytest.raises(DataError, match="no batches"):
        curvature.trace(lambda batch: torch.zeros(()), nn.Identity(), [], [])
