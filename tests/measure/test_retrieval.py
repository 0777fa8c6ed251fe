"""Ranking metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from secateur.errors import InputError
from secateur.measure.retrieval import ndcg, precision_recall, reciprocal_rank


def test_ndcg_of_known_orders():
    assert ndcg([1, 0, 0], [3, 2, 1]) == 1.0
    assert ndcg([1, 0, 0], [1, 2, 3]) == pytest.approx(1 / math.log2(4))
    assert ndcg([2, 1, 0], [1, 3, 2]) == pytest.approx((1 + 3 / math.log2(4)) / (3 + 1 / math.log2(3)))
    assert ndcg([0, 0, 1], [3, 2, 1], k=2) == 0.0
    assert ndcg([0, 0], [1, 2]) == 1.0


def test_scores_that_say_nothing_gain_nothing():
    assert ndcg([1, 0, 0], [5, 5, 5]) == ndcg([1, 0, 0], [1, 2, 3])
    assert reciprocal_rank([1, 0, 0], [5, 5, 5]) == pytest.approx(1 / 3)


def test_reciprocal_rank():
    assert reciprocal_rank([0, 1], [2, 1]) == 0.5
    assert reciprocal_rank([0, 1], [2, 1], k=1) == 0.0
    with pytest.raises(InputError, match="one of each"):
        reciprocal_rank([0, 1], [2])


def test_what_was_kept():
    found = precision_recall([1, 2, 3], [2, 3, 4, 5])
    assert (found.precision, found.recall) == (2 / 3, 0.5)
    assert found.f() == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert found.f(2.0) == pytest.approx(5 * (2 / 3) * 0.5 / (4 * 2 / 3 + 0.5))
    assert precision_recall([], []).f() == 1.0
    assert precision_recall([1], []).f() == 0.0
    assert precision_recall([], [1]).f() == 0.0
