"""Collapse points with intervals, damage, and what long answers are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.errors import MeasurementError
from secateur.measure.collapse import collapse, compare_damage, damage, describe_lengths, quartiles


def test_nothing_is_lost_against_oneself_and_all_of_nothing_is_unknown():
    assert damage(0.8, 0.8) == 0.0
    assert damage(0.2, 0.8) == pytest.approx(0.75)
    assert math.isnan(damage(0.1, 0.0))


def test_a_score_collapses_at_the_first_amount_below_half_of_the_original_above_chance():
    dense, half, low = [1.0] * 8, [1, 0] * 4, [1, 0, 0, 0] * 2
    found = collapse([10, 20, 30], [dense, half, low], dense, beyond=100)
    assert found.point.value == 30, "half is not less than half"
    assert found.step == 20, "half of all is lost at once there"
    assert found.happens
    assert collapse([10, 20, 30], [dense, half, low], dense, beyond=100, chance=0.25).point.value == 20
    nowhere = collapse([10, 20], [dense, dense], dense, beyond=100)
    assert nowhere.point.value == 100
    assert not nowhere.happens
    assert (nowhere.point.low, nowhere.point.high) == (100, 100)
    with pytest.raises(MeasurementError, match="2 amounts and 1 rows"):
        collapse([1, 2], [dense], dense, beyond=100)


def test_the_interval_of_a_collapse_covers_what_other_items_would_say():
    draw = np.random.default_rng(0)
    dense = np.ones(60)
    rows = [(draw.random(60) < share).astype(float) for share in (0.95, 0.55, 0.45, 0.1)]
    found = collapse([20, 40, 60, 80], rows, dense, beyond=100).point
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert {found.low, found.value, found.high} <= {40, 60, 80}


def test_knowledge_against_reasoning_is_a_ratio_of_damages():
    ones = [1.0] * 20
    gone, half = [1, 0, 0, 0] * 5, [1, 0] * 10
    ratio = compare_damage(gone, ones, [half, half], [ones, ones])
    assert ratio.value == pytest.approx(1.5)
    assert ratio.low < 1.5 < ratio.high
    assert math.isnan(compare_damage(gone, ones, [ones], [ones]).value)
    with pytest.raises(MeasurementError, match="items of both"):
        compare_damage([], [], [ones], [ones])


def test_quartiles_go_from_the_shortest_to_the_longest():
    lengths, scores = [8, 7, 6, 5, 4, 3, 2, 1], [0, 0, 0, 1, 1, 1, 1, 1]
    assert quartiles(lengths, scores) == (1.0, 1.0, 0.5, 0.0)
    assert quartiles([3, 1], [0, 1]) == (1.0, 0.0)
    found = describe_lengths(lengths, scores)
    assert found.correlation.value < -0.7
    assert describe_lengths([5, 5, 5], [0, 1, 1]).correlation is None
