"""Quality of rankings and of kept sentences: nDCG, reciprocal rank, precision, recall and F."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from secateur.errors import InputError

__all__ = ["Kept", "ndcg", "precision_recall", "reciprocal_rank"]


def ndcg(relevance: Sequence[float], scores: Sequence[float], k: int = 10) -> float:
    """nDCG@k: ``sum_{i <= k} (2^rel_i - 1) / log2(i + 1)`` in the order of the scores, over that of the best order.

    relevance, scores: [texts]. Equal scores are ranked in the worst order, so that a model which says nothing gains
    nothing. 1 where no text is relevant. Source: Burges et al., Learning to rank using gradient descent (2005).
    """
    worth, order = _rank(relevance, scores)
    gains, discount = 2.0**worth - 1.0, 1.0 / np.log2(np.arange(2, len(worth) + 2))
    best = float((np.sort(gains)[::-1][:k] * discount[:k]).sum())
    return float((gains[order][:k] * discount[:k]).sum()) / best if best else 1.0


def reciprocal_rank(relevance: Sequence[float], scores: Sequence[float], k: int = 10) -> float:
    """1 / the rank of the first relevant text; 0 where it is none of the first k. Equal scores: the worst order."""
    worth, order = _rank(relevance, scores)
    first = np.flatnonzero(worth[order][:k] > 0)
    return 1.0 / (int(first[0]) + 1) if len(first) else 0.0


def _rank(relevance: Sequence[float], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    worth, given = np.asarray(relevance, float), np.asarray(scores, float)
    if worth.shape != given.shape or worth.ndim != 1:
        raise InputError(f"relevance of shape {worth.shape}, scores of {given.shape}: give one of each per text")
    return worth, np.lexsort((worth, -given))


class Kept(NamedTuple):
    """Of what was kept the share that was wanted, and of what was wanted the share that was kept."""

    precision: float
    recall: float

    def f(self, beta: float = 1.0) -> float:
        """``(1 + b^2) P R / (b^2 P + R)``; 0 where both are."""
        below = beta**2 * self.precision + self.recall
        return (1 + beta**2) * self.precision * self.recall / below if below else 0.0


def precision_recall(chosen: Collection[int], wanted: Collection[int]) -> Kept:
    """Precision and recall of what was kept. Nothing kept where nothing was wanted is perfect."""
    both = len(set(chosen) & set(wanted))
    return Kept(both / len(set(chosen)) if chosen else float(not wanted), both / len(set(wanted)) if wanted else 1.0)
