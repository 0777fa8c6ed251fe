"""Answers in words: what counts as right."""

from __future__ import annotations

from secateur.measure import answers


def test_an_answer_is_right_where_it_holds_a_right_one_or_is_held_by_one():
    assert answers.hit("Bern, Switzerland", ["bern"])
    assert answers.hit("New  york", ["NewYork City"])
    assert not answers.hit("Basel", ["Bern", "Biel"])
    assert not answers.hit("", ["Bern"])
    assert not answers.hit("Bern", [])
    assert not answers.hit("Bern", [" "])


def test_f1_is_of_hits_in_both_directions():
    assert answers.f1(["Bern", "Basel"], ["Bern"]) == 2 / 3
    assert answers.f1(["Bern"], ["Bern", "Biel", "Thun"]) == 0.5
    assert answers.f1(["Chur"], ["Bern"]) == 0.0
    assert answers.f1([], ["Bern"]) == 0.0
    assert answers.f1([], []) == 1.0
