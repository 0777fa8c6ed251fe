"""Learning rates at their corners, and weights that follow the losses without a gradient of their own."""

import math

import pytest
import torch

from secateur.errors import InputError
from secateur.recover import balance
from secateur.recover.schedule import learning_rate, warmup_steps


def rates(**options):
    settings = {"steps": 100, "lr": 1.0, "warmup": 0.1} | options
    return [learning_rate(step, **settings) for step in range(settings["steps"])]


def test_warm_up_is_linear_and_ends_at_the_peak():
    for schedule in ("cosine", "linear", "constant"):
        found = rates(schedule=schedule)
        assert found[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
        assert found[10] == 1.0
    assert rates(warmup=20)[19] == 1.0
    assert rates(warmup=0)[0] == 1.0


def test_cosine_linear_and_constant_between_peak_and_floor():
    assert rates(min_lr=0.2)[55] == pytest.approx(0.2 + 0.8 / 2)
    assert rates(min_lr=0.2, schedule="linear")[55] == pytest.approx(0.6)
    assert rates(min_lr=0.2)[-1] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert min(rates(min_lr=0.2)[10:]) >= 0.2
    assert set(rates(schedule="constant")[10:]) == {1.0}


def test_warmup_counts_and_bad_schedules():
    assert warmup_steps(10, 0.05) == 1
    assert warmup_steps(10, 3) == 3
    for bad in ({"warmup": 200}, {"warmup": -1}, {"schedule": "square"}, {"min_lr": 2.0}):
        with pytest.raises(InputError):
            rates(**bad)


def test_dynamic_alpha_makes_both_losses_equal_and_carries_no_gradient():
    logit, hidden = torch.tensor(6.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    alpha = balance.dynamic(logit, hidden)
    assert alpha == 3
    (logit + alpha * hidden).backward()
    assert (logit.grad, hidden.grad) == (1, 3)


def test_rescale_brings_distillation_to_cross_entropy():
    assert balance.rescale(torch.tensor(0.5), torch.tensor(3.0)) * 0.5 == 3


def test_zero_balances_to_zero_and_nan_stays_nan():
    assert balance.dynamic(torch.tensor(1.0), torch.tensor(0.0)) == 0
    assert balance.dynamic(torch.tensor(math.nan), torch.tensor(1.0)).isnan()
    assert balance.dynamic(torch.tensor(1.0), torch.tensor(math.nan)).isnan()
