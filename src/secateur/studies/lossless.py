"""How much of a source can go before a target notices? The winning subset of DP4TL (arXiv 2310.08782).

A sweep over shares, several seeds each, all sharing a seed's votes; then the largest share that loses nothing against
the whole source, within the noise of the seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from secateur import recipes
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.measure.statistics import mean_interval, paired_difference, ratio, to_percent
from secateur.recover.training import initialise
from secateur.reports import sheet as sheets
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table
from secateur.runs import keywords
from secateur.runs.backends.network import Network
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Figure

__all__ = ["STUDY", "Lossless", "Point", "Trial", "largest_lossless", "lossless", "plan"]

STUDY = {
    "title": "the largest share of a source's classes that can go before a target loses",
    "recipe": "dp4tl",
    "sets": "seed dry_run scored",
    "grid": "shares seeds measure tolerance controls",
}

CONTROLS = {
    "random": "random classes",
    "reverse": "least votes",
    "scratch": "no pre-training",
}
"""What the votes are compared with -> what it is called."""


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

    def describe(self) -> dict[str, object]:
        """What study.json says of it."""
        means = {name: asdict(mean_interval(row)) for name, row in self.figures.items()}
        return {"pruned": self.pruned, "by_seed": self.figures, "means": means}

    def faster(self, whole: Point) -> str:
        """How many times as fast the pre-training of the whole source this one was, in words; nothing unless timed."""
        if self is whole or "seconds" not in whole.figures or "seconds" not in self.figures:
            return ""
        return f"{ratio(whole.figures['seconds'], self.figures['seconds']).value:.1f}×"


class Trial(NamedTuple):
    """One network: pre-trained on what stays of the source, and carried to the target."""

    seed: int
    pruned: float
    control: str = ""

    def __str__(self) -> str:
        gone = f"{100 * self.pruned:g}% of the classes gone" if self.pruned else "all classes"
        told = {"": gone, "scratch": CONTROLS["scratch"]}.get(self.control, f"{gone}, {self.control} order")
        return f"seed {self.seed}, {told}"


@dataclass(frozen=True, slots=True)
class Lossless:
    """The winning subset, and all that it was found among."""

    best: Point
    """The whole source where nothing can go without loss."""
    points: tuple[Point, ...]
    measure: str
    tolerance: float
    seeds: tuple[int, ...]
    controls: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """Control -> its points, of the same shares without the whole source; scratch has one, from which all has gone."""

    def lead(self, point: Point, control: str, measure: str) -> Figure:
        """What the votes have more than a control at the same share, or at any, paired over seeds."""
        theirs = next(one for one in self.controls[control] if one.pruned in (point.pruned, 1.0))
        return paired_difference(point.figures[measure], theirs.figures[measure])

    def sheet(self) -> Sheet:
        """Table, chart and figures; accuracies in percent, losses in points."""
        whole, best = self.points[0], self.best
        within = f"{self.measure}, within {self.tolerance:g} standard error{'' if self.tolerance == 1 else 's'}"
        headline = f"{100 * best.pruned:.6g}% of the classes can go without loss: {within}"
        if best is whole:
            headline = f"None of the shares that were tried can go without loss: {within}"
        ways = [name for name in whole.figures if name not in ("seconds", "examples")]
        header = ["Classes gone", "Examples", *(f"{way}, %" for way in ways)]
        rows = [[*header, f"Lost, {self.measure}", "Times faster", ""]]
        for point in self.points:
            lost = "" if point is whole else sheets.percent(point.loss(whole, self.measure))
            rows.append([
                f"{100 * point.pruned:.6g}%", f"{mean_interval(point.figures['examples']).value:.0f}",
                *(sheets.percent(mean_interval(point.figures[way])) for way in ways), lost,
                point.faster(whole), "winner" if point is best and point is not whole else "",
            ])  # fmt: skip
        table = Table(
            "Accuracy on the target, by the share of the source's classes that goes", rows,
            f"{sheets.over(self.seeds)}; losses against the whole source in points, "
            "paired over seeds. Times faster: seconds of pre-training, the whole source's over this one's. A share "
            "that does well behind one that loses does not count.",
        )  # fmt: skip
        panels = {"": [_line(way, self.points, way, float(way == self.measure)) for way in ways]}
        if self.controls:
            panels = {way: self._lines(way) for way in ways}
        chart = Chart(
            "Accuracy by the share that goes", panels, "classes gone, %", "accuracy on the target, %",
            "Whiskers are intervals. The dotted line is the largest lossless share.", mark=100 * best.pruned,
            bounds=(0.0, 100.0),
        )  # fmt: skip
        beside = [self._control_table(way) for way in ways] if self.controls else []
        return Sheet("lossless", headline, [table, *beside], self._figures(), chart=chart)

    def _lines(self, way: str) -> list[Line]:
        """The votes, the controls, and level lines for the whole source and for none of it."""
        level = {one.pruned: [replace(one, pruned=point.pruned) for point in self.points]
                 for one in (self.points[0], *self.controls.get("scratch", ()))}  # fmt: skip
        return [
            _line("most votes", self.points, way, 1.0),
            *(_line(CONTROLS[name], (self.points[0], *points), way, 0.5 if name == "random" else 0.2)
              for name, points in self.controls.items() if name != "scratch"),
            *(_line("whole source" if not pruned else CONTROLS["scratch"], points, way, 0.0)
              for pruned, points in level.items()),
        ]  # fmt: skip

    def _control_table(self, way: str) -> Table:
        """Accuracies of the votes and of each control by share, and by how much the votes lead."""
        rows = [["Classes gone", "Most votes", *(CONTROLS[name] for name in self.controls),
                 *(f"Over {CONTROLS[name]}" for name in self.controls)]]  # fmt: skip
        for point in self.points:
            known = {name: next((one for one in points if one.pruned in (point.pruned, 1.0)), None)
                     for name, points in self.controls.items()}  # fmt: skip
            rows.append([
                f"{100 * point.pruned:.6g}%", sheets.percent(mean_interval(point.figures[way])),
                *("" if one is None else sheets.percent(mean_interval(one.figures[way]))
                  for one in known.values()),
                *("" if one is None else sheets.percent(self.lead(point, name, way), signed=True)
                  for name, one in known.items()),
            ])  # fmt: skip
        words = (
            f"{sheets.over(self.seeds)}; leads of the votes in points, paired over seeds: all of a seed have the same "
            "votes, first weights and transfers."
        )
        return Table(f"Beside controls: accuracy on the target, {way}, %", rows, words)

    def _figures(self) -> dict[str, object]:
        whole = self.points[0]
        return {
            "winner": {"pruned": self.best.pruned, "measure": self.measure, "tolerance": self.tolerance},
            "points": [{**point.describe(), "loss": asdict(point.loss(whole, self.measure))} for point in self.points],
            **({"controls": {name: self._control(name) for name in self.controls}} if self.controls else {}),
        }  # fmt: skip

    def _control(self, name: str) -> list[dict[str, object]]:
        """Of each point its figures, and the leads of the votes: of scratch at every share."""
        return [
            {**one.describe(),
             "leads": [{"pruned": point.pruned, **asdict(self.lead(point, name, self.measure))}
                       for point in self.points if one.pruned in (point.pruned, 1.0)]}
            for one in self.controls[name]
        ]  # fmt: skip


def _points(
    grid: Sequence[float], seeds: Sequence[int], found: Mapping[Trial, Mapping[str, float]], control: str = ""
) -> tuple[Point, ...]:
    """What was found of a control, or of the votes, seed by seed, a point for each share."""
    return tuple(
        Point(share, {name: tuple(found[Trial(seed, share, control)][name] for seed in seeds)
                      for name in found[Trial(seeds[0], share, control)]})
        for share in grid
    )  # fmt: skip


def _line(name: str, points: Sequence[Point], way: str, weight: float) -> Line:
    return Line(name, [(100 * one.pruned, to_percent(mean_interval(one.figures[way]))) for one in points], weight)


def _grid(shares: Sequence[float], seeds: Sequence[int]) -> list[float]:
    """Nothing, which is the whole source, and the shares, rising."""
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares={list(shares)}: give shares of the classes that go, between 0 and 1")
    if len(set(seeds)) < 2:
        raise InputError(f"seeds={list(seeds)}: give at least two, whose spread tells what is noise")
    keywords.check_seed(*seeds)
    return sorted({0.0, *shares})


def _shares(
    grid: Sequence[float], controls: Sequence[str], options: Mapping[str, object]
) -> dict[str, Sequence[float]]:
    """Control -> the shares at which it is tried, the votes first, under no name; scratch is the end of all shares."""
    if options.get("scored"):
        raise InputError(f"scored={options['scored']}: a study scores once for each seed, whatever the shares, and "
                         "keeps the votes in its folder: leave scored out")  # fmt: skip
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise InputError(f"controls={list(controls)}: {unknown[0]!r} is none; give some of {', '.join(CONTROLS)}")
    if controls and options.get("order", "votes") != "votes":
        raise InputError(f"controls stand beside order=votes: leave order={options['order']} out")
    some = [share for share in grid if share]
    return {"": grid, **{name: [1.0] if name == "scratch" else some for name in controls}}


def largest_lossless(points: Sequence[Point], measure: str, *, tolerance: float = 1.0) -> Point:
    """The point of the largest share up to which no share loses more than `tolerance` standard errors.

    points: the whole source first. A share is lossless where ``mean_i (whole_i - this_i) <= tolerance s / sqrt(n)``, s
    the deviation of the n paired differences: n seeds of equal figures tolerate nothing. The chain ends at the first
    share that loses: a lucky one behind it does not count. The first point where none is lossless.
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
    controls: Sequence[str] = (),
    **options: object,
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
        controls: what the votes are compared with, paired over seeds: random classes that stay, reverse, those of the
            least votes, at each of the shares; scratch, no pre-training. They take the votes of their seed.
        options: of `dp4tl`.
    """
    build, grid, seeds = _builder(subject, weights), _grid(shares, seeds), tuple(dict.fromkeys(seeds))
    tried, recipe = _shares(grid, controls, options), recipes.find(STUDY["recipe"])

    def outcome(trial: Trial) -> dict[str, float]:
        seed, control, bare = trial.seed, trial.control, trial.control == "scratch"
        how = {**options, **({"epochs": 0.0} if bare else {"order": control} if control else {})}
        first, budget = Path(folder, f"seed-{seed}"), _budget(0.0 if bare else trial.pruned)
        place, votes = (Path(folder, f"seed-{seed}-{control}"), str(first)) if control else (first, "")
        with Run.open(place, {"target": target, "seed": seed, **how}) as run:
            chosen = keywords.check_options(recipe, {**how, "target": target, "seed": seed, "scored": votes})
            (result,) = recipe(build(seed), data, [budget], run, **chosen)
            found: dict[str, float] = run.json(f"transfer-{budget}", dict)
        spent = {} if result.recovery is None else {"seconds": result.recovery.seconds}
        return {**found, **spent, "examples": 0.0 if bare else result.cut.after["examples"]}

    trials = [Trial(seed, share, name) for seed in seeds for name, some in tried.items() for share in some]
    found = {trial: outcome(trial) for trial in progress(trials)}
    by_control = {name: _points(some, seeds, found, name) for name, some in tried.items()}
    points = by_control.pop("")
    best = largest_lossless(points, measure, tolerance=tolerance)
    return Lossless(best, points, measure, tolerance, seeds, by_control)


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
    controls: Sequence[str] = (),
    **options: object,
) -> dict[str, int]:
    """What `lossless` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    grid, seeds = _grid(shares, seeds), tuple(dict.fromkeys(seeds))
    tried = _shares(grid, controls, options)
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance={tolerance}: give standard errors, 0 or more")
    recipe = recipes.find(STUDY["recipe"])
    chosen = keywords.check_options(recipe, {**options, "target": target, "seed": seeds[0]})
    needed = "probe_epochs" if measure == "linear probe" else "tune_epochs"
    if not getattr(chosen["transfers"], needed):
        raise InputError(f"{needed}=0 leaves out the {measure} by which losses are judged: give epochs, or --measure")
    Network().fit_data(data, subject)
    # Without labels nothing trains a surrogate that could be left out here, and what stays is as many classes as ever.
    own = {"surrogate_epochs": 0.0 if data.labels is not None else chosen["surrogate_epochs"], "dry_run": True}
    with tempfile.TemporaryDirectory() as place, Run.open(place, {}) as run:
        budgets = [_budget(share) for share in grid]
        list(recipe(_builder(subject, weights)(seeds[0]), data, budgets, run, **{**chosen, **own}))
    trained = chosen["surrogate"] != "inputs" and chosen["surrogate_epochs"]
    transfers = bool(chosen["transfers"].probe_epochs) + bool(chosen["transfers"].tune_epochs)
    trials = len(seeds) * sum(map(len, tried.values()))
    bare = len(seeds) * ("scratch" in tried)
    counted = {"surrogates": len(seeds) if trained else 0, "pre-trainings": trials - bare,
               "transfers": trials * transfers}  # fmt: skip
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
