"""Batches of texts of unlike lengths."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from secateur.retrieval.batching import batches


def test_batches_hold_so_many_tokens():
    found = list(batches([5, 9, 3, 4], once=10))
    assert found == [[1], [0, 3], [2]]
    assert list(batches([100], once=10)) == [[0]]


@given(st.lists(st.integers(1, 40), max_size=7), st.integers(1, 90), st.integers(0, 30))
def test_batches_take_the_least_of_all_ways_to_part_them(lengths, once, begun):
    def taken(passes):
        return sum(len(one) * max(lengths[i] for i in one) + begun for one in passes)

    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ways = [[order]] if order else [[]]
    for many in range(1, len(order)):
        for cuts in itertools.combinations(range(1, len(order)), many):
            ways += [[order[a:b] for a, b in itertools.pairwise((0, *cuts, len(order)))]]
    held = [way for way in ways if all(len(one) == 1 or len(one) * lengths[one[0]] <= once for one in way)]
    found = batches(lengths, once, begun)
    assert [i for one in found for i in one] == order
    assert taken(found) == min(map(taken, held))
    assert found in held


def test_passages_of_unlike_length_are_hardly_padded():
    lengths = [300, 30, 150, 160, 25, 290, 140, 35]
    found = batches(lengths)
    assert len(found) == 3
    assert sum(len(one) * max(lengths[i] for i in one) for one in found) < 1.1 * sum(lengths)
    assert batches([192] * 8) == [list(range(8))]
