"""Passages: sentences with exact places, and what is left of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import conformance
from secateur.errors import InputError
from secateur.subjects import open_passages
from secateur.subjects.text.passage import LONGEST, sentences
from secateur.vocabulary import Selection

TEXT = "Dr. Smith went to the U.S. in 1999. He liked it.  \n\nA new line? Yes!"


def keep(passages, *indices):
    mask = np.zeros(len(passages.sentences), bool)
    mask[list(indices)] = True
    return passages.cut(Selection({"sentences": mask}))[0]


def said(passages):
    return [passages.text(index) for index in range(len(passages.sentences))]


def test_sentences_stand_exactly_where_they_are():
    passages = open_passages([TEXT])
    assert said(passages) == ["Dr. Smith went to the U.S. in 1999.", "He liked it.", "A new line?", "Yes!"]
    assert [TEXT[one.start : one.end] for one in passages.sentences] == said(passages)


def test_all_that_stays_is_the_text_to_the_letter():
    passages = open_passages([TEXT, "  Another one.  "])
    assert passages.to_text() == f"{TEXT}\n\n  Another one.  "
    assert passages.cut(Selection({}))[0].to_text() == passages.to_text()


def test_what_stands_between_neighbours_stays_and_a_gap_is_a_space():
    passages = open_passages([TEXT])
    assert keep(passages, 1, 2, 3).to_text() == "He liked it.  \n\nA new line? Yes!"
    assert keep(passages, 1, 3).to_text() == "He liked it. Yes!"
    assert keep(keep(passages, 0, 1, 3), 1, 2).to_text() == "He liked it. Yes!"
    assert keep(passages).to_text() == ""
    assert keep(passages).documents() == {}


def test_titles_and_sentences_that_are_split_already():
    passages = open_passages([["One a.", "Two b."], "Three. Four."], titles=["Head", None])
    assert said(passages) == ["Head", "One a.", "Two b.", "Three.", "Four."]
    assert passages.to_text() == "Head One a. Two b.\n\nThree. Four."
    assert open_passages(["Body text."], titles=["A head"]).to_text() == "A head\nBody text."
    assert said(open_passages(["Body text."], titles=["A head"])) == ["A head", "Body text."]


def test_a_splitter_of_ones_own():
    halves = open_passages(["abcdef"], split=lambda text: [(0, 3), (3, 6)])
    assert said(halves) == ["abc", "def"]
    with pytest.raises(InputError, match="places in order"):
        open_passages(["abcdef"], split=lambda text: [(3, 6), (0, 3)])


def test_passages_in_another_order_and_fewer():
    passages = open_passages(["First.", "Second.", "Third."]).reorder([2, 0])
    assert passages.to_text() == "Third.\n\nFirst."
    assert list(passages.documents()) == [2, 0]
    assert keep(passages, 0, 1).to_text() == "First."
    for order in ([0, 0], [3]):
        with pytest.raises(InputError, match="order"):
            passages.reorder(order)


def test_one_endless_sentence_is_cut():
    found = sentences("x" * (2 * LONGEST + 5))
    assert [end - start for start, end in found] == [LONGEST, LONGEST, 5]


@pytest.mark.parametrize("bad", [[3], [["a", 3]], [None]])
def test_what_is_no_text_is_refused(bad):
    with pytest.raises(InputError, match="text or a list of sentences"):
        open_passages(bad)
    with pytest.raises(InputError, match="2 titles for 1"):
        open_passages(["a"], titles=["b", "c"])
    with pytest.raises(InputError, match="axis"):
        open_passages(["a"]).units("pages")


def test_the_laws_of_subjects():
    def silence(passages, selection):
        return passages.cut(selection)[0]

    laws = conformance.check_subject(
        lambda: open_passages([TEXT, "Another. One more here. And a third."]),
        output=lambda passages: np.frombuffer(passages.to_text().encode(), np.uint8).astype(float),
        counted=lambda passages: {"words": float(len(passages.to_text().split()))},
        silence=silence,
        measure="words",
    )
    assert {"identity", "original untouched", "predicted = counted", "superset"} <= set(laws)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_split_into_what_it_says(text):
    found = sentences(text)
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in found)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
    left = "".join(text[a:b] for a, b in found)
    assert "".join(left.split()) == "".join(text.split())
    assert open_passages([text]).to_text().strip() == text.strip()
