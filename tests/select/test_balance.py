"""Balanced rankings: exact shares, nested, within the budget, and equal for NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import conformance
from secateur.errors import InfeasibleError, InputError
from secateur.select import balance, ranking
from secateur.vocabulary import Budget, Limit, Site, Units


def units(count: int) -> Units:
    return Units({"examples": Site("examples", count, {"examples": np.ones(count)})})


def kept(scores, group, budget) -> np.ndarray:
    return ranking.by_budget(units(len(scores)), {"examples": balance.within(scores, group)}, budget).keep["examples"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 100), st.integers(0, 10_000))
def test_every_group_keeps_its_share_rounded(sizes, percent, seed):
    draw = np.random.default_rng(seed)
    group = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    scores = draw.random(len(group)) * 10.0**group  # groups of very unlike scores
    asked = max(1, len(group) * percent // 100)
    mask = kept(scores, group, Budget((Limit("examples", float(asked)),)))
    assert mask.sum() == asked  # exact, and not over
    counts = np.bincount(group[mask], minlength=len(sizes))
    # One divisor f gives them all: there is an f with count = round(f n) for each group, halves to either side.
    low = max((count - 0.5) / size for count, size in zip(counts, sizes, strict=True))
    high = min((count + 0.5) / size for count, size in zip(counts, sizes, strict=True))
    assert low <= high + 1e-12
    for number in range(len(sizes)):  # and the best of each group are what is kept
        own = group == number
        assert min(scores[own & mask], default=np.inf) >= max(scores[own & ~mask], default=-np.inf)


def test_whole_shares_are_kept_as_they_are():
    group = np.repeat([0, 1, 2], [10, 20, 30])
    for share in (0.1, 0.3, 0.5, 0.9):
        mask = kept(np.random.default_rng(1).random(60), group, f"examples={share:.0%}")
        assert np.bincount(group[mask]).tolist() == [round(share * size) for size in (10, 20, 30)]


def test_the_laws_of_selections():
    def select(given: Units, scores, budget):
        fair = {}
        for name, column in scores.items():
            count = given[name].count
            fair[name] = balance.within(column, np.arange(count) % 2)
        return ranking.by_budget(given, fair, budget)

    assert {"within budget", "superset", "NumPy = torch", "repeats"} <= set(conformance.check_selection(select))


def test_torch_gives_torch():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7], dtype=torch.float32)
    found = balance.within(scores, torch.tensor([0, 0, 1, 1]))
    assert found.dtype == torch.float64
    assert found.tolist() == [0.25, 0.75, 0.25, 0.75]


def test_a_group_that_would_be_empty_is_refused_with_what_is_needed():
    group, scores = np.array([0] * 40 + [2] * 3), np.arange(43.0)
    with pytest.raises(InfeasibleError, match="leaves nothing of class 'rare', which has 3 of 43") as refused:
        balance.by_budget(units(43), "examples", scores, "examples=5", group, ["common", "none", "rare"])
    needed = refused.value.reachable
    assert f"examples={needed:.0f}" in str(refused.value)
    kept = balance.by_budget(units(43), "examples", scores, f"examples={needed:.0f}", group).keep["examples"]
    assert np.bincount(group[kept]).tolist() == [needed - 1, 0, 1]
    with pytest.raises(InfeasibleError, match="class 2"):
        balance.by_budget(units(43), "examples", scores, f"examples={needed - 1:.0f}", group)


def test_groups_of_another_length_are_refused():
    with pytest.raises(InputError, match="one group for each score"):
        balance.within(np.ones(3), np.ones(2))
