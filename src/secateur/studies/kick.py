"""How far may this model be compressed for what it is used for? Tasks beside perplexity, and a verdict for each.

Jaiswal et al., "Compressing LLMs: The Truth is Rarely Pure and Never Simple", ICLR 2024 (arXiv 2310.01382): LLM-KICK.
Perplexity stays flat where facts are gone, so that each compressed model answers tasks, and *matches* the original on
one where its score is within 5 % of the original's and above chance.

Departures: tasks are the user's (JSONL files or lm-eval's); a prompt is no part of the answer that is searched for an
alias; an empty answer is wrong; magnitudes are cut exactly, where the released code cuts ties too; N:M means that N of
M stay, as in the article; a judge is a local model, a server, or the original's likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt

from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import statistics
from secateur.methods import tasks as asking
from secateur.methods.tasks import Task
from secateur.reports.charts import Line as Curve
from secateur.reports.sheet import Chart, Sheet, Table, percent
from secateur.runs.backends.language import Language
from secateur.runs.compression import CALIBRATED, DENSE, METHODS, QUANTISERS, Config, check_grid, find_beside, make_grid
from secateur.runs.scoring import (
    Held,
    Model,
    check_models,
    check_texts,
    is_served,
    open_judge,
    score_model,
    score_served,
)
from secateur.subjects import Transformer
from secateur.vocabulary import Figure

__all__ = ["STUDY", "Kicked", "frontier", "kick", "matches", "plan"]

STUDY = {
    "title": "what is a compressed model still good for? tasks beside perplexity, and how far each method may go",
    "recipe": "",
    "backend": "secateur.runs.backends.language:Language",
    "sets": "",
    "grid": "tasks methods sparsity patterns bits beside seeds calibration recover",
}

PERPLEXITY = 0.10
"""Rise of the perplexity up to which its column calls a model matching."""


_DEPTH = 3
"""Levels of groups with tables: categories, sub-categories and subjects. Source: LLM-KICK, section 3.3."""

Row = dict[str, Any]
"""Names and figures, as JSON has them."""


def tells(dense: float, chance: float = 0.0) -> bool:
    """Whether a task can tell models apart: its original scores above chance, and more than nothing."""
    return dense > chance


def matches(score: float, dense: float, *, tolerance: float = 0.05, chance: float = 0.0) -> bool:
    """Whether a score is at least (1 - tolerance) of the original's, and above chance, of which there may be none.

    Nothing matches an original that is at chance itself, or at 0; see `tells`.
    """
    return score >= (1 - tolerance) * dense and score > chance


def frontier(verdicts: Sequence[tuple[str, bool | None]]) -> tuple[str, str]:
    """(the last amount that matches with all before it, the first that does not) of amounts by rising compression.

    "" where there is none. A later amount that matches by luck counts for nothing, nor one of which nothing is known.
    """
    last = ""
    for amount, matching in verdicts:
        if matching is None:
            break
        if not matching:
            return last, amount
        last = amount
    return last, ""


def _compression(amount: str) -> float:
    """How much an amount takes away, to order amounts of one method: shares of zeros, or bits that are left."""
    return -float(amount.removesuffix("bit")) if amount.endswith("bit") else float(amount.removesuffix("%"))


@dataclass(frozen=True, eq=False)
class Kicked:
    """All models on all tasks; the first one is the original."""

    tasks: Sequence[Task]
    models: Sequence[tuple[Config, bool, Model]]
    """(what it is, whether it was recovered, what it gave)."""
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> Model:
        """The original."""
        return self.models[0][2]

    def score(self, model: Model, task: Task) -> float:
        """Mean score of a model on a task; NaN where nothing has one."""
        values = list(asking.scores_by_item(model.lines[task.name]).values())
        return mean(values) if values else math.nan

    def verdict(self, model: Model, task: Task) -> bool | None:
        """Whether a model matches the original on a task; None on one that tells nothing."""
        return self._judge(self.score(model, task), task)

    def _judge(self, score: float, task: Task) -> bool | None:
        dense = self.score(self.dense, task)
        if not tells(dense, task.chance) or math.isnan(score):
            return None
        return matches(score, dense, tolerance=self.tolerance, chance=task.chance)

    def keeps_perplexity(self, model: Model) -> bool | None:
        """Whether its perplexity is up by less than `PERPLEXITY`; None where it was not measured."""
        ours, theirs = model.figures.get("perplexity"), self.dense.figures.get("perplexity")
        return None if ours is None or theirs is None else ours.value <= (1 + PERPLEXITY) * theirs.value

    # --------------------------------------------------------------------------------------------------- frontiers

    def runs(self) -> dict[tuple[str, bool], list[tuple[str, list[Model]]]]:
        """(method, recovered) -> (amount, its models over seeds) by rising compression, without patterns and sweeps."""
        found: dict[tuple[str, bool], dict[str, list[Model]]] = {}
        for config, recovered, model in self.models[1:]:
            swept = bool(config.label)  # by its number of windows
            if config.method in METHODS and ":" not in config.amount and not swept:
                found.setdefault((config.method, recovered), {}).setdefault(config.amount, []).append(model)
        ordered = {run: sorted(amounts, key=_compression) for run, amounts in found.items()}
        return {run: [(one, found[run][one]) for one in amounts] for run, amounts in ordered.items()}

    def frontiers(self) -> list[Row]:
        """For each method and task, and for perplexity: how far it may go, and where it first fails."""
        rows = []
        for (method, recovered), amounts in self.runs().items():
            row: dict[str, Any] = {"method": method, "recovered": recovered, "tasks": {}}
            for task in self.tasks:
                verdicts = [(amount, self._mean_verdict(models, task)) for amount, models in amounts]
                last, first = frontier(verdicts)
                row["tasks"][task.name] = {"last": last, "first_failing": first}
            kept = [(amount, all(self.keeps_perplexity(one) is not False for one in models))
                    for amount, models in amounts]  # fmt: skip
            known = any(self.keeps_perplexity(one) is not None for _, models in amounts for one in models)
            last, first = frontier(kept) if known else ("", "")
            rows.append({**row, "perplexity": {"last": last, "first_failing": first} if known else None})
        return rows

    def _mean_verdict(self, models: Sequence[Model], task: Task) -> bool | None:
        """Of the mean over seeds."""
        return self._judge(mean(self.score(one, task) for one in models), task)

    # ----------------------------------------------------------------------------------------------------- answers

    def sheet(self) -> Sheet:
        """Tables of frontiers, scores and comparisons, a chart for each task, and a line for each answer."""
        tables = [self._frontier_table(), self._score_table(), *self._group_tables(), *self._equal_size_table(),
                  *self._calibration_table()]  # fmt: skip
        return Sheet("kick", self._headline(), tables, self._figures(), self._notes(), self._chart(), self._items())

    def _headline(self) -> str:
        gaps = [(row, name, one) for row in self.frontiers() for name, one in row["tasks"].items()
                if row["perplexity"] and one["first_failing"]
                and row["perplexity"]["last"] not in ("", one["last"])]  # fmt: skip
        if gaps:
            row, name, one = gaps[0]
            how = f"{row['method']}{' with recovery' if row['recovered'] else ''}"
            return (
                f"{how}: perplexity says {row['perplexity']['last']} is fine, {name} matches up to "
                f"{one['last'] or 'nothing'}"
            )
        verdicts = [self.verdict(model, task) for _, _, model in self.models[1:] for task in self.tasks]
        known = [one for one in verdicts if one is not None]
        if verdicts and not known:
            return "no model can be compared with the original: the notes say why"
        return f"{sum(known)} of {len(known)} models and tasks match the original"

    def _frontier_table(self) -> Table:
        head = ["Method", *(task.name for task in self.tasks), f"perplexity +{PERPLEXITY:.0%}"]
        rows = [head]
        for row in self.frontiers():
            cells = [one["last"] or ("none" if one["first_failing"] else "–") for one in row["tasks"].values()]
            told = row["perplexity"]["last"] or "none" if row["perplexity"] else "–"
            rows.append([row["method"] + (", recovered" if row["recovered"] else ""), *cells, told])
        words = (
            f"The most that may go so that this and all lesser amounts are within {self.tolerance:.0%} of the "
            "original's score and above chance; of bits the fewest. The gap to the last column is what it hides. A "
            "dash: nothing is known, as where a judge rated nothing."
        )
        return Table("How far each method may go", rows, words)

    def _score_table(self) -> Table:
        rows = [["Model", *(task.name for task in self.tasks), "flipped", "perplexity", "size", "distinct words"]]
        for _, _, model in self.models:
            cells = []
            for task in self.tasks:
                figure = asking.summarise(model.lines[task.name]).score
                mark = "" if model is self.dense else {True: "✓ ", False: "✗ ", None: ""}[self.verdict(model, task)]
                cells.append("no rating" if figure is None else f"{mark}{percent(figure)}")
            perplexity = model.figures.get("perplexity")
            texts = mean(asking.summarise(model.lines[task.name]).distinct for task in self.tasks)
            rows.append([
                model.name, *cells, "–" if model is self.dense else f"{100 * self._share_flips(model):.1f}",
                "–" if perplexity is None else f"{perplexity.value:.4g}",
                f"{model.bytes / 1e6:,.1f} MB" if model.bytes else "–", f"{100 * texts:.0f}",
            ])  # fmt: skip
        words = (
            "Scores in percent with their 95 % intervals over items; ✓ matches, ✗ does not; no mark where the original "
            "is at chance itself, or has no rating. No rating: the judge gave none. Flipped: answers that are "
            "right where the original's is wrong or the other way round, in percent of all."
        )
        return Table("Scores", rows, words)

    def _share_flips(self, model: Model) -> float:
        pairs = [pair for task in self.tasks for pair in self._pairs(model, task)]
        return mean((ours >= 0.5) != (theirs >= 0.5) for ours, theirs in pairs) if pairs else 0.0

    def _pairs(self, model: Model, task: Task, other: Model | None = None) -> list[tuple[float, float]]:
        """(its score, the original's) of the items that both have a score for."""
        ours, theirs = (asking.scores_by_item(one.lines[task.name]) for one in (model, other or self.dense))
        return [(ours[item], theirs[item]) for item in ours if item in theirs]

    def _compare(self, model: Model, task: Task, other: Model | None = None) -> Row:
        """The paired difference on a task, in shares, with its interval, and McNemar's p."""
        pairs = self._pairs(model, task, other)
        if not pairs:
            return {}
        ours, theirs = zip(*pairs, strict=True)
        sure = [[float(value >= 0.5) for value in values] for values in (ours, theirs)]
        return {"difference": asdict(statistics.paired_bootstrap(ours, theirs)), "p": statistics.mcnemar(*sure)}

    def _group_tables(self) -> Iterator[Table]:
        for task in self.tasks:
            names = dict.fromkeys(name for item in task.items for name in asking.list_groups(item.group))
            levels = [[name for name in names if name.count("/") == depth] for depth in range(_DEPTH)]
            for depth, groups in enumerate(levels, 1):
                if 1 < len(groups) <= 12:
                    rows = [["Model", *groups]]
                    for _, _, model in self.models:
                        told = asking.summarise(model.lines[task.name]).groups
                        rows.append([model.name, *(percent(told[one]) if one in told else "–" for one in groups)])
                    yield Table(f"{task.name} by group" + (f", level {depth}" if depth > 1 else ""), rows)

    def _equal_size_table(self) -> Iterator[Table]:
        """Small-dense beside large-sparse: a folder with fewer weights, and ours that has as many left."""
        rows = [["Small model", "Weights", "Ours of that size", "Weights", *(task.name for task in self.tasks)]]
        whole = self.dense.params
        sparse = [model for config, _, model in self.models[1:] if config.method in METHODS and config.sparsity]
        for config, _, model in self.models[1:]:
            if config.method not in METHODS and 0 < model.params < 0.95 * whole and sparse:
                near = min(sparse, key=lambda one: abs(math.log(one.params / model.params)))
                cells = []
                for task in self.tasks:
                    told = self._compare(near, task, model)
                    cells.append(percent(Figure(**told["difference"]), signed=True) if told else "–")
                rows.append([model.name, f"{model.params:,.0f}", near.name, f"{near.params:,.0f}", *cells])
        if len(rows) > 1:
            yield Table("Large and sparse minus small and dense, in points", rows)

    def _calibration_table(self) -> Iterator[Table]:
        swept = [(config, model) for config, recovered, model in self.models[1:] if config.calibrated and not recovered]
        if len({config.samples for config, _ in swept}) > 1:
            rows = [["Model", "Samples", *(task.name for task in self.tasks), "perplexity"]]
            for config, model in sorted(
                swept, key=lambda one: (one[0].method, one[0].amount, one[0].seed, one[0].samples)
            ):
                perplexity = model.figures.get("perplexity")
                scores = [100 * self.score(model, task) for task in self.tasks]
                cells = ["no rating" if math.isnan(one) else f"{one:.1f}" for one in scores]
                told = "–" if perplexity is None else f"{perplexity.value:.4g}"
                rows.append([str(replace(config, label="")), str(config.samples), *cells, told])
            yield Table("Calibration samples", rows)

    def _figures(self) -> Row:
        models = []
        for config, recovered, model in self.models:
            told: dict[str, Any] = {}
            for task in self.tasks:
                summary = asking.summarise(model.lines[task.name])
                told[task.name] = {
                    **asdict(summary), "matching": self.verdict(model, task),
                    **({} if model is self.dense else self._compare(model, task)),
                }  # fmt: skip
            models.append({
                "name": model.name, **asdict(config), "recovered": recovered, "tasks": told, "params": model.params,
                "bytes": model.bytes, "seconds": model.seconds,
                "figures": {name: asdict(one) for name, one in model.figures.items()},
            })  # fmt: skip
        return {"tolerance": self.tolerance, "frontiers": self.frontiers(), "models": models}

    def _notes(self) -> tuple[str, ...]:
        found = [f"{model.name}: {note}" for _, _, model in self.models for note in model.notes]
        for _, _, model in self.models:
            for task in self.tasks:
                summary = asking.summarise(model.lines[task.name])
                if summary.unscored:
                    found.append(f"{model.name}: {summary.unscored} answers of {task.name} got no score from the judge")
                if task.ends and summary.unfinished:
                    found.append(f"{model.name}: {summary.unfinished:.0%} of {task.name} did not end, and are wrong")
        dense = {task: self.score(self.dense, task) for task in self.tasks}
        if unrated := [task.name for task, score in dense.items() if math.isnan(score)]:
            words = "no model can be compared with it there"
            found.append(f"the judge rated no answer of the original on {', '.join(unrated)}: {words}")
        weak = [task.name for task, score in dense.items() if score <= task.chance]
        if weak:
            words = "such a task tells nothing, and has no verdict"
            found.append(f"the original itself is at 0, or at chance, on {', '.join(weak)}: {words}")
        known = {task.name: asking.summarise(self.dense.lines[task.name]).score for task in self.tasks}
        unsure = [
            task.name for task in self.tasks if task.name not in weak
            and (figure := known[task.name]) is not None and figure.low is not None and figure.low <= task.chance
        ]  # fmt: skip
        if unsure:
            found.append(f"the original is not surely above chance on {', '.join(unsure)}: give more items")
        return (*self.notes, *found)

    def _chart(self) -> Chart | None:
        """Score by sparsity, a panel for each task, and the bar of 95 %."""
        runs = {run: amounts for run, amounts in self.runs().items() if run[0] not in QUANTISERS}
        panels: dict[str, list[Curve]] = {}
        for task in self.tasks:
            curves = []
            bar = (1 - self.tolerance) * self.score(self.dense, task)
            for place, ((method, recovered), amounts) in enumerate(runs.items()):
                points = [(0.0, Figure(100 * self.score(self.dense, task)))]
                for amount, models in amounts:
                    values = [100 * self.score(model, task) for model in models]
                    if all(map(math.isfinite, values)):  # a judge may have given no score at all
                        points.append((float(amount.removesuffix("%")), statistics.mean_interval(values)))
                curves.append(Curve(method + (", recovered" if recovered else ""), points, 1 - place / len(runs)))
            if not math.isnan(bar) and any(len(curve.points) > 1 for curve in curves):
                ends = [curves[0].points[0][0], max(curve.points[-1][0] for curve in curves)]
                panels[task.name] = [*curves, Curve("matching", [(x, Figure(100 * bar)) for x in ends], 0.0)]
        if not panels:
            return None
        return Chart("Scores by sparsity", panels, "zeros, %", "score, %", "The last line is the bar of matching.",
                     bounds=(0.0, 100.0))  # fmt: skip

    def _items(self) -> list[Row]:
        return [{"model": model.name, **asdict(line)} for _, _, model in self.models
                for lines in model.lines.values() for line in lines]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class Job:
    """A model to make and to ask."""

    config: Config
    recover: int = 0

    def __str__(self) -> str:
        return f"{self.config}{', recovered' if self.recover else ''}"


def kick(
    subject: Transformer,
    data: Corpus,
    folder: Path,
    progress: Callable[[Sequence[Job]], Iterable[Job]] = iter,
    *,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = ("magnitude", "wanda", "sparsegpt", "rtn", "gptq"),
    sparsity: Sequence[str] = ("10%", "20%", "30%", "40%", "50%", "60%", "70%"),
    patterns: Sequence[str] = ("2:4",),
    bits: Sequence[int] = (8, 4, 3),
    beside: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    samples: Annotated[int, Ge(1)] = 128,
    calibration: Sequence[int] = (),
    recover: Annotated[int, Ge(0)] = 0,
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.05,
    judge: str = "",
    judge_name: str = "",
    passes: Annotated[int, Ge(1)] = 1,
    length: Annotated[int, Ge(2)] = 128,
    batch: Annotated[int, Ge(1)] = 32,
    harness: Sequence[str] = (),
    export: str = "",
) -> Kicked:
    """Compress a model in many ways, let each answer tasks, and say which match the original on which.

    1. The original answers first: its scores fix the bars.
    2. Each method at each amount makes a model: nothing is trained; calibrated ones read windows of `data`.
    3. Each answers all tasks; perplexity and agreement with the original are measured on a twentieth of `data`.
    4. A model matches on a task where its score is at least (1 - tolerance) of the original's and above chance. A
       method's frontier is the largest amount up to which all match; perplexity has its own, at +10 %.
    5. With `recover`, each compressed model is asked again with adapters that have learned from the original.

    Args:
        subject: a causal language model.
        data: general text: to calibrate, recover and measure perplexity on.
        folder: where models' answers go.
        progress: announces the models.
        tasks: JSONL files, see the docs page: questions with answers, choices, texts to sum up, instructions.
        methods: random, magnitude, magnitude-block (one threshold for all linears of a block), magnitude-profile (first
            and last block whole, most from the middle), wanda, sparsegpt, alphapruning (weights to zeros), rtn, gptq
            (fewer bits).
        sparsity: shares of zeros of the pruners.
        patterns: n:m of the pruners: n of m neighbouring weights stay.
        bits: of the quantisers.
        beside: folders of other models, such as quantised or small ones, or servers (http://host/v1#NAME).
        seeds: of calibration: figures are means over them.
        samples: calibration windows.
        calibration: further numbers of windows to compare, at the amounts given.
        recover: steps of LoRA distillation from the original; 0 for none.
        tolerance: how far below the original's a score may lie, as a share of it.
        judge: of tasks whose scorer it is: likelihood (of the original), or a model's folder, Hub id or address.
        judge_name: of the judge, where it is a server's.
        passes: times that each item is asked, where a task samples.
        length: tokens of a window, in calibration, recovery and perplexity.
        batch: prompts at once.
        harness: names of lm-eval tasks, whose figures stand beside.
        export: folder into which the tasks are written for lm-eval; nothing if empty.

    Raises `DataError` for a file that is no task, `InputError` for a method that is none, or no task at all.
    """
    asked = _read_all(tasks, judge)
    grid = _make_grid(methods, sparsity, patterns, bits, seeds, samples, calibration)
    held, judging = Held.of(data, length), open_judge(judge, judge_name, subject)
    if export:
        for task in asked:
            asking.export_task(task, Path(export))
    if harness:
        Language().check_tasks(subject)
    jobs = [(DENSE, 0), *((config, steps) for config in grid for steps in ([0, recover] if recover else [0]))]
    jobs += [(config, 0) for config in find_beside(beside)]
    models = list[tuple[Config, bool, Model]]()
    for job in progress([Job(config, steps) for config, steps in jobs]):
        if is_served(job.config.method):
            model = score_served(job.config.method, asked, folder, passes=passes, judge=judging, label=str(job.config))
        else:
            model = score_model(
                subject, job.config, asked, held, folder, passes=passes, batch=batch, judge=judging,
                recover=job.recover, harness=harness,
            )  # fmt: skip
        models.append((job.config, bool(job.recover), model))
    return Kicked(asked, models, tolerance)


def plan(
    subject: Transformer,
    data: Corpus,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    sparsity: Sequence[str],
    patterns: Sequence[str],
    bits: Sequence[int],
    beside: Sequence[str],
    seeds: Sequence[int],
    samples: int,
    calibration: Sequence[int],
    recover: int,
    judge: str,
    passes: int,
    length: int,
    **others: object,
) -> dict[str, int]:
    """How many models and answers `kick` will make; what it would refuse is refused here."""
    if not subject.causal:
        raise InputError(f"{type(subject.model).__name__} writes no text: study kick asks causal language models")
    asked = _read_all(tasks, judge)
    grid = _make_grid(methods, sparsity, patterns, bits, seeds, samples, calibration)
    check_models(subject, asked, beside)
    check_grid(subject, grid)
    check_texts(subject, Held.of(data, length), grid, recover=recover)
    many = 1 + len(grid) * (2 if recover else 1) + len(find_beside(beside))
    return {"models": many, "answers": many * passes * sum(len(task.items) for task in asked)}


def _read_all(files: Sequence[str], judge: str) -> list[Task]:
    if not files:
        raise InputError("study kick asks tasks: give JSONL files (--tasks facts.jsonl)")
    found = [task for file in files for task in asking.read_tasks(file)]
    asking.check_tasks(found, judge)
    return found


def _make_grid(
    methods: Sequence[str], sparsity: Sequence[str], patterns: Sequence[str], bits: Sequence[int],
    seeds: Sequence[int], samples: int, calibration: Sequence[int],
) -> list[Config]:  # fmt: skip
    prune = [one for one in methods if one not in QUANTISERS]
    if not methods:
        return []
    usual = make_grid(methods, sparsity if prune else (), patterns if prune else (), bits, seeds=seeds, samples=samples)
    swept = [one for one in methods if one in CALIBRATED] if calibration else []
    more = [
        replace(config, label=f"{config}, {number} windows") for number in calibration if number != samples
        for config in (make_grid(swept, sparsity, patterns, bits, seeds=seeds, samples=number) if swept else ())
    ]  # fmt: skip
    return [*usual, *more]
