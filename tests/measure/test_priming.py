"""Memory and priming: logarithms of ratios of probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.errors import MeasurementError
from secateur.measure.priming import Shift, memory, priming


def test_nothing_learnt_is_a_ratio_of_one():
    logs = [-3.0, -700.0]
    assert memory(-5.0, -5.0) == Shift(0.0, 0.0)
    assert priming(logs, logs) == Shift(0.0, 0.0, 2)


def test_they_are_the_formulas():
    before, after = np.array([0.1, 0.02, 0.5]), np.array([0.2, 0.01, 0.6])
    assert memory(math.log(0.1), math.log(0.4)).log_ratio == pytest.approx(math.log(4))
    assert memory(math.log(0.1), math.log(0.4)).change == pytest.approx(0.3)
    found = priming(np.log(before), np.log(after))
    assert found.log_ratio == pytest.approx(math.log((after / before).mean()))
    assert found.change == pytest.approx((after - before).mean())


def test_prompts_below_the_floor_are_left_out():
    before, after = np.log([0.1, 1e-8]), np.log([0.2, 0.1])
    found = priming(before, after, floor=1e-6)
    assert (found.prompts, found.log_ratio) == (1, pytest.approx(math.log(2)))
    assert priming(before, after, floor=0.5) is None
    with pytest.raises(MeasurementError, match="2 and 1"):
        priming(before, after[:1])
