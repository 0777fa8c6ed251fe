"""Relevance: how much a text has to do with a question. Higher means keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.errors import InputError, MissingExtraError, NumericalError

__all__ = ["bm25", "cosine"]


def bm25(question: Sequence[str], texts: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Float64 [texts]: sum over the question's terms t of idf(t) f (k1 + 1) / (f + k1 (1 - b + b |x| / mean |x|)).

    f: how often t stands in the text x; idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)); n_t of N texts hold t.

    question, texts: terms, as they are to be compared; a term asked twice counts twice.

    Raises `MissingExtraError` without bm25s. Source: Robertson and Zaragoza, The Probabilistic Relevance Framework:
    BM25 and Beyond (2009), with Lucene's idf.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("ranking by BM25 needs bm25s: pip install 'secateur[context]'") from error
    known = set[str]().union(*texts)
    asked = [term for term in question if term in known]
    if not asked:
        return np.zeros(len(texts))
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index([list(text) for text in texts], show_progress=False)
    # bm25s leaves out the factor k1 + 1, which is the same for all.
    return (k1 + 1) * np.asarray(index.get_scores(asked), dtype=np.float64)


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
