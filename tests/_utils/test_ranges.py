from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from secateur._utils import ranges


@given(some.sets(some.integers(0, 60)))
def test_what_is_written_is_read(numbers):
    assert ranges.read(ranges.write(sorted(numbers))) == sorted(numbers)


def test_neighbours_are_one_range():
    assert ranges.write([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges.write([]) == ""


@pytest.mark.parametrize("text", ["1,1", "3-2", "a", "1,,2", "-1", "0-99999999", "5,2", "1-2-3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"range|invalid literal"):
        ranges.read(text)


@given(some.permutations(range(12)), some.integers(0, 12))
def test_an_order_is_read_as_it_was_written(numbers, count):
    assert ranges.read(ranges.write(numbers[:count]), sorted_only=False) == numbers[:count]


@pytest.mark.parametrize("text", ["1,1", "2-4,3", "3-2", "-1"])
def test_what_is_no_order_is_refused(text):
    with pytest.raises(ValueError, match=r"twice|range|invalid literal"):
        ranges.read(text, sorted_only=False)
