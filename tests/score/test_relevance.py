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


def test_a_corpus_tells_how_rare_a_word_is():
    """Of a few texts that all hold a word nothing is known of it; a corpus of thousands knows."""
    texts = [["cat", "the"], ["the", "mat"], ["the", "cat", "the"]]
    found = relevance.bm25(["the", "cat"], texts, held={"the": 990, "cat": 2}, total=997)
    expected = []
    for text in texts:
        total = 0.0
        for term, held in (("the", 993), ("cat", 4)):
            idf, f = math.log(1 + (1000 - held + 0.5) / (held + 0.5)), text.count(term)
            total += idf * f * 2.5 / (f + 1.5 * (0.25 + 0.75 * len(text) / (7 / 3)))
        expected.append(total)
    assert found == pytest.approx(expected)
    assert relevance.bm25(["the"], texts, held={"the": 9}, total=2) == pytest.approx(
        relevance.bm25(["the"], texts, held={"the": 9}, total=9)
    )


def test_many_questions_of_one_index_are_ranked_as_one_by_one():
    texts = [text.split() for text in ("the cat sat on the mat", "a cat and a dog", "nothing here", "dog dog cat")]
    for question in (["cat"], ["dog", "cat", "dog"], []):
        assert relevance.lexical(texts)(question) == pytest.approx(relevance.bm25(question, texts), rel=1e-5)


def test_rankings_are_joined_by_their_ranks():
    one, other = np.array([0.9, 0.5, 0.1]), np.array([10.0, 30.0, 20.0])
    expected = [(61 / 61 + 61 / 63) / 2, (61 / 62 + 61 / 61) / 2, (61 / 63 + 61 / 62) / 2]
    assert relevance.reciprocal_ranks([one, other]) == pytest.approx(expected)
    assert relevance.reciprocal_ranks([one, 1000 * other]) == pytest.approx(expected)
    assert relevance.reciprocal_ranks([one, other], [1.0, 0.0]) == pytest.approx([1.0, 61 / 62, 61 / 63])
    tied = relevance.reciprocal_ranks([np.array([1.0, 1.0, np.nan])])
    assert tied == pytest.approx([61 / 61.5, 61 / 61.5, 61 / 63])
    assert relevance.reciprocal_ranks([np.zeros(0)]).tolist() == []
    with pytest.raises(InputError, match="rankings of 3, 2 texts"):
        relevance.reciprocal_ranks([one, other[:2]])
