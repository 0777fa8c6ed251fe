"""Which modules matter: shares, shifts, what is protected, and rounding that leaves no trace."""

from __future__ import annotations

import pytest
import torch

import tiny
from recipes.sparse.oneshot import taught
from secateur.errors import DataError
from secateur.methods import diagnosis
from secateur.methods.behaviours import tag_by_rules
from secateur.methods.diagnosis import Answer, Importance

RULES = {"growing": tiny.WORDS[:25], "cutting": tiny.WORDS[25:]}


def tag(text):
    """Every word is a sentence."""
    return tag_by_rules(text.replace(" ", "\n"), RULES)


def marked(**how):
    answers = [tuple(text.rsplit(" ", 6)) for text in tiny.chains(6)]
    return diagnosis.mark_answers(taught(), [Answer(one[0], " ".join(one[1:])) for one in answers], tag, **how)


def test_as_many_spans_of_each_behaviour_are_looked_at():
    texts = marked(spans=6)
    counts = {name: sum(len(text.spans.get(name, ())) for text in texts) for name in RULES}
    assert counts == {"growing": 3, "cutting": 3}
    with pytest.raises(DataError, match="no behaviour is found in 1 answers"):
        diagnosis.mark_answers(taught(), [Answer("the", "the")], lambda text: [])


def test_importance_counts_its_spans_and_its_baselines_have_the_same_modules():
    modules = list(diagnosis.find_modules(taught()))
    assert len(modules) == 7 * len(taught().layers())
    found = diagnosis.importance(taught(), marked(spans=6), modules)
    assert found.spans == {"growing": 3, "cutting": 3}
    for kind in (found.scores, found.random, found.gradient):
        assert {name: set(own) for name, own in kind.items()} == {name: set(modules) for name in RULES}
    assert diagnosis.importance(taught(), marked(spans=6), modules) == found
    ranked = diagnosis.rank(found)
    assert sum(ranked.values()) == pytest.approx(1)
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)


def test_shifts_are_of_shares_with_both_signs():
    one, other = (Importance({"a": own}, {}, {}, {"a": 1}) for own in ({"q": 1.0, "k": 3.0}, {"q": 3.0, "k": 3.0}))
    assert diagnosis.shift(other, one) == {"a": {"q": 0.25, "k": -0.25}}
    assert diagnosis.shift(one, one) == {"a": {"q": 0.0, "k": 0.0}}


def test_the_most_important_that_fit_are_protected():
    ranked, sizes = {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10, "b": 80, "c": 10}
    assert diagnosis.choose_protected(ranked, sizes, 0.2) == ["a", "c"]
    assert diagnosis.choose_protected(ranked, sizes, 0.9) == ["a", "b"]
    assert diagnosis.choose_protected(ranked, sizes, 0.01) == ["a"], "one at least"


def test_rounding_one_module_hurts_and_the_model_is_as_before():
    texts, modules = marked(spans=20), list(diagnosis.find_modules(taught()))[:3]
    before = {name: tensor.clone() for name, tensor in taught().model.state_dict().items()}
    coarse, fine = (diagnosis.damage_of_rounding(taught(), texts, modules, bits=bits) for bits in (2, 8))
    assert set(coarse) == set(modules)
    assert max(map(abs, fine.values())) < max(map(abs, coarse.values()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught().model.state_dict().items())
