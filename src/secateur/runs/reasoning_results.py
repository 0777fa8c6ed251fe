"""What models answered to graded tasks, in tables and drawings: collapse, damage, cost, length; `study reasoning`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from secateur.measure import answers, statistics
from secateur.measure.collapse import Collapse, collapse, compare_damage, damage, describe_lengths
from secateur.methods import tasks as asking
from secateur.methods.tasks import Line, Task
from secateur.reports.charts import Dots
from secateur.reports.charts import Line as Curve
from secateur.reports.sheet import Chart, Heat, Scatter, Sheet, Table, percent
from secateur.runs.compression import METHODS, QUANTISERS, Config
from secateur.runs.diagnosing import Diagnosis
from secateur.runs.scoring import Model
from secateur.vocabulary import Figure

__all__ = ["Results"]

LEVELS = 12
"""Groups of a task that get collapse points of their own, at most."""
MARGIN = 0.5
"""Share of the original's score, above chance, below which a task has collapsed."""

Row = dict[str, Any]
"""Names and figures, as JSON has them."""
Run = tuple[str, str]
"""A method, and its variant."""


@dataclass(frozen=True, eq=False)
class Results:
    """All models on all tasks; the first one is the original."""

    tasks: Sequence[Task]
    models: Sequence[tuple[Config, Model]]
    diagnosis: Diagnosis | None = None
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> Model:
        """The original."""
        return self.models[0][1]

    def score(self, model: Model, task: Task) -> float:
        """Mean score of a model on a task; NaN where nothing has one."""
        values = list(asking.scores_by_item(model.lines[task.name]).values())
        return mean(values) if values else math.nan

    def overlap(self, model: Model, task: Task) -> Figure:
        """F1 of the words of answers and right ones; of an answer that counts as unfinished 0."""
        right = {item.id: item.answers for item in task.items}
        by_item: dict[str, list[float]] = {}
        for line in model.lines[task.name]:
            cut = task.ends and not line.finished
            same = answers.same_answer(line.answer, right[line.item])  # a number in other digits has no word in common
            overlap = 0.0 if cut else max(same, answers.token_f1(line.answer, right[line.item]))
            by_item.setdefault(line.item, []).append(overlap)
        return statistics.mean_interval([mean(values) for values in by_item.values()])

    # --------------------------------------------------------------------------------------------- collapse, damage

    def runs(self) -> dict[Run, list[tuple[str, list[Model]]]]:
        """(method, variant) -> (amount, its models over seeds), by rising compression."""
        found: dict[Run, dict[str, list[Model]]] = {}
        for config, model in self.models[1:]:
            if config.method in METHODS:
                found.setdefault((config.method, config.variant), {}).setdefault(config.amount, []).append(model)
        return {
            run: [(one, amounts[one]) for one in sorted(amounts, key=_compression)] for run, amounts in found.items()
        }

    def collapses(self) -> list[tuple[Run, str, str, Collapse]]:
        """(run, task, group or nothing, where it collapses)."""
        return [
            (run, task.name, group, self._collapse(amounts, task, group))
            for run, amounts in self.runs().items()
            for task in self.tasks
            for group in ("", *_groups(task))
        ]

    def _collapse(self, amounts: Sequence[tuple[str, list[Model]]], task: Task, group: str) -> Collapse:
        whole = self._by_item(self.dense, task, group)
        rows = []
        for _, models in amounts:
            seeds = [self._by_item(model, task, group) for model in models]
            rows.append([mean(one[item] for one in seeds) for item in whole])
        beyond = 0.0 if amounts[0][0].endswith("bit") else 100.0
        steps = [_compression(amount) for amount, _ in amounts]
        return collapse(steps, rows, list(whole.values()), beyond=beyond, share=MARGIN, chance=task.chance_of(group))

    @staticmethod
    def _by_item(model: Model, task: Task, group: str = "") -> dict[str, float]:
        """Item -> its score; 0 where it got none."""
        lines = [line for line in model.lines[task.name] if not group or line.group == group]
        return {line.item: 0.0 for line in lines} | asking.scores_by_item(lines)

    def damages(self, model: Model) -> Row:
        """Task -> the share of the original's score that is lost, and knowledge's over that of reasoning."""
        told: Row = {task.name: damage(self.score(model, task), self.score(self.dense, task)) for task in self.tasks}
        known, thought = ([task for task in self.tasks if task.role == role] for role in ("knowledge", "reasoning"))
        if known and thought:
            ours, theirs = (
                [value for task in known for value in self._by_item(one, task).values()] for one in (model, self.dense)
            )
            told["ratio"] = compare_damage(
                ours,
                theirs,
                *([list(self._by_item(one, task).values()) for task in thought] for one in (model, self.dense)),
            )
        return told

    # ------------------------------------------------------------------------------------------------------- answers

    def sheet(self) -> Sheet:
        """Tables and drawings, a line for each answer, and protect.json of a diagnosis."""
        tables = [
            self._collapse_table(),
            self._score_table(),
            *self._damage_table(),
            self._cost_table(),
            *self._length_tables(),
            *self._variant_table(),
        ]
        drawings: list[Scatter | Heat] = [self._pareto()]
        files, figures = {}, self._figures()
        if self.diagnosis is not None:
            tables += self.diagnosis.tables()
            drawings += self.diagnosis.drawings()
            files["protect.json"] = self.diagnosis.protect_json()
            figures["diagnosis"] = self.diagnosis.figures()
        return Sheet(
            "reasoning", self._headline(), tables, figures, self._notes(), self._chart(), self._items(), drawings, files
        )

    def _headline(self) -> str:
        roles = {task.name: task.role for task in self.tasks}
        for run in self.runs():
            points = [(name, one) for that, name, group, one in self.collapses() if that == run and not group]
            falls = [(name, one) for name, one in points if one.happens]
            if len(points) > 1 and falls:
                first = min(falls, key=lambda pair: pair[1].point.value)
                last = max(points, key=lambda pair: pair[1].point.value)
                kind = f" ({roles[first[0]]})" if roles[first[0]] else ""
                if first[1].point.value < last[1].point.value:
                    return (
                        f"{_name(run)}: {first[0]}{kind} collapses at {_tell(first[1], run)}, {last[0]} "
                        f"{'at ' if last[1].happens else ''}{_tell(last[1], run)}"
                    )
        lost = [(config, self.damages(model)) for config, model in self.models[1:]]
        known = [
            (config, name, value)
            for config, told in lost
            for name, value in told.items()
            if isinstance(value, float) and not math.isnan(value)
        ]
        most = max(known, key=lambda one: one[2], default=None)
        if most is None:
            return f"the original on {len(self.tasks)} tasks"
        return f"{most[0]} loses {100 * most[2]:.0f} % of the original's score on {most[1]}"

    def _collapse_table(self) -> Table:
        names = [(task.name, group) for task in self.tasks for group in ("", *_groups(task))]
        found = {(run, name, group): one for run, name, group, one in self.collapses()}
        rows = [["Method", *(f"{name}, {group}" if group else name for name, group in names)]]
        rows += [[_name(run), *(_tell(found[run, *one], run, interval=True) for one in names)] for run in self.runs()]
        words = (
            f"The first amount (zeros in percent, or bits) with less than {MARGIN:.0%} of the original's score above "
            "chance, with its 95 % interval over resampled items."
        )
        return Table("Collapse points", rows, words)

    def _score_table(self) -> Table:
        known = [task for task in self.tasks if task.role == "knowledge"]
        rows = [["Model", *(task.name for task in self.tasks), *(f"{task.name}, F1" for task in known)]]
        for _, model in self.models:
            cells = []
            for task in self.tasks:
                figure = asking.summarise(model.lines[task.name]).score
                cells.append("–" if figure is None else percent(figure))
            rows.append([model.name, *cells, *(percent(self.overlap(model, task)) for task in known)])
        return Table("Scores", rows, "Percent of items, passes averaged, with 95 % intervals over items.")

    def _damage_table(self) -> Iterator[Table]:
        rows = [["Model", *(task.name for task in self.tasks), "knowledge / reasoning", "weights left"]]
        for _, model in self.models[1:]:
            told = self.damages(model)
            ratio = told.get("ratio")
            cells = ["–" if math.isnan(told[task.name]) else f"{100 * told[task.name]:.1f}" for task in self.tasks]
            left = f"{100 * model.params / self.dense.params:.0f} %" if model.params else "–"
            rows.append([model.name, *cells, _ratio(ratio), left])
        if len(rows) > 1:
            yield Table("Damage", rows, "Percent of the original's score that is lost; above 1 knowledge suffers more.")

    def _cost(self, model: Model) -> Row:
        """tokens: of an answer, mean; seconds: of one; work: bytes of the weights times tokens of an answer."""
        lines = [line for own in model.lines.values() for line in own]
        tokens = mean(line.tokens for line in lines)
        return {
            "tokens": tokens,
            "median": median(line.tokens for line in lines),
            "seconds": model.seconds / len(lines),
            "work": model.bytes * tokens,
            "unfinished": mean(not line.finished for line in lines),
            "bits": 8 * model.bytes / self.dense.params if self.dense.params else 0.0,
            "score": mean(self.score(model, task) for task in self.tasks),
        }

    def _cost_table(self) -> Table:
        rows = [
            [
                "Model",
                "Mean score",
                "tokens",
                "median",
                "unfinished",
                "seconds",
                "× original",
                "size",
                "bits",
                "bytes × tokens",
            ]
        ]
        base = self._cost(self.dense)
        for _, model in self.models:
            one = self._cost(model)
            slower = f"{one['seconds'] / base['seconds']:.2f}" if base["seconds"] else "–"
            stored = [f"{model.bytes / 1e6:,.2f} MB", f"{one['bits']:.2f}", f"{one['work'] / base['work']:.2f}"]
            rows.append(
                [
                    model.name,
                    f"{100 * one['score']:.1f}" if math.isfinite(one["score"]) else "–",
                    f"{one['tokens']:.0f}",
                    f"{one['median']:.0f}",
                    f"{100 * one['unfinished']:.1f} %",
                    f"{one['seconds']:.3g}",
                    slower,
                    *(stored if model.bytes and base["work"] else ["–"] * 3),
                ]
            )
        words = (
            "Tokens and seconds of one answer, the prompt's tokens not counted; bits over all weights, those that stay "
            "among them; bytes × tokens beside the original's: a smaller model that thinks longer may cost more."
        )
        return Table("What an answer costs", rows, words)

    def _length_tables(self) -> Iterator[Table]:
        for task in self.tasks:
            rows = [["Model", "right", "wrong", "shortest", "2nd", "3rd", "longest", "length with score"]]
            for _, model in self.models:
                summary, lines = asking.summarise(model.lines[task.name]), _with_scores(model.lines[task.name])
                told = describe_lengths([line.tokens for line in lines], [line.score or 0.0 for line in lines])
                parts = [f"{100 * one:.0f}" for one in told.quartiles] + ["–"] * (4 - len(told.quartiles))
                means = ["–" if one is None else f"{one.value:.0f}" for one in (summary.correct, summary.wrong)]
                rows.append([model.name, *means, *parts, _plain(told.correlation)])
            words = (
                "Mean tokens of right and wrong answers; score by quartile of length; Spearman's correlation of both."
            )
            yield Table(f"Length of answers: {task.name}", rows, words)

    def _variant_table(self) -> Iterator[Table]:
        """Each variant beside the same method and amount without it."""
        plain = {
            (config.method, config.amount, config.seed): model for config, model in self.models if not config.variant
        }
        rows = [["Model", *(task.name for task in self.tasks), "tokens ×", "seconds ×"]]
        for config, model in self.models:
            other = plain.get((config.method, config.amount, config.seed)) if config.variant else None
            if other is not None:
                ours, theirs = self._cost(model), self._cost(other)
                cells = []
                for task in self.tasks:
                    pairs = [list(self._by_item(one, task).values()) for one in (model, other)]
                    cells.append(percent(statistics.paired_bootstrap(*pairs), signed=True))
                seconds = f"{ours['seconds'] / theirs['seconds']:.2f}" if theirs["seconds"] else "–"
                rows.append([model.name, *cells, f"{ours['tokens'] / max(1e-9, theirs['tokens']):.2f}", seconds])
        if len(rows) > 1:
            words = (
                "Points of score more than the same method at the same amount has; its tokens and seconds as a factor."
            )
            yield Table("Traces, protected modules and dynamic bits", rows, words)

    def _pareto(self) -> Scatter:
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {"weights": {}, "weights × tokens": {}, "time": {}}
        base = self._cost(self.dense)
        for config, model in self.models:
            name = _name((config.method, config.variant)) if config.method in METHODS else model.name
            one = self._cost(model)
            if model.bytes and base["work"] and base["seconds"] and math.isfinite(one["score"]):
                for title, share in zip(
                    panels,
                    (model.bytes / self.dense.bytes, one["work"] / base["work"], one["seconds"] / base["seconds"]),
                    strict=True,
                ):
                    panels[title].setdefault(name, []).append((share, 100 * one["score"]))
        return Scatter(
            "Score against cost",
            {
                title: [
                    Dots(name, points, 1 - place / len(panel)) for place, (name, points) in enumerate(panel.items())
                ]
                for title, panel in panels.items()
            },
            "× the original's",
            "score, %",
            "The mean over tasks; further left is cheaper.",
        )

    def _chart(self) -> Chart | None:
        """Score by share of zeros, a panel for each task."""
        panels: dict[str, list[Curve]] = {}
        runs = {run: amounts for run, amounts in self.runs().items() if run[0] not in QUANTISERS}
        for task in self.tasks:
            curves = []
            for place, (run, amounts) in enumerate(runs.items()):
                points = [(0.0, Figure(100 * self.score(self.dense, task)))]
                for amount, models in amounts:
                    values = [100 * self.score(model, task) for model in models]
                    if all(map(math.isfinite, values)):  # a judge may have given no score at all
                        points.append((_compression(amount), statistics.mean_interval(values)))
                curves.append(Curve(_name(run), points, 1 - place / len(runs)))
            if curves and math.isfinite(self.score(self.dense, task)):
                panels[task.name] = curves
        return Chart("Scores by sparsity", panels, "zeros, %", "score, %", bounds=(0.0, 100.0)) if panels else None

    def _figures(self) -> Row:
        models = []
        for config, model in self.models:
            told = {}
            for task in self.tasks:
                lines = _with_scores(model.lines[task.name])
                lengths = describe_lengths([line.tokens for line in lines], [line.score or 0.0 for line in lines])
                told[task.name] = {
                    **asdict(asking.summarise(model.lines[task.name])),
                    "lengths": asdict(lengths),
                    "f1": asdict(self.overlap(model, task)),
                }
            lost = {name: asdict(one) if isinstance(one, Figure) else one for name, one in self.damages(model).items()}
            models.append(
                {
                    "name": model.name,
                    **asdict(config),
                    "tasks": told,
                    "damage": lost,
                    "params": model.params,
                    "bytes": model.bytes,
                    "seconds": model.seconds,
                    "cost": self._cost(model),
                    "figures": {name: asdict(one) for name, one in model.figures.items()},
                }
            )
        points = [
            {"method": run[0], "variant": run[1], "task": name, "group": group, **asdict(one), "happens": one.happens}
            for run, name, group, one in self.collapses()
        ]
        return {"collapse": points, "models": models}

    def _notes(self) -> tuple[str, ...]:
        found = [*self.notes, *(f"{model.name}: {note}" for _, model in self.models for note in model.notes)]
        found += [
            f"{model.name}: {unscored} answers of {task.name} got no score from the judge"
            for _, model in self.models
            for task in self.tasks
            if (unscored := asking.summarise(model.lines[task.name]).unscored)
        ]
        found += [
            f"the original is at chance on {task.name}: it tells nothing"
            for task in self.tasks
            if self.score(self.dense, task) <= max(task.chance, 0.02)
        ]
        return (*found, *(self.diagnosis.notes if self.diagnosis is not None else ()))

    def _items(self) -> list[Row]:
        return [
            {"model": model.name, **asdict(line)}
            for _, model in self.models
            for lines in model.lines.values()
            for line in lines
        ]


def _compression(amount: str) -> float:
    """How much an amount takes away, to order amounts of one method: percent of zeros, or bits that are left."""
    return -float(amount.removesuffix("bit")) if amount.endswith("bit") else float(amount.removesuffix("%"))


def _groups(task: Task) -> list[str]:
    names = list(dict.fromkeys(item.group for item in task.items if item.group))
    return names if 1 < len(names) <= LEVELS else []


def _name(run: Run) -> str:
    return ", ".join(filter(None, run))


def _tell(one: Collapse, run: Run, *, interval: bool = False) -> str:
    """A collapse point in its unit, with its interval; "nowhere" where the score stays up."""
    unit = "bit" if run[0] in QUANTISERS else "%"

    def write(value: float) -> str:
        return "nowhere" if value == one.beyond else f"{abs(value):g} {unit}"

    ends = (
        ""
        if one.point.low is None or one.point.high is None or not interval
        else (f" [{write(one.point.low)} to {write(one.point.high)}]")
    )
    return write(one.point.value) + ends


def _ratio(figure: Figure | None) -> str:
    return "–" if figure is None or math.isnan(figure.value) else _plain(figure)


def _plain(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f} to {figure.high:.2f}]"
    return (f"{figure.value:.2f}" + ends).replace("-", "−")


def _with_scores(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.score is not None]
