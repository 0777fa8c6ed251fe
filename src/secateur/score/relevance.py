"""Relevance: how relevant a text is to a question. Higher means keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from secateur.errors import InputError, MissingExtraError, NumericalError

__all__ = ["bm25", "cosine", "kept_mean", "kept_share", "lexical"]


def bm25(question: Sequence[str], texts: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Float64 [texts]: sum over the question's terms t of idf(t) f (k1 + 1) / (f + k1 (1 - b + b |x| / mean |x|)).

    f: how often t stands in the text x; idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)); n_t of N texts hold t.

    question, texts: terms, as they are to be compared; a term asked twice counts twice. `lexical`: many questions.

    Raises `MissingExtraError` without bm25s. Source: Robertson and Zaragoza, The Probabilistic Relevance Framework:
    BM25 and Beyond (2009), with Lucene's idf.
    """
    return lexical(texts, k1=k1, b=b)(question)


def lexical(
    texts: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75
) -> Callable[[Sequence[str]], np.ndarray]:
    """`bm25` of texts, for any number of questions: a question's terms -> float64 [texts]."""
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("ranking by BM25 needs bm25s: pip install 'secateur[context]'") from error
    known = set[str]().union(*texts)
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    if known:
        index.index([list(text) for text in texts], show_progress=False)

    def scores(question: Sequence[str]) -> np.ndarray:
        asked = [term for term in question if term in known]
        # bm25s leaves out the factor k1 + 1, which is the same for all.
        found = index.get_scores(asked) if asked else np.zeros(len(texts))
        return (k1 + 1) * np.asarray(found, dtype=np.float64)

    return scores


def cosine(question: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Float64 [texts]: q . t / (|q| |t|); 0 for a vector of zeros.

    question: [d]; texts: [texts, d], what a bi-encoder makes of each. Raises `InputError` for other shapes,
    `NumericalError` for vectors that hold NaN or infinity.
    """
    if question.ndim != 1 or texts.ndim != 2 or texts.shape[1] != len(question):
        raise InputError(f"vectors of shapes {question.shape} and {texts.shape} can't be compared: give [d] and [n, d]")
    if not (np.isfinite(question).all() and np.isfinite(texts).all()):
        raise NumericalError("the encoder gives NaN or infinity: check its weights, or use another")
    lengths = np.linalg.norm(texts.astype(np.float64), axis=1) * np.linalg.norm(question.astype(np.float64))
    products = texts.astype(np.float64) @ question.astype(np.float64)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(texts)), where=lengths > 0))


def kept_share(keep: np.ndarray, owner: np.ndarray, count: int, threshold: float) -> np.ndarray:
    """Float64 [count]: share of each sentence's tokens whose probability is above `threshold`: their vote.

    keep: [tokens] probabilities to keep; owner: [tokens] the sentence of each. A sentence without tokens counts as one
    token of probability 0. Source: Provence (arXiv 2501.16214), section 3.
    """
    return _average((_probabilities(keep) > threshold).astype(np.float64), owner, count, float(threshold < 0))


def kept_mean(keep: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Float64 [count]: mean probability of each sentence's tokens; see `kept_share`."""
    return _average(_probabilities(keep).astype(np.float64), owner, count, 0.0)


def _probabilities(keep: np.ndarray) -> np.ndarray:
    if not np.isfinite(keep).all():
        raise NumericalError("the model gives NaN or infinity for a token: check its weights, or use another")
    return keep


def _average(values: np.ndarray, owner: np.ndarray, count: int, empty: float) -> np.ndarray:
    many = np.bincount(owner, minlength=count)
    return np.where(many > 0, np.bincount(owner, values, minlength=count) / np.maximum(many, 1), empty)
