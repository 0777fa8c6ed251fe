"""Gate statistics against their definitions, pair by pair."""

import itertools

import pytest
import torch

from secateur.errors import DataError, InputError
from secateur.score import gates

DECISIONS = {
    "a": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]).bool(),
    "b": torch.tensor([[0], [0], [0], [1]]).bool(),
}


def test_decisions_are_collected_as_booleans_in_order():
    batches = [DECISIONS["a"][:3].float(), DECISIONS["a"][3:].float()]
    found = gates.collect(lambda batch: {"a": batch}, batches)
    assert found["a"].dtype == torch.bool
    assert torch.equal(found["a"], DECISIONS["a"])
    with pytest.raises(DataError, match="no batches"):
        gates.collect(lambda batch: {"a": batch}, [])


def test_frequency_is_the_share_of_inputs():
    found = gates.frequency(DECISIONS)
    assert found["a"].tolist() == [1.0, 0.5, 0.0]
    assert found["b"].tolist() == [0.25]


def test_unanimous_counts_both_sides_and_what_is_near():
    assert gates.unanimous(gates.frequency(DECISIONS)) == 0.5
    assert gates.unanimous({"a": torch.tensor([0.0, 0.01, 0.02, 0.985, 0.99, 1.0])}) == pytest.approx(4 / 6)


def test_agreement_is_the_mean_over_pairs():
    every = torch.cat(list(DECISIONS.values()), 1)
    pairs = [float((a == b).double().mean()) for a, b in itertools.combinations(every, 2)]
    assert gates.agreement(DECISIONS) == pytest.approx(sum(pairs) / len(pairs))
    assert gates.agreement({"a": torch.ones(3, 2).bool()}) == 1.0
    with pytest.raises(InputError, match="two or more"):
        gates.agreement({"a": torch.ones(1, 2).bool()})
