"""Relevance: how relevant a text is to a question. Higher means keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from secateur.errors import InputError, MissingExtraError, NumericalError

__all__ = ["bm25", "cosine", "kept_mean", "kept_share", "lexical", "reciprocal_ranks"]


def bm25(
    question: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    k1: float = 1.5,
    b: float = 0.75,
    held: Mapping[str, int] | None = None,
    total: int = 0,
) -> np.ndarray:
    """Float64 [texts]: sum over the question's terms t of idf(t) f (k1 + 1) / (f + k1 (1 - b + b |x| / mean |x|)).

    f: how often t stands in the text x; idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)); n_t of N texts hold t.

    question, texts: terms, as they are to be compared; a term asked twice counts twice. held, total: n_t and N of a
    corpus, which count beside the texts: of a few texts all of which hold a word nothing is known of how rare it is.
    `lexical`: many questions of many texts.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), with Lucene's idf.
    """
    scores = np.zeros(len(texts))
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    if not lengths.any():
        return scores
    spread = k1 * (1 - b + b * lengths / lengths.mean())
    counts, known = [Counter(text) for text in texts], held or {}
    for term, times in Counter(question).items():
        f = np.array([count[term] for count in counts], dtype=np.float64)
        n, of = float(np.count_nonzero(f)) + known.get(term, 0), len(texts) + max(total, known.get(term, 0))
        scores += times * math.log1p((of - n + 0.5) / (n + 0.5)) * f * (k1 + 1) / (f + spread)
    return scores


def reciprocal_ranks(rankings: Sequence[np.ndarray], weights: Sequence[float] = (), *, k: float = 60.0) -> np.ndarray:
    """Float64 [texts]: sum over rankings i of w_i / (k + r_i), brought to 1 for what is first in all.

    r_i: the rank of a text in ranking i, 1 for the highest score; equal scores share the mean of their ranks, and a
    score that is NaN ranks behind all. Scales of scores do not matter.

    rankings: scores [texts] each, higher is better. weights: one for each; 1 if not given.

    Raises `InputError` for rankings of different lengths. Source: Cormack, Clarke and Buettcher, Reciprocal rank fusion
    outperforms Condorcet and individual rank learning methods (2009).
    """
    if len({len(ranking) for ranking in rankings}) > 1:
        raise InputError(f"rankings of {', '.join(str(len(one)) for one in rankings)} texts: give each a score for all")
    shares = list(weights) or [1.0] * len(rankings)
    parts = [share * (k + 1) / (k + _ranks(one)) for share, one in zip(shares, rankings, strict=True)]
    return np.asarray(np.sum(parts, axis=0) / sum(shares))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """[texts]: 1 for the highest; equals share their mean rank."""
    column = np.where(np.isnan(scores), -np.inf, np.asarray(scores, dtype=np.float64))
    _, place, many = np.unique(-column, return_inverse=True, return_counts=True)
    last = np.cumsum(many)
    return np.asarray((last - (many - 1) / 2)[place])


def lexical(
    texts: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75
) -> Callable[[Sequence[str]], np.ndarray]:
    """`bm25` of texts, for any number of questions: a question's terms -> float64 [texts].

    Raises `MissingExtraError` without bm25s, which keeps an index of them.
    """
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
