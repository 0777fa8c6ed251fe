"""Gate statistics against their definitions, pair by pair."""

import itertools
import weakref

import numpy as np
import pytest
import torch

from secateur.errors import DataError, InputError
from secateur.score import gates

DECISIONS = {
    "a": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]).bool(),
    "b": torch.tensor([[0], [0], [0], [1]]).bool(),
}


VOTES = gates.Votes.of(DECISIONS)


def test_decisions_are_added_up_as_a_stream():
    batches = [slice(0, 3), slice(3, 4)]
    held = []

    def decide(part):
        held.append(weakref.ref(rows := {name: value[part].float() for name, value in DECISIONS.items()}["a"]))
        return {"a": rows, "b": DECISIONS["b"][part].float()}

    found = gates.collect(decide, batches)
    assert found.count == 4
    assert {name: value.tolist() for name, value in found.on.items()} == {"a": [4, 2, 0], "b": [1]}
    assert all(one() is None for one in held), "decisions of N examples are not kept"
    with pytest.raises(DataError, match="no batches"):
        gates.collect(lambda batch: {"a": batch}, [])


def test_frequency_is_the_share_of_inputs():
    found = gates.frequency(VOTES)
    assert found["a"].tolist() == [1.0, 0.5, 0.0]
    assert found["b"].tolist() == [0.25]


def test_unanimous_counts_both_sides_and_what_is_near():
    assert gates.unanimous(gates.frequency(VOTES)) == 0.5
    assert gates.unanimous({"a": torch.tensor([0.0, 0.01, 0.02, 0.985, 0.99, 1.0])}) == pytest.approx(4 / 6)


def test_what_stays_follows_the_majority_of_the_inputs():
    often, keep = gates.frequency(VOTES), {"a": np.array([True, True, False]), "b": np.array([False])}
    assert gates.is_majority(keep, often)
    assert gates.is_majority({**keep, "c": np.array([True])}, often), "of what has no gates nothing is asked"
    for name, place in (("a", 1), ("a", 2), ("b", 0)):
        other = keep[name].copy()
        other[place] = not other[place]
        assert not gates.is_majority({**keep, name: other}, often)


def test_agreement_is_the_mean_over_pairs():
    every = torch.cat(list(DECISIONS.values()), 1)
    pairs = [float((a == b).double().mean()) for a, b in itertools.combinations(every, 2)]
    assert gates.agreement(VOTES) == pytest.approx(sum(pairs) / len(pairs))
    assert gates.agreement(gates.Votes.of({"a": torch.ones(3, 2)})) == 1.0
    with pytest.raises(InputError, match="two or more"):
        gates.agreement(gates.Votes.of({"a": torch.ones(1, 2)}))
