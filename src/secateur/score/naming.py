"""Similarity of names by their words, rare words counting more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

__all__ = ["tfidf"]


def tfidf(questions: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Float64 [questions, texts]: the cosine of x_t = f_t idf(t), idf(t) = 1 + ln((1 + N) / (1 + n_t)).

    f_t: how often the term t stands in a text; n_t of the N texts hold t. Terms of a question that no text holds count
    into its length alone, with n_t = 0. 0 for what has no terms.

    questions, texts: terms of each, as they are to be compared.

    Source: Salton and Buckley, Term-weighting approaches in automatic text retrieval (1988); smoothed as in
    scikit-learn's TfidfVectorizer.
    """
    places: dict[str, int] = {}
    for text in (*texts, *questions):
        for term in text:
            places.setdefault(term, len(places))
    counted = _counts(texts, places)
    idf = 1.0 + np.log((1.0 + len(texts)) / (1.0 + np.asarray((counted > 0).sum(0), dtype=np.float64).ravel()))
    return np.asarray((_unit(_counts(questions, places), idf) @ _unit(counted, idf).T).todense())


def _counts(texts: Sequence[Sequence[str]], places: dict[str, int]) -> sparse.csr_matrix:
    rows = [number for number, text in enumerate(texts) for _ in text]
    columns = [places[term] for text in texts for term in text]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(places)))


def _unit(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """Rows weighted and brought to length 1."""
    weighted = counts.multiply(idf[None, :]).tocsr()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1), dtype=np.float64)).ravel()
    return sparse.diags(np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)) @ weighted
