"""Answers: held by a text, and alike to those that are right."""

from __future__ import annotations

import pytest

from secateur.measure import answers


def test_a_text_holds_an_answer_whatever_its_blanks_and_letters():
    assert answers.holds("Cherry trees are\n  pruned in Summer.", ["in winter", "pruned in summer"])
    assert not answers.holds("Cherry trees are pruned.", ["pruned in summer"])
    for text, answer in [("in 1907", "7"), ("--size", "-s"), ("know", "no"), ("others", "the rs"), ("x-y", "y")]:
        assert not answers.holds(text, [answer]), answer
    for text, answer in [
        ("up to 7.", "7"),
        ("say -s or", "-s"),
        ("say no!", "no"),
        ("f( x )", "f(x)"),
        ("a\nb", "a b"),
    ]:
        assert answers.holds(text, [answer]), answer
    assert not answers.holds("anything", ["  "]), "an answer of blanks is none"


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in the summer", ["summer"], 0.0, 2 * 1 / 3),
        ("a b b", ["b b c", "x"], 0.0, 1.0 * 2 * 2 / 5),
        ("", ["summer"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(given, right, exact, f1):
    assert answers.exact_match(given, right) == exact
    assert answers.token_f1(given, right) == pytest.approx(f1)
