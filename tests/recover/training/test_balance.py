"""Weights that follow the losses without a gradient of their own."""

import math

import torch

from secateur.recover.training import balance


def test_dynamic_alpha_makes_both_losses_equal_and_carries_no_gradient():
    logit, hidden = torch.tensor(6.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    alpha = balance.dynamic(logit, hidden)
    assert alpha == 3
    (logit + alpha * hidden).backward()
    assert (logit.grad, hidden.grad) == (1, 3)


def test_zero_balances_to_zero_and_nan_stays_nan():
    assert balance.dynamic(torch.tensor(1.0), torch.tensor(0.0)) == 0
    assert balance.dynamic(torch.tensor(math.nan), torch.tensor(1.0)).isnan()
    assert balance.dynamic(torch.tensor(1.0), torch.tensor(math.nan)).isnan()
