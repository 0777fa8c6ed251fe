"""Each comparison passes what is equal and says what differs."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.conformance import comparisons
from secateur.errors import InputError
from secateur.vocabulary import Selection


def test_what_differs_is_named():
    comparisons.assert_equal_outputs([1.0, 2.0], [1.0, 2.001], 1e-3, "x")
    comparisons.assert_equal_costs({"params": 1.0, "flops": 2.0}, {"params": 1.0, "flops": 3.0}, "x", ignore=["flops"])
    keep = Selection({"a": np.array([True, False])})
    comparisons.assert_equal_selections(keep, keep, "x")
    with pytest.raises(AssertionError, match="x: differs by 1 where the largest value is 2"):
        comparisons.assert_equal_outputs([1.0, 1.0], [1.0, 2.0], 0.1, "x")
    with pytest.raises(AssertionError, match="x: params is 1, expected 2"):
        comparisons.assert_equal_costs({"params": 1.0}, {"params": 2.0}, "x")
    with pytest.raises(AssertionError, match="x: other units of a"):
        comparisons.assert_equal_selections(keep, Selection({"a": np.array([True, True])}), "x")


def test_a_refusal_is_given_back_and_its_lack_is_an_error():
    def refuse():
        raise InputError("no")

    assert str(comparisons.expect_refusal(refuse, "x")) == "no"
    with pytest.raises(AssertionError, match=r"x: a budget of 0.0001 % was not refused"):
        comparisons.expect_refusal(lambda: 3, "x")
