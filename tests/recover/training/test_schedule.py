"""Learning rates at their corners."""

import math

import pytest

from secateur.errors import InputError
from secateur.recover.training.schedule import (
    check_course,
    learning_rate,
    ramp_up,
    repeat_rate,
    stage_rates,
    warmup_steps,
)
from secateur.vocabulary import Training


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


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1.0])
def test_a_learning_rate_that_is_none_is_named(lr):
    with pytest.raises(InputError, match=f"lr={lr}: give a learning rate"):
        learning_rate(0, steps=10, lr=lr)


def test_milestones_divide_by_ten_at_half_and_at_three_quarters():
    found = rates(schedule="milestones", warmup=0)
    assert found[49:51] == [1.0, 0.1]
    assert found[74:76] == pytest.approx([0.1, 0.01])
    assert rates(schedule="milestones", warmup=0, min_lr=0.05)[99] == 0.05


def test_cosine_to_the_floor_and_then_straight_to_zero():
    found = rates(schedule="cosine-zero", min_lr=0.1)
    assert found[:10] == rates(schedule="cosine")[:10]
    assert found[10:95] == [learning_rate(step, steps=95, lr=1.0, warmup=10, min_lr=0.1) for step in range(10, 95)]
    assert found[95:] == pytest.approx([0.1 * left / 5 for left in (5, 4, 3, 2, 1)])
    assert found == sorted(found[:10]) + sorted(found[10:], reverse=True)
    assert rates(schedule="cosine-zero", min_lr=0.1, steps=1, warmup=0) == [0.1]


def test_a_ramp_starts_at_zero_and_holds():
    found = [ramp_up(step, top=0.5, steps=4) for step in range(9)]
    assert found == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [ramp_up(step, top=0.5, steps=0) for step in range(3)] == [0.5] * 3


def test_stages_have_one_rate_or_one_each():
    assert stage_rates(1e-3, [1e-4, 0.0], 2) == [(1e-3, 1e-4), (1e-3, 0.0)]
    assert stage_rates([1e-3], [1e-4], 3) == [(1e-3, 1e-3), (1e-3, 1e-3), (1e-3, 1e-4)]
    with pytest.raises(InputError, match=r"^lr=0\.1,0\.2 has 2 numbers for 3 stages"):
        repeat_rate("lr", [0.1, 0.2], 3)


def test_a_course_is_checked_by_what_is_known_of_it():
    for fits in ({}, {"lr": 0.1}, {"lr": 0.1, "epochs": 2, "warmup": 500}, {"lr": 0.1, "steps": 0, "warmup": 5}):
        check_course(Training(**fits))
    for wrong, words in (
        ({"min_lr": 0.2, "epochs": 2}, "min_lr=0.2"), ({"steps": 4, "warmup": 5}, "warmup=5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            check_course(Training(lr=0.1, **wrong))
