"""Compensation against what it promises: an exact mean, the least squares solution."""

import pytest
import torch

from secateur.errors import InputError, NumericalError
from secateur.recover.sparsity import compensate


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_constant_keeps_the_mean_output_exact():
    inputs, weight, bias = torch.randn(500, 8) + torch.arange(8.0), torch.randn(3, 8), torch.randn(3)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool()
    added = compensate.constant(weight, inputs.mean(0), keep)
    full = inputs @ weight.T + bias
    cut = inputs[:, keep] @ weight[:, keep].T + bias + added
    torch.testing.assert_close(cut.mean(0), full.mean(0), rtol=1e-4, atol=1e-4)
    assert (cut - full).square().sum() < (cut - added - full).square().sum()


def test_least_squares_is_what_lstsq_finds():
    inputs = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    weight = torch.randn(3, 8, dtype=torch.float64)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    found = compensate.least_squares(weight, 2 * inputs.T @ inputs / 200, keep)
    want = torch.linalg.lstsq(inputs[:, keep], inputs @ weight.T).solution.T
    torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)
    whole = compensate.least_squares(weight, inputs.T @ inputs, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(whole, weight, rtol=1e-8, atol=1e-8)


def test_a_singular_hessian_is_named_and_damping_helps():
    inputs = torch.randn(50, 3)
    inputs = torch.cat([inputs, torch.zeros(50, 1), inputs[:, :1]], 1)
    hessian, keep = inputs.T @ inputs, torch.tensor([1, 1, 0, 1, 1]).bool()
    with pytest.raises(NumericalError, match=r"damp=0\.01"):
        compensate.least_squares(torch.randn(2, 5), hessian, keep)
    assert compensate.least_squares(torch.randn(2, 5), hessian, keep, damp=0.01).isfinite().all()


def test_shapes_that_do_not_fit_are_named():
    keep = torch.ones(4, dtype=torch.bool)
    with pytest.raises(InputError, match=r"\[d_out, d_in\]"):
        compensate.constant(torch.randn(3, 5), torch.rand(4), keep)
    with pytest.raises(InputError, match="Hessian"):
        compensate.least_squares(torch.randn(3, 5), torch.rand(4, 4), keep)
