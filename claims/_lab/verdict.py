"""Verdicts from intervals: whether a difference lies on the claimed side, on the other, or on both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from scipy import stats

from secateur.measure import statistics
from secateur.vocabulary import Figure

__all__ = ["Better", "Verdict", "compare", "judge", "welch"]

Better = Literal["higher", "lower"]
Verdict = Literal["holds", "refuted", "undecided", "withdrawn"]


def judge(difference: Figure, better: Better, margin: float = 0.0) -> Verdict:
    """The verdict on "ours is better than the baseline", or "no worse than it by more than `margin`".

    difference: ours minus the baseline, with its 95 % interval. margin: how much worse ours may be; negative where it
    has to be better by that much. With a margin of 0 the whole interval has to lie beyond 0: a tie does not hold.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    low, high = difference.low, difference.high
    if better == "lower":
        low, high = -high, -low
    if low > -margin or (low == -margin and margin != 0):
        return "holds"
    return "refuted" if high < -margin else "undecided"


def compare(ours: Sequence[float], baseline: Sequence[float], *, unit: str = "") -> Figure:
    """Ours minus the baseline, paired by seed, with Student's 95 % interval; none for a single seed."""
    return replace(statistics.paired_difference(list(ours), list(baseline)), unit=unit)


def welch(ours: Figure, baseline: Figure) -> Figure:
    """Ours minus the baseline where only each arm's mean and interval are known: unpaired, by Welch's t interval.

    The standard error of an arm is read back from its Student interval: half its width over t(0.975, n - 1). The
    degrees of freedom are Welch and Satterthwaite's. `samples` is that of the smaller arm.
    """
    value, samples = ours.value - baseline.value, min(ours.samples, baseline.samples)
    variances = [_variance(arm) for arm in (ours, baseline)]
    if variances[0] is None or variances[1] is None:
        return Figure(value, None, None, ours.unit, samples)
    total = variances[0] + variances[1]
    if total == 0.0:
        return Figure(value, value, value, ours.unit, samples)
    terms = [v**2 / (arm.samples - 1) for v, arm in zip(variances, (ours, baseline), strict=True) if v]
    half = float(stats.t.ppf(0.975, total**2 / sum(terms))) * math.sqrt(total)
    return Figure(value, value - half, value + half, ours.unit, samples)


def _variance(arm: Figure) -> float | None:
    """Squared standard error of a mean, from its interval."""
    if arm.low is None or arm.high is None or arm.samples < 2:
        return None
    return float(((arm.high - arm.low) / 2 / stats.t.ppf(0.975, arm.samples - 1)) ** 2)
