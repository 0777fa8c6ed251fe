"""JSON in what a language model answers, and what it was asked."""

from __future__ import annotations

import json

import pytest

from chat_server import Scripted
from secateur.methods.asking import Asking, Spending, choice_in, list_in


def test_a_list_without_end_is_bounded():
    names = [f"name {i}" for i in range(500)]
    assert len(list_in(json.dumps({"entities": names}))) == 16
    assert list_in(json.dumps({"entities": ["x" * 9000]})) == ["x" * 200]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [('{"answer": "True"}', "true"), ("It is false.", "false"), ("true or false", ""), ('{"answer": 1}', ""), ("", "")],
)
def test_one_of_several_choices(reply, wanted):
    assert choice_in(reply, ["true", "false"]) == wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("It is severe asthma.", "severe asthma"),
        ("asthma, not severe asthma", ""),
        ("C++ it is.", "C++"),
        ("Asthma.", "asthma"),
    ],
)
def test_choices_that_hold_one_another_or_end_in_signs(reply, wanted):
    assert choice_in(reply, ["asthma", "severe asthma", "C++", ""]) == wanted


def test_what_was_spent_is_counted_from_now_on():
    assert Asking().open_model() is None
    model = Asking(Scripted("a b"), calls=3).open_model()
    model.ask("one two three")
    spending = Spending(model)
    assert (spending.calls, spending.tokens) == (0, 0)
    model.ask("one two three")
    assert (spending.calls, spending.prompt_tokens, spending.answer_tokens, spending.tokens) == (1, 3, 2, 5)
