"""Chunks of pages and texts, and what of them fits."""

from __future__ import annotations

import numpy as np

from secateur.methods import chunking
from secateur.subjects import open_page


def count(texts):
    return [len(text.split()) for text in texts]


def test_chunks_hold_every_word_once_and_stand_behind_their_headings():
    page = open_page("<h1>Trees</h1><p>one two three</p><h2>Cherry</h2><p>four five six seven</p>", block=0)
    plain = chunking.chunks_of_page(page, 3)
    assert " ".join(plain).split() == page.text().split()
    assert [len(piece.split()) for piece in plain] == [3, 3, 3]
    headed = chunking.chunks_of_page(page, 3, headed=True)
    assert headed[-1].endswith("Cherry\nfive six seven")
    assert chunking.chunks_of_text("a b c d e", 2, "Title") == ["Title\na b", "Title\nc d", "Title\ne"]


def test_the_best_that_fit_stand_in_their_order_and_what_does_not_fit_is_passed_over():
    pieces, scores = ["a a", "b b b b", "c", "d"], np.array([0.1, 0.9, 0.8, 0.7])
    assert chunking.best_that_fit(pieces, scores, 6, count) == "b b b b\nc\nd"
    assert chunking.best_that_fit(pieces, scores, 3, count) == "c\nd"
    assert chunking.best_that_fit([], scores[:0], 3, count) == ""
    assert count([chunking.best_that_fit(pieces, scores, 4, lambda texts: [len(t) for t in texts])])[0] <= 2


def test_the_first_words_are_as_many_as_fit():
    assert chunking.first_that_fit("a b c d", 3, count) == "a b c"
    assert chunking.first_that_fit("a b c d", 9, count) == "a b c d"
    assert chunking.first_that_fit("a b", 0, count) == ""


def test_the_recursive_splitter_cuts_at_paragraphs():
    assert chunking.split_recursively("one two\n\nthree four", 12) == ["one two", "three four"]
