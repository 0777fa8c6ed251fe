"""Beams narrowed by a judge: what stays, how often it is asked, and that it is asked no more than needed."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.select import beams

ITEMS = st.lists(st.integers(0, 10**6), max_size=300, unique=True)


def judge(items):
    """The largest first."""
    return sorted(range(len(items)), key=lambda place: -items[place])


@given(ITEMS, st.integers(1, 5), st.integers(4, 50))
def test_a_judge_of_single_things_finds_the_best(items, width, batch):
    kept = beams.narrow(items, judge, width=width, top=min(3, width), batch=batch)
    assert len(kept) == min(width, len(items)) if width <= 3 or len(items) <= width else len(kept) <= width
    assert not items or max(items) in {items[place] for place in kept} or len(items) <= width
    if batch > len(items) > width:
        assert [items[place] for place in kept] == sorted(items, reverse=True)[: len(kept)]


def test_batches_of_forty_give_three_each():
    sizes = []

    def choose(items):
        sizes.append(len(items))
        return judge(items)

    assert beams.narrow(list(range(80)), choose, width=3) == [79, 78, 77]
    assert sizes == [40, 40, 6]
    sizes.clear()
    assert beams.narrow([5, 4, 3], choose, width=3) == [0, 1, 2]
    assert not sizes


@pytest.mark.parametrize("answer", [[], [-1, 99], [7, 7, 7]])
def test_nonsense_of_a_judge_leaves_the_first(answer):
    kept = beams.narrow(list(range(10)), lambda items: answer, width=3)
    assert kept == ([0, 1, 2] if 7 not in answer else [7])


def test_batches_shrink_until_they_fit():
    sizes = []

    def choose(items):
        sizes.append(len(items))
        return judge(items)

    beams.narrow(list(range(40)), choose, width=3, fits=lambda items: len(items) <= 12)
    assert sizes[:4] == [10, 10, 10, 10]
    assert beams.narrow(list(range(40)), choose, width=3, fits=lambda items: False) == [0, 1, 2]


@given(ITEMS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.lists(st.integers(-3, 60), max_size=5))
def test_it_ends_whatever_the_judge_says(items, width, top, batch, answer):
    kept = beams.narrow(items, lambda items: answer, width=width, top=top, batch=batch)
    assert len(kept) <= width
    assert set(kept) <= set(range(len(items)))
    assert kept or not items


# ---------------------------------------------------------------------------------------------------------- branches


PATH = st.lists(st.integers(0, 3), min_size=3, max_size=9).filter(lambda blocks: len(blocks) % 2)
SEQUENCES = st.lists(PATH, max_size=120)


@given(SEQUENCES, st.integers(1, 30), st.integers(0, 4), st.integers(4, 50))
def test_branches_narrow_to_the_width_and_keep_the_order(sequences, width, longest, batch):
    kept = beams.narrow_branches(
        sequences,
        lambda items: sorted(range(len(items)), key=lambda i: items[i]),
        width=width,
        longest=longest,
        batch=batch,
    )
    assert len(kept) <= width
    assert kept == sorted(set(kept))
    assert len(kept) == len(sequences) or len(sequences) > width
    assert kept or not sequences


def test_the_side_with_fewer_branches_comes_first():
    asked = []

    def choose(items):
        asked.append(list(items))
        return [0, 1, 2]

    sequences = [(f"a{i % 5}", "r", f"m{i % 5}", "s", f"z{i}") for i in range(30)]
    beams.narrow_branches(sequences, choose, width=3, longest=3)
    assert [branch[0] for branch in asked[0]] == ["a0", "a1", "a2", "a3", "a4"]  # beginnings, of which there are five
    assert asked[1][0][-1] == "z0"


def test_few_short_branches_are_looked_at_one_step_longer():
    asked = []

    def choose(items):
        asked.append(list(items))
        return [0, 1, 2]

    beams.narrow_branches(
        [("a", "r", f"m{i % 2}", "s", f"n{i}", "t", "z") for i in range(60)], choose, width=20, longest=4
    )
    # Two beginnings of three blocks are all that there are: five blocks tell them apart.
    assert [len(branches[0]) for branches in asked[:2]] == [5, 5]
    assert [len(branches) for branches in asked[:2]] == [40, 20]


def test_branches_are_not_made_as_long_as_what_they_are_branches_of():
    """Sixty sequences of two steps, seven beginnings and five ends: the judge reads these, not sixty wholes."""
    asked = []

    def choose(items):
        asked.append(list(items))
        return [0, 1, 2]

    sequences = [("a", f"r{i % 7}", None, f"s{i % 5}", "z") for i in range(60)]
    kept = beams.narrow_branches(sequences, choose, width=20, longest=4)
    assert [(len(items), len(items[0])) for items in asked] == [(5, 3), (7, 3)]
    assert {sequences[place][1] for place in kept} == {"r0", "r1", "r2"}
    # One that is longer than the rest is reason enough.
    asked.clear()
    beams.narrow_branches([*sequences, ("a", "r0", None, "s0", None, "t", "z")], choose, width=20, longest=4)
    assert len(asked[0][0]) == 5


def test_all_branches_alike_leave_the_first():
    assert beams.narrow_branches([("a", "r", "b")] * 50, lambda items: [0], width=20, longest=3) == list(range(20))


def test_the_judge_is_asked_less_for_branches_than_for_wholes():
    """80 sequences with 9 beginnings: three rounds of few branches, where wholes take 86."""
    looked = []

    def choose(items):
        looked.append(len(items))
        return [0, 1, 2]

    sequences = [(f"a{i % 9}", "r", f"m{i % 20}", "s", "z") for i in range(80)]
    beams.narrow_branches(sequences, choose, width=20, longest=4)
    assert sum(looked) < 86
    assert max(looked) <= 40


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PATH, min_size=21, max_size=120))
def test_a_round_keeps_three_branches_of_each_batch(sequences):
    batches = []

    def choose(items):
        batches.append(len(items))
        assert len({tuple(item) for item in items}) == len(items)
        return [0, 1, 2]

    kept = beams.narrow_branches(sequences, choose, width=10, longest=0, batch=40)
    assert len(batches) <= 2 * math.ceil(len(sequences) / 40)
    assert set(kept) <= set(range(len(sequences)))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="width=0"):
        beams.narrow([1], judge, width=0)
    with pytest.raises(InputError, match="first=0"):
        beams.narrow_branches([], judge, width=1, longest=1, first=0)
