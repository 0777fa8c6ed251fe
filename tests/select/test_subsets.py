"""Subsets of fixed sizes: as many as the product of binomials, each once, the same under a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.errors import InputError
from secateur.select import subsets
from secateur.vocabulary import Selection

SIZES = {"a": (5, 2), "b": (4, 1)}


def keys(found):
    return [str(subsets.list_removed(one)) for one in found]


def test_all_subsets_are_as_many_as_the_product_of_binomials_and_each_comes_once():
    found = subsets.draw(SIZES, 1000)
    assert len(found) == subsets.count(SIZES) == math.comb(5, 2) * math.comb(4, 1)
    assert len(set(keys(found))) == len(found)
    assert all((~one["a"]).sum() == 2 and (~one["b"]).sum() == 1 for one in found)


def test_nothing_to_remove_is_one_candidate():
    (only,) = subsets.draw({"a": (5, 0), "b": (3, 0)}, 10)
    assert subsets.list_removed(only) == {"a": [], "b": []}


def test_a_sample_repeats_under_its_seed_and_a_larger_one_begins_with_it():
    sizes = {"a": (10, 5), "b": (10, 5)}
    few, more, other = subsets.draw(sizes, 20), subsets.draw(sizes, 50), subsets.draw(sizes, 20, seed=1)
    assert keys(few) == keys(subsets.draw(sizes, 20)) == keys(more)[:20]
    assert keys(other) != keys(few)
    assert len(set(keys(more))) == 50
    gone = np.mean([~one["a"] for one in subsets.draw(sizes, 2000)], axis=0)
    assert np.abs(gone - 0.5).max() < 0.05, "each unit goes as often as any other"


def test_nearly_all_subsets_are_drawn_without_repeating_one():
    assert len(set(keys(subsets.draw(SIZES, 39)))) == 39


def test_near_ones_differ_in_one_pair_and_have_the_same_sizes():
    (start, *_) = subsets.draw(SIZES, 1)
    found = subsets.near(start, 8)
    assert len(set(keys(found))) == 8
    for one in found:
        assert sum(int((one[name] != start[name]).sum()) for name in start) == 2
        assert all((~one[name]).sum() == (~start[name]).sum() for name in start)
    assert len(subsets.near(start, 100)) == 2 * 3 + 1 * 3, "all that there are"
    assert not subsets.near({"a": np.ones(4, bool)}, 5)


def test_selections_around_one_keep_as_many_at_each_site_and_it_stands_first():
    start = Selection({"a": np.arange(8) < 4, "b": np.arange(6) < 4, "whole": np.ones(3, bool)}, {"params": 7.0})
    found = subsets.around(start, 9)
    assert found[0] is start
    assert len(set(keys([dict(one.keep) for one in found]))) == 9
    assert all([int(mask.sum()) for mask in one.keep.values()] == [4, 4, 3] for one in found)
    assert all(one.spent == start.spent for one in found)
    far = [sum(int((one.keep[name] != start.keep[name]).sum()) for name in "ab") for one in found[1:]]
    assert far[:4] == [2] * 4
    assert max(far[4:]) > 2
    assert len(subsets.around(Selection({"a": np.arange(3) < 2}), 16)) == 3, "all that there are"
    assert len(subsets.around(Selection({"a": np.ones(3, bool)}), 16)) == 1


@pytest.mark.parametrize(
    ("sizes", "most", "words"),
    [({"a": (4, 4)}, 5, "a would lose 4 of its 4 units, and one has to stay"), (SIZES, 0, "0 candidates")],
)
def test_what_can_not_be_drawn_is_said(sizes, most, words):
    with pytest.raises(InputError, match=words):
        subsets.draw(sizes, most)
