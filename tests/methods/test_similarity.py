"""Similarity of texts, with an encoder and without."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.methods.similarity import Similarity
from secateur.score import naming, relevance

TEXTS = ["the old garden", "a new house", ""]


def embed(texts):
    return np.array([[len(text), text.count("e"), 1.0 / 3] for text in texts])


@pytest.mark.parametrize("digits", [None, 2])
def test_cosine_of_vectors_or_words(digits):
    vectors, words = Similarity(embed, digits=digits), Similarity(None, str.split, digits)
    cosines = relevance.cosine(embed(["old house"])[0], embed(TEXTS))
    lexical = relevance.bm25(["old", "house"], [text.split() for text in TEXTS])
    for found, wanted in (
        (vectors.compare(["old house"], TEXTS)[0], cosines), (vectors.rank("old house", TEXTS), cosines),
        (words.rank("old house", TEXTS), lexical),
        (words.compare(["old house"], TEXTS), naming.tfidf([["old", "house"]], [text.split() for text in TEXTS])),
    ):  # fmt: skip
        assert np.array_equal(found, wanted if digits is None else np.round(wanted, digits))
    for either in (vectors, words):
        assert either.compare([], TEXTS).shape == (0, 3)
        assert either.rank("old", []).shape == (0,)
