"""Where a score breaks down as a model gets smaller, how much of it is lost, and what long answers are worth.

Source: "When Reasoning Meets Compression" (arXiv 2504.02010): collapse points, damage, test-time compute.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.errors import MeasurementError
from secateur.measure.statistics import Values, bootstrap, spearman
from secateur.vocabulary import Figure

__all__ = ["Collapse", "Lengths", "collapse", "compare_damage", "damage", "describe_lengths", "quartiles"]


def damage(score: float, dense: float) -> float:
    """``1 - score / dense``: the share of the original's score that is lost; NaN where the original has none."""
    return 1 - score / dense if dense > 0 else math.nan


def compare_damage(
    knowledge: Values, knowledge_dense: Values, reasoning: Sequence[Values], reasoning_dense: Sequence[Values]
) -> Figure:
    """Damage of knowledge over the mean damage of reasoning tasks, with an interval over resampled items.

    knowledge [n], its original's [n]; reasoning: of each task [m]. Above 1 knowledge suffers more. NaN where reasoning
    loses nothing, or the original has no score; draws without a ratio are left out of the interval.
    """
    draw = np.random.default_rng(0)
    ours, theirs = np.asarray(knowledge, float), np.asarray(knowledge_dense, float)
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(reasoning, reasoning_dense, strict=True)]
    if not len(ours) or not pairs or any(not len(a) for a, _ in pairs):
        raise MeasurementError("damage of knowledge against reasoning needs items of both")

    def ratio(places: Sequence[np.ndarray]) -> float:
        lost = damage(float(ours[places[0]].mean()), float(theirs[places[0]].mean()))
        others = [
            damage(float(a[at].mean()), float(b[at].mean())) for (a, b), at in zip(pairs, places[1:], strict=True)
        ]
        mean = float(np.mean(others))
        return lost / mean if mean > 0 else math.nan

    sizes = [len(ours), *(len(a) for a, _ in pairs)]
    value = ratio([np.arange(n) for n in sizes])
    found = [ratio([draw.integers(0, n, n) for n in sizes]) for _ in range(1000)]
    finite = [one for one in found if math.isfinite(one)]
    if len(finite) < 500:
        return Figure(value, None, None, "", sizes[0])
    low, high = np.quantile(finite, [0.025, 0.975])
    return Figure(value, float(low), float(high), "", sizes[0])


@dataclass(frozen=True, slots=True)
class Collapse:
    """The first amount at which a score has fallen below its bar, with an interval, and the step at which most is lost.

    point: `beyond` where it never falls. step: the amount at the lower end of the largest one-step drop.
    """

    point: Figure
    step: float
    beyond: float

    @property
    def happens(self) -> bool:
        """Whether the score falls below its bar at all."""
        return self.point.value != self.beyond


def collapse(
    amounts: Sequence[float],
    scores: Sequence[Values],
    dense: Values,
    *,
    beyond: float,
    share: float = 0.5,
    chance: float = 0.0,
) -> Collapse:
    """Where scores of items collapse: the first amount whose mean is below ``chance + share (dense - chance)``.

    amounts: by rising compression. scores: for each amount those of the items [n], in the order of `dense` [n]. beyond:
    what stands for "nowhere". The interval is over resampled items, the same ones at all amounts. Source: the rule
    "less than half of the original's" for arXiv 2504.02010; what guessing gives is taken off, which is a departure.
    """
    if not amounts or len(amounts) != len(scores):
        raise MeasurementError(f"{len(amounts)} amounts and {len(scores)} rows of scores: give as many, and some")

    def first(whole: np.ndarray, *rows: np.ndarray) -> float:
        bar = chance + share * max(0.0, float(whole.mean()) - chance)
        return next((at for at, row in zip(amounts, rows, strict=True) if row.mean() < bar), beyond)

    point = bootstrap(first, dense, *scores)
    means = [float(np.mean(dense)), *(float(np.mean(row)) for row in scores)]
    drops = [before - after for before, after in itertools.pairwise(means)]
    return Collapse(point, float(amounts[int(np.argmax(drops))]), beyond)


# ------------------------------------------------------------------------------------------------------------- lengths


@dataclass(frozen=True, slots=True)
class Lengths:
    """What long answers are worth: score by quartile of length, shortest first; rank correlation of both."""

    quartiles: tuple[float, ...]
    correlation: Figure | None


def quartiles(lengths: Values, scores: Values) -> tuple[float, ...]:
    """Mean score of the shortest quarter of answers, the next ones, and the longest; fewer parts of fewer answers.

    Answers are laid in order of their length, those of equal length as they come, and cut into parts that differ by one
    answer at most.
    """
    order = np.argsort(np.asarray(lengths, float), kind="stable")
    parts = np.array_split(np.asarray(scores, float)[order], min(4, max(1, len(order))))
    return tuple(float(part.mean()) for part in parts if len(part))


def describe_lengths(lengths: Values, scores: Values) -> Lengths:
    """`quartiles`, and Spearman's correlation of length with score; None where either is the same of all answers."""
    try:
        correlation = spearman(lengths, scores)
    except MeasurementError:
        correlation = None
    return Lengths(quartiles(lengths, scores), correlation)
