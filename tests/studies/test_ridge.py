"""Ridge regression with a teacher: the closed form against gradient descent, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import InputError
from secateur.studies import ridge


def test_the_solution_has_no_gradient_left():
    draw = np.random.default_rng(0)
    X, t = draw.standard_normal((5, 30)), draw.standard_normal(30)
    theta = ridge.solution(X, t, 3.0)
    gradient = 2 * X @ (X.T @ theta - t) + 2 * 3.0 * theta
    assert np.abs(gradient).max() < 1e-9


def test_without_weight_the_teacher_changes_nothing_and_alone_it_replaces_labels():
    assert ridge.error(0.2, 0.0, 0.2, trials=5) == ridge.error(0.2, 0.0, 1.0, trials=5)
    assert ridge.error(0.2, 1.0, 0.2, trials=5) != ridge.error(0.2, 1.0, 1.0, trials=5)
    # Hardly any penalty, noise-free: teacher and student are the truth.
    assert ridge.error(0.5, 1.0, 1.0, penalty=1e-9, noise=0.0, trials=3) < 1e-12


def test_a_known_set_up_gives_its_known_errors():
    """Measured independently of this code, with other draws: 400 examples of 40 features, penalty 10."""
    told = {(0.25, 1.0): (0.456, {0.25: 0.368, 0.5: 0.201, 1.0: 0.111}),
            (0.1, 0.5): (0.403, {0.1: 0.444, 0.5: 0.287, 1.0: 0.266})}  # fmt: skip
    for (share, noise), (alone, taught) in told.items():
        assert ridge.error(share, 0.0, share, noise=noise) == pytest.approx(alone, rel=0.04)
        for saw, expected in taught.items():
            assert ridge.error(share, 1.0, saw, noise=noise) == pytest.approx(expected, rel=0.04)


def test_it_repeats_under_a_seed():
    assert ridge.error(0.3, 0.5, 0.6, trials=3) == ridge.error(0.3, 0.5, 0.6, trials=3)
    assert ridge.error(0.3, 0.5, 0.6, trials=3) != ridge.error(0.3, 0.5, 0.6, trials=3, seed=1)


@pytest.mark.parametrize("wrong", [(0.5, 0.5, 0.4), (0.0, 0.5, 1.0), (0.5, 1.5, 1.0), (0.5, 0.5, 1.1)])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match="share <= taught"):
        ridge.error(*wrong)


QUICK = {"shares": (0.1, 0.5), "alphas": (1.0,), "taught": (0.1, 0.5, 1.0), "trials": 3}


def test_the_table_is_of_the_closed_form_for_every_teacher_that_saw_enough(tmp_path):
    found = ridge.ridge(None, None, tmp_path, seeds=(0, 1), **QUICK)
    assert set(found.errors) == {
        (0.1, 0.0, 0.1), (0.5, 0.0, 0.5), (0.1, 1.0, 0.1), (0.1, 1.0, 0.5), (0.1, 1.0, 1.0), (0.5, 1.0, 0.5),
        (0.5, 1.0, 1.0),
    }  # fmt: skip
    for (share, alpha, taught), row in found.errors.items():
        assert row == tuple(ridge.error(share, alpha, taught, trials=3, seed=seed) for seed in (0, 1))
    sheet = found.sheet()
    header, first, second = sheet.tables[0].rows
    assert header == ["Student's share f", "Teacher's weight", "Labels alone", "f_t = 0.1", "f_t = 0.5", "f_t = 1"]
    assert first[:2] == ["0.1", "alpha 1"]
    assert second[3] == "–", "no teacher sees less than its student"
    assert f"{found.error(0.1, 1.0, 1.0).value:.3f}" in sheet.headline


def test_nothing_is_worked_out_twice(tmp_path, monkeypatch):
    first = ridge.ridge(None, None, tmp_path, seeds=(0,), **QUICK)
    asked = []
    real = ridge.error
    monkeypatch.setattr(ridge, "error", lambda *given, **how: asked.append(how["seed"]) or real(*given, **how))
    again = ridge.ridge(None, None, tmp_path, seeds=(0, 1), **QUICK)
    assert set(asked) == {1}
    assert all(again.errors[key][0] == row[0] for key, row in first.errors.items())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shares": ()}, "give at least one of each"),
        ({"shares": (1.5,)}, "above 0 and up to 1"),
        ({"alphas": (0.0,)}, "above 0 and up to 1"),
        ({"taught": (0.2,)}, "no teacher sees as much as the student of share 0.5"),
        ({"shares": (0.001,)}, "a share of 0.001 of 400 examples is none"),
        ({"penalty": 0.0}, "a penalty above 0"),
        ({"penalty": float("nan")}, "a penalty above 0"),
        ({"noise": float("nan")}, "a noise of at least 0"),
        ({"seeds": (0, -1)}, "seed=-1 is not a whole number of at least 0"),
        ({"trials": 0}, "whole numbers of at least 1"),
    ],
)
def test_a_plan_refuses_what_can_not_be_worked_out(given, words):
    defaults = {"size": 400, "features": 40, "penalty": 10.0, "noise": 1.0, "seeds": (0, 1)}
    with pytest.raises(InputError, match=words):
        ridge.plan(None, None, **{**defaults, **QUICK, **given})
    assert ridge.plan(None, None, **{**defaults, **QUICK}) == {"closed forms, no training": 14 * 3}
