"""How much of a source can go before a target notices? The winning subset of DP4TL (arXiv 2310.08782).

A sweep over shares, several seeds each, all sharing a seed's votes; then the largest share that loses nothing against
the whole source, within the noise of the seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import InputError
from secateur.files.examples import Examples
from secateur.files.rundir import Run
from secateur.measure.statistics import paired_difference
from secateur.recipes.data import dp4tl as recipe
from secateur.subjects.traced import Traced
from secateur.vocabulary import Budget, Figure

__all__ = ["Point", "largest_lossless", "lossless", "sweep"]

Outcome = Callable[[float, int], Mapping[str, float]]
"""(share of the classes that goes, seed) -> measure -> figure, higher is better; "seconds" and "examples" beside."""


@dataclass(frozen=True, slots=True)
class Point:
    """What came of one share, seed by seed."""

    pruned: float
    """Share of the classes that went."""
    figures: Mapping[str, tuple[float, ...]]
    """Measure -> one figure per seed."""

    def loss(self, whole: Point, measure: str) -> Figure:
        """What the whole source has more than this, paired over seeds."""
        return paired_difference(whole.figures[measure], self.figures[measure])


def sweep(shares: Sequence[float], outcome: Outcome, seeds: Sequence[int] = (0, 1, 2)) -> tuple[Point, ...]:
    """One point for the whole source, which is first, and one for each share that goes, rising; `outcome` runs it.

    Seeds are the outer loop: what an outcome shares between the shares of one seed is asked for together.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares={list(shares)}: give shares of the classes that go, between 0 and 1")
    if len(seeds) < 2:
        raise InputError(f"seeds={list(seeds)}: give at least two, whose spread tells what is noise")
    grid = sorted({0.0, *shares})
    rows = [[outcome(share, seed) for share in grid] for seed in seeds]
    return tuple(
        Point(share, {name: tuple(row[number][name] for row in rows) for name in rows[0][number]})
        for number, share in enumerate(grid)
    )


def largest_lossless(points: Sequence[Point], measure: str, *, tolerance: float = 1.0) -> Point:
    """The point of the largest share up to which no share loses more than `tolerance` standard errors.

    points: as `sweep` gives them. A share is lossless where ``mean_i (whole_i - this_i) <= tolerance s / sqrt(n)``, s
    the deviation of the n paired differences: n seeds of equal figures tolerate nothing. The chain ends at the first
    share that loses: a lucky one behind it does not count. The first point, the whole source, where none is lossless.
    """
    whole, *rest = points
    if whole.pruned:
        raise InputError(f"the first point lacks {100 * whole.pruned:.0f}% of the classes: let it be the whole source")
    winner = whole
    for point in sorted(rest, key=lambda one: one.pruned):
        lost = [a - b for a, b in zip(whole.figures[measure], point.figures[measure], strict=True)]
        if statistics.fmean(lost) > tolerance * statistics.stdev(lost) / math.sqrt(len(lost)):
            break
        winner = point
    return winner


def lossless(
    build: Callable[[int], Traced],
    data: Examples,
    folder: str | Path,
    *,
    target: str,
    shares: Sequence[float] = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
    seeds: Sequence[int] = (0, 1, 2),
    measure: str = "full fine-tuning",
    tolerance: float = 1.0,
    **options: Any,
) -> tuple[Point, tuple[Point, ...]]:
    """(winning point, all points) of `dp4tl`: the sweep of its shares, each seed in a run directory of its own.

    Args:
        build: seed -> the network to pre-train, freshly drawn.
        data: the source.
        folder: of the run directories; the same call again goes on where it stopped.
        target: as `dp4tl` takes it.
        shares: of the classes that go.
        measure: "linear probe" or "full fine-tuning".
        tolerance: in standard errors of the paired difference.
        options: of `dp4tl`.
    """

    def outcome(share: float, seed: int) -> dict[str, float]:
        budget = Budget.parse(f"classes={100 * (1 - share):.6g}%")
        with Run.open(Path(folder, f"seed-{seed}"), {"target": target, "seed": seed, **options}) as run:
            (result,) = recipe.dp4tl(build(seed), data, [budget], run, target=target, seed=seed, **options)
            found: dict[str, float] = run.json(f"transfer-{budget}", dict)
        spent = {} if result.recovery is None else {"seconds": result.recovery.seconds}
        return {**found, **spent, "examples": result.cut.after["examples"]}

    points = sweep(shares, outcome, seeds)
    return largest_lossless(points, measure, tolerance=tolerance), points
