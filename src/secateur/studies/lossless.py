"""How much of a source can go before a target notices? The winning subset of DP4TL (arXiv 2310.08782).

A sweep over shares, several seeds each, all sharing a seed's votes; then the largest share that loses nothing against
the whole source, within the noise of the seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from secateur.errors import InputError
from secateur.files.examples import Examples
from secateur.files.rundir import Run
from secateur.measure import sheet as sheets
from secateur.measure.charts import Line
from secateur.measure.sheet import Chart, Sheet, Table
from secateur.measure.statistics import mean_interval, paired_difference, ratio
from secateur.recipes.data import dp4tl as recipe
from secateur.recipes.vision.rethinking_pruning_value import in_points
from secateur.recover import initialise
from secateur.running import keywords, network
from secateur.subjects.traced import Traced
from secateur.vocabulary import Budget, Figure

__all__ = ["STUDY", "Lossless", "Point", "Trial", "largest_lossless", "lossless", "plan", "sweep"]

STUDY = {
    "title": "the largest share of a source's classes that can go before a target loses",
    "recipe": "dp4tl",
    "sets": "seed dry_run",
    "grid": "shares seeds measure tolerance",
}

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

    def faster(self, whole: Point) -> str:
        """How many times as fast the pre-training of the whole source this one was, in words; nothing unless timed."""
        if self is whole or "seconds" not in whole.figures or "seconds" not in self.figures:
            return ""
        return f"{ratio(whole.figures['seconds'], self.figures['seconds']).value:.1f}×"


class Trial(NamedTuple):
    """One network: pre-trained on what stays of the source, and carried to the target."""

    seed: int
    pruned: float

    def __str__(self) -> str:
        return f"seed {self.seed}, " + (f"{100 * self.pruned:g}% of the classes gone" if self.pruned else "all classes")


@dataclass(frozen=True, slots=True)
class Lossless:
    """The winning subset, and all that it was found among."""

    best: Point
    """The whole source where nothing can go without loss."""
    points: tuple[Point, ...]
    measure: str
    tolerance: float
    seeds: tuple[int, ...]

    def sheet(self) -> Sheet:
        """Table, chart and figures; accuracies in percent, losses in points."""
        whole, best = self.points[0], self.best
        within = f"{self.measure}, within {self.tolerance:g} standard error{'' if self.tolerance == 1 else 's'}"
        headline = f"{100 * best.pruned:.6g}% of the classes can go without loss: {within}"
        if best is whole:
            headline = f"None of the shares that were tried can go without loss: {within}"
        ways = [name for name in whole.figures if name not in ("seconds", "examples")]
        rows = [
            ["Classes gone", "Examples", *(f"{way}, %" for way in ways), f"Lost, {self.measure}", "Times faster", ""]
        ]
        for point in self.points:
            lost = "" if point is whole else sheets.points(in_points(point.loss(whole, self.measure)))
            rows.append([
                f"{100 * point.pruned:.6g}%", f"{mean_interval(point.figures['examples']).value:.0f}",
                *(sheets.points(in_points(mean_interval(point.figures[way]))) for way in ways), lost,
                point.faster(whole), "winner" if point is best and point is not whole else "",
            ])  # fmt: skip
        table = Table(
            "Accuracy on the target, by the share of the source's classes that goes", rows,
            f"{sheets.over(self.seeds)}; losses against the whole source in points, "
            "paired over seeds. Times faster: seconds of pre-training, the whole source's over this one's. A share "
            "that does well behind one that loses does not count.",
        )  # fmt: skip
        lines = [
            Line(way, [(100 * one.pruned, in_points(mean_interval(one.figures[way]))) for one in self.points],
                 float(way == self.measure))
            for way in ways
        ]  # fmt: skip
        chart = Chart(
            "Accuracy by the share that goes", {"": lines}, "classes gone, %", "accuracy on the target, %",
            "Whiskers are intervals. The dotted line is the largest lossless share.", mark=100 * best.pruned,
            bounds=(0.0, 100.0),
        )  # fmt: skip
        return Sheet("lossless", headline, [table], self._figures(), chart=chart)

    def _figures(self) -> dict[str, Any]:
        whole = self.points[0]
        return {
            "winner": {"pruned": self.best.pruned, "measure": self.measure, "tolerance": self.tolerance},
            "points": [
                {"pruned": point.pruned, "by_seed": point.figures,
                 "means": {name: asdict(mean_interval(row)) for name, row in point.figures.items()},
                 "loss": asdict(point.loss(whole, self.measure))}
                for point in self.points
            ],
        }  # fmt: skip


def sweep(
    shares: Sequence[float],
    outcome: Outcome,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
) -> tuple[Point, ...]:
    """One point for the whole source, which is first, and one for each share that goes, rising; `outcome` runs it.

    Seeds are the outer loop: what an outcome shares between the shares of one seed is asked for together. progress:
    wraps the trials, such as rich.progress.track.
    """
    grid, seeds = _grid(shares, seeds), tuple(dict.fromkeys(seeds))
    trials = [Trial(seed, share) for seed in seeds for share in grid]
    found = {trial: outcome(trial.pruned, trial.seed) for trial in progress(trials)}
    return tuple(
        Point(share, {name: tuple(found[Trial(seed, share)][name] for seed in seeds)
                      for name in found[Trial(seeds[0], share)]})
        for share in grid
    )  # fmt: skip


def _grid(shares: Sequence[float], seeds: Sequence[int]) -> list[float]:
    """Nothing, which is the whole source, and the shares, rising."""
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares={list(shares)}: give shares of the classes that go, between 0 and 1")
    if len(set(seeds)) < 2:
        raise InputError(f"seeds={list(seeds)}: give at least two, whose spread tells what is noise")
    return sorted({0.0, *shares})


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
    subject: Traced | Callable[[int], Traced],
    data: Examples,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    target: str,
    shares: Sequence[float] = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
    seeds: Sequence[int] = (0, 1, 2),
    measure: Literal["linear probe", "full fine-tuning"] = "full fine-tuning",
    tolerance: float = 1.0,
    weights: Literal["new", "given"] = "new",
    **options: Any,
) -> Lossless:
    """The sweep of `dp4tl` over shares, each seed in a run directory of its own, and the largest that loses nothing.

    Args:
        subject: the network to pre-train; or seed -> the network.
        data: the source.
        folder: of the run directories; the same call again goes on where it stopped.
        progress: wraps the trials, such as rich.progress.track.
        target: examples of the target task, as `data` is given.
        shares: of the classes that go, between 0 and 1; the whole source is always tried beside them.
        seeds: two or more, whose spread tells what is noise.
        measure: by which a loss is judged: "full fine-tuning" or "linear probe".
        tolerance: in standard errors of the paired difference.
        weights: new ones, drawn for each seed; or given, those that the network comes with. What is seed -> network
            gives its own.
        options: of `dp4tl`.
    """
    build = _builder(subject, weights)

    def outcome(share: float, seed: int) -> dict[str, float]:
        budget = _budget(share)
        with Run.open(Path(folder, f"seed-{seed}"), {"target": target, "seed": seed, **options}) as run:
            (result,) = recipe.dp4tl(build(seed), data, [budget], run, target=target, seed=seed, **options)
            found: dict[str, float] = run.json(f"transfer-{budget}", dict)
        spent = {} if result.recovery is None else {"seconds": result.recovery.seconds}
        return {**found, **spent, "examples": result.cut.after["examples"]}

    points = sweep(shares, outcome, seeds, progress)
    return Lossless(
        largest_lossless(points, measure, tolerance=tolerance), points, measure, tolerance, tuple(dict.fromkeys(seeds))
    )


def plan(
    subject: Traced,
    data: Examples,
    *,
    target: str,
    shares: Sequence[float],
    seeds: Sequence[int],
    measure: str,
    tolerance: float,
    weights: str,
    **options: Any,
) -> dict[str, int]:
    """What `lossless` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    grid, seeds = _grid(shares, seeds), tuple(dict.fromkeys(seeds))
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance={tolerance}: give standard errors, 0 or more")
    found = keywords.checked(recipe.dp4tl, {**options, "target": target, "seed": seeds[0]})
    needed = "probe_epochs" if measure == "linear probe" else "tune_epochs"
    if not found[needed]:
        raise InputError(f"{needed}=0 leaves out the {measure} by which losses are judged: give epochs, or --measure")
    network.fitted(data, subject)
    # Without labels nothing trains a surrogate that could be left out here, and what stays is as many classes as ever.
    own = {"surrogate_epochs": 0.0 if data.labels is not None else found["surrogate_epochs"], "dry_run": True}
    with tempfile.TemporaryDirectory() as place, Run.open(place, {}) as run:
        list(recipe.dp4tl(_builder(subject, weights)(seeds[0]), data, [_budget(share) for share in grid], run,
                          **{**found, **own}))  # fmt: skip
    trained = found["surrogate"] != "inputs" and found["surrogate_epochs"]
    transfers = sum(bool(found[name]) for name in ("probe_epochs", "tune_epochs"))
    trials = len(grid) * len(seeds)
    counted = {"surrogates": len(seeds) if trained else 0, "pre-trainings": trials, "transfers": trials * transfers}
    return {name: count for name, count in counted.items() if count}


def _builder(subject: Traced | Callable[[int], Traced], weights: str) -> Callable[[int], Traced]:
    if not isinstance(subject, Traced):
        return subject
    whole = subject
    if weights == "given":
        return lambda seed: whole.copy()
    return lambda seed: Traced(initialise.fresh(whole.model, seed=seed, linear=None)[0], whole.inputs)


def _budget(share: float) -> Budget:
    """Of the classes that stay where a share of them goes."""
    return Budget.parse(f"classes={100 * (1 - share):.6g}%")
