import math

import numpy as np
import pytest

from secateur.errors import InputError, NumericalError
from secateur.score import relevance

pytest.importorskip("bm25s")


def by_hand(question: list[str], texts: list[list[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    mean = sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        total = 0.0
        for term in question:
            held = sum(term in other for other in texts)
            idf = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
            f = text.count(term)
            total += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(text) / mean))
        found.append(total)
    return found


def test_bm25_is_its_formula():
    texts = [text.split() for text in ("the cat sat on the mat", "a cat and a dog", "nothing here", "dog dog dog cat")]
    for how in ({}, {"k1": 0.9, "b": 0.4}):
        expected = by_hand(["cat", "dog"], texts, **how)
        assert relevance.bm25(["cat", "dog"], texts, **how) == pytest.approx(expected, rel=1e-5)


def test_a_term_asked_twice_counts_twice_and_an_unknown_one_not():
    texts = [["cat", "mat"], ["dog", "fog"]]
    assert relevance.bm25(["cat", "cat", "zebra"], texts) == pytest.approx(2 * relevance.bm25(["cat"], texts))


@pytest.mark.parametrize("texts", [[], [[]], [[], []], [["cat"]]])
def test_nothing_in_common_is_zero(texts):
    assert relevance.bm25(["zebra"], texts).tolist() == [0.0] * len(texts)
    assert relevance.bm25([], texts).tolist() == [0.0] * len(texts)


def test_cosine_is_of_directions():
    rng = np.random.default_rng(0)
    question, texts = rng.standard_normal(5).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    expected = [question @ t / math.sqrt((question @ question) * (t @ t)) for t in texts]
    assert relevance.cosine(question, texts) == pytest.approx(expected, rel=1e-5)
    assert relevance.cosine(question, 3 * texts) == pytest.approx(relevance.cosine(question, texts))
    assert relevance.cosine(question, np.zeros((2, 5))).tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match=r"\(5,\) and \(4, 3\)"):
        relevance.cosine(question, texts[:, :3])


def test_an_encoder_that_gives_nan_is_refused():
    """It scored 0 for every text, and the head of the page was called the answer."""
    with pytest.raises(NumericalError, match="the encoder gives NaN"):
        relevance.cosine(np.ones(3), np.full((2, 3), np.nan))
    with pytest.raises(NumericalError, match="the encoder gives NaN"):
        relevance.cosine(np.array([1.0, np.inf]), np.ones((2, 2)))
