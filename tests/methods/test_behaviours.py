"""Behaviours in thoughts: by rules, as a language model marks them, and as tokens."""

from __future__ import annotations

import json

import pytest

import tiny
from secateur.clients.chat import Answer
from secateur.errors import DataError
from secateur.methods import behaviours
from secateur.methods.behaviours import Segment, mark, match_segment, read_rules, tag_by_model, tag_by_rules

TEXT = "We need the sum. I recall that 2 plus 2 is 4. So it is 4. Wait, is it? Maybe not.\nLet me check 3.5 plus 1."


def test_each_sentence_is_named_by_its_words_and_others_deduce():
    found = [(one.behaviour, TEXT[one.start : one.end]) for one in tag_by_rules(TEXT)]
    assert found == [
        ("initializing", "We need the sum."),
        ("adding-knowledge", "I recall that 2 plus 2 is 4."),
        ("deduction", "So it is 4."),
        ("backtracking", "Wait, is it?"),
        ("uncertainty-estimation", "Maybe not."),
        ("example-testing", "Let me check 3.5 plus 1."),
    ]
    assert [one.behaviour for one in tag_by_rules("So. So. Waiter so.")] == ["initializing", "deduction"]


def test_rules_are_read_and_what_is_none_is_said(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"doubt": ["hm"]}))
    assert tag_by_rules("Hm, no.", read_rules(tmp_path / "r.json"))[0].behaviour == "doubt"
    assert read_rules("") == behaviours.RULES
    (tmp_path / "r.json").write_text(json.dumps({"doubt": "hm"}))
    with pytest.raises(DataError, match="no object of behaviours"):
        read_rules(tmp_path / "r.json")


def test_a_segment_is_found_again_where_nine_tenths_of_it_stand_in_the_text():
    assert match_segment(TEXT, "So it is 4.") == (46, 57)
    start, end = match_segment(TEXT, "I recall that 2 plus 2 is 4!")
    assert TEXT[start:end] == "I recall that 2 plus 2 is 4"
    assert match_segment(TEXT, "I know that 3 plus 3 is 4.") is None
    assert match_segment(TEXT, "I recall that 2 plus 2 is 4!", coverage=0.99) is None
    assert match_segment(TEXT, "") is None


class Annotator:
    window = 10_000.0

    def ask(self, question, *, most=256, temperature=0.0, seed=0):
        assert "So it is 4." in str(question)
        said = '["deduction"] So it is 4. ["end-section"]\n["backtracking"] Wait, is it? ["end-section"]\n'
        return Answer(
            said + '["dreaming"] Maybe not. ["end-section"]\n["deduction"] Nowhere at all. ["end-section"]', 5, 5
        )


def test_what_a_language_model_marks_is_found_again_or_left_out():
    found = tag_by_model(TEXT, Annotator(), ["deduction", "backtracking"])
    assert [(one.behaviour, TEXT[one.start : one.end]) for one in found] == [
        ("deduction", "So it is 4."),
        ("backtracking", "Wait, is it?"),
    ]


def test_letters_become_tokens_behind_the_prompt():
    words = tiny.tokenizer()
    text = "the old tree grows"
    marked = mark(words, "a garden ", text, [Segment("x", 4, 12), Segment("y", 13, 18)])
    ids = words("a garden the old tree grows")["input_ids"]
    assert marked.tokens.tolist() == ids
    assert marked.spans == {"x": [(4, 6)], "y": [(6, 7)]}
    assert mark(words, "a garden ", text, [Segment("y", 13, 18)], most=6).spans == {}
