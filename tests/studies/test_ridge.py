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
