"""Evidence on disk, in tables, and its verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur._utils.disk import atomic_write
from secateur.errors import BudgetError, RunError
from secateur.reports import display
from secateur.vocabulary import Budget, Evidence, Figure

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

__all__ = [
    "before_of",
    "describe_lost_quality",
    "describe_verdict",
    "figure_of",
    "judge",
    "markdown",
    "name_inside",
    "not_faster",
    "plain",
    "read",
    "rich_table",
    "speedup_of",
    "table",
    "targets",
    "write",
]

FORMAT = 1

# ------------------------------------------------------------------------------------------------------ on disk


def write(path: str | Path, evidence: Evidence | Sequence[Evidence]) -> Path:
    """Write evidence.json (`path`, or in the folder `path`) so that it is whole or not there."""
    path = Path(path)
    path = path / "evidence.json" if path.is_dir() else path
    results = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    document = {"format": FORMAT, "results": [result.to_dict() for result in results]}
    atomic_write(path, json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read(path: str | Path) -> list[Evidence]:
    """The evidence in `path`, a file or a run directory. Raises `RunError` where there is none or it is damaged."""
    path = Path(path)
    path = path / "evidence.json" if path.is_dir() else path
    try:
        document = _lively(json.loads(path.read_text(encoding="utf-8")))
        if document["format"] != FORMAT:
            raise RunError(f"{path} has format {document['format']}: this version reads {FORMAT}; update secateur")
        return [Evidence.from_dict(result) for result in document["results"]]
    except OSError as error:
        raise RunError(f"no evidence at {path}: give a run directory that has finished") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged and can't be read: delete it and run the same command again") from error


def plain(value: object) -> Any:
    """JSON's own types only. Infinity and NaN, which strict readers refuse, become {"float": "inf"}."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy and torch scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _lively(value: object) -> Any:
    """The inverse of `plain` for floats."""
    if isinstance(value, dict):
        if set(value) == {"float"}:
            return float(value["float"])
        return {key: _lively(part) for key, part in value.items()}
    return [_lively(part) for part in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------- judged


def targets(evidence: Evidence) -> dict[str, float]:
    """Measure -> absolute limit, as far as the target and the figures before the cut tell; speedup as a factor.

    A pattern is the measure "off_pattern": how many runs of weights may break it, none.
    """
    try:
        budget = Budget.parse(evidence.target)
    except BudgetError:
        return {}
    limits: dict[str, float] = {}
    for limit in budget.limits:
        before = before_of(evidence, limit.measure)
        if limit.measure == "latency" and limit.relative:
            limits["speedup"] = 1.0 / limit.value
        if before is not None or not limit.relative:
            limits[limit.measure] = limit.absolute(before or 0.0)
    if budget.pattern is not None:
        limits["off_pattern"] = 0.0
    return limits


def before_of(evidence: Evidence, measure: str) -> float | None:
    """What was measured on the original, by name, or counted by the cut's receipt."""
    if measure in evidence.before:
        return evidence.before[measure].value
    return evidence.cut.before.get(measure) if evidence.cut else None


def figure_of(evidence: Evidence, measure: str) -> Figure | None:
    """What was measured on the result, by name: as `measured`, as `after`, or as counted by the cut's receipt."""
    figure = evidence.measured.get(measure) or evidence.after.get(measure)
    if figure is None and evidence.cut and measure in evidence.cut.after:
        return Figure(evidence.cut.after[measure])
    return figure


def speedup_of(evidence: Evidence) -> Figure | None:
    """The measured speedup; where only two latencies are known, their ratio, without an interval."""
    figure = figure_of(evidence, "speedup")
    before, after = evidence.before.get("latency"), evidence.after.get("latency") or evidence.measured.get("latency")
    if figure is None and before and after and after.value > 0:
        return Figure(before.value / after.value, unit="x")
    return figure


def not_faster(evidence: Evidence) -> bool:
    """True when a speedup was measured and its interval does not lie above 1."""
    speedup = speedup_of(evidence)
    return speedup is not None and (speedup.value if speedup.low is None else speedup.low) <= 1.0


def judge(evidence: Evidence, *, tolerance: float = 0.07) -> str:
    """The verdict: "met", "missed: why", "failed: why", or "" where nothing was measured against the target.

    The figures come first, and `evidence.verdict` can't talk them away: a cut that removed nothing has failed, so has a
    result that is not measurably faster although speed was asked for, and what misses its target, or one of
    whose limits could not be measured, is not met. Otherwise a verdict that is given stands.
    `tolerance` is the share by which a measured time may miss; counts and bytes are exact and get 0.5 %.
    """
    if evidence.cut is not None and evidence.cut.is_noop:
        return "failed: nothing was removed"
    limits = targets(evidence)
    speedup = speedup_of(evidence)
    if {"speedup", "latency"} & set(limits) and speedup is not None and not_faster(evidence):
        spread = f", {display.interval('speedup', speedup)}" if speedup.low is not None else ""
        return f"failed: not measurably faster ({display.number('speedup', speedup.value)}{spread})"
    if evidence.verdict and not evidence.verdict.startswith("met"):
        return evidence.verdict
    figures = {name: speedup if name == "speedup" else figure_of(evidence, name) for name in limits}
    known = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in known.items():
        if name == "latency" and "speedup" in known:
            continue
        limit = limits[name]
        if name == "speedup":
            short = figure.value < limit * (1.0 - tolerance)
        else:
            short = figure.value > limit * (1.0 + (tolerance if name == "latency" else 0.005))
        if short:
            asked, got = display.format_target(name, limit), display.number(name, figure.value)
            return f"missed: {got} {name_inside(name)} instead of {asked}"
    unknown = [name for name in _limited_measures(evidence.target) if name not in known]
    if known and unknown:
        return f"missed: {' and '.join(map(name_inside, unknown))} could not be measured"
    return evidence.verdict or ("met" if known else "")


_NEAR_CHANCE = 0.02
"""How far above the commonest answer's share an accuracy still says nothing."""

_EXPLODED = 10.0
"""By what factor a perplexity or loss may rise before it is said first."""


def describe_lost_quality(evidence: Evidence) -> str:
    """That the result is of no use although it may meet its target, in a sentence; "" where that can't be said.

    An accuracy as of always giving the commonest answer (on record as the setting "chance"), a score from 0 to 1 that
    fell to nothing, a fidelity of nothing, or a perplexity that rose tenfold.
    """
    figures, chance = {**evidence.after, **evidence.measured}, evidence.settings.get("chance") or {}
    for name in display.order(figures):
        measure, value = display.measure(name), figures[name].value
        before = evidence.before.get(name)
        if measure.role != "quality":
            continue
        what, shown = measure.label, display.number(name, value)
        guess = chance.get(name) if isinstance(chance, Mapping) else None
        if not math.isfinite(value):
            return f"{what} is {shown}"
        if guess is not None and value <= guess + _NEAR_CHANCE:
            if before is not None and before.value <= guess + _NEAR_CHANCE:
                return f"{what} {shown}: neither it nor the original does better than guessing ({guess:.3g})"
            return f"{what} {shown} is no better than guessing ({guess:.3g})"
        if before is None:
            if name in ("spearman", "cosine") and value <= _NEAR_CHANCE:
                return f"{what} is {shown}: its outputs no longer follow the original's"
        elif measure.better == "more" and value <= 0.01 and before.value > 0.05:
            return f"{what} fell from {display.number(name, before.value)} to {shown}"
        elif measure.label.lower().endswith("perplexity") and value > _EXPLODED * before.value:
            return f"{what} rose from {display.number(name, before.value)} to {shown}"
    return ""


def describe_verdict(evidence: Evidence) -> str:
    """The verdict; of what met its target at the price of all quality, that too."""
    lost = describe_lost_quality(evidence) if evidence.verdict.startswith("met") else ""
    return f"{evidence.verdict}, but of no use: {lost}" if lost else evidence.verdict


def _limited_measures(target: str) -> list[str]:
    """The measures which the budget `target` limits, a relative latency as a speedup."""
    try:
        budget = Budget.parse(target)
    except BudgetError:
        return []
    limits = ["speedup" if limit.measure == "latency" and limit.relative else limit.measure for limit in budget.limits]
    return [*limits, *(["off_pattern"] if budget.pattern else [])]


def name_inside(name: str) -> str:
    """The name of a measure inside a sentence."""
    label = display.measure(name).label
    return label if label[:2].isupper() else label[:1].lower() + label[1:]


# ------------------------------------------------------------------------------------------------------- tables


def table(evidence: Evidence | Sequence[Evidence]) -> list[list[str]]:
    """Rows of text, the header first. One result: a row per measure. Several: a row per result."""
    if not isinstance(evidence, Evidence):
        results = list(evidence)
        return _overview(results) if len(results) != 1 else table(results[0])
    limits = targets(evidence)
    names = display.order([*limits, *evidence.predicted, *evidence.measured, *evidence.before, *evidence.after])
    beside = {**evidence.stages, **evidence.baselines}
    rows = [["Measure", "Target", "Predicted", "Before", "After", "Change", *beside]]
    for name in names:
        before, after = evidence.before.get(name), evidence.measured.get(name) or evidence.after.get(name)
        if name in limits and before is None and after is None and evidence.cut and name in evidence.cut.before:
            # What is no part of the model, such as the examples that it learned from: as the receipt counted it.
            before, after = Figure(evidence.cut.before[name]), figure_of(evidence, name)
        rows.append(
            [
                display.measure(name).label,
                display.format_target(name, limits[name]) if name in limits else "–",
                display.text(name, evidence.predicted.get(name)),
                display.text(name, before),
                display.text(name, after),
                display.change(name, before, after) or "–",
                *(display.text(name, figures.get(name)) for figures in beside.values()),
            ]
        )
    return rows


def _overview(results: Sequence[Evidence]) -> list[list[str]]:
    names = display.order(name for result in results for name in [*result.measured, *result.after])
    rows = [["Target", "Verdict", *(display.measure(name).label for name in names)]]
    for result in results:
        figures = {**result.after, **result.measured}
        judged = judge(result)
        judged = "met, of no use" if judged.startswith("met") and describe_lost_quality(result) else judged
        rows.append([result.target, judged or "–", *(display.text(name, figures.get(name)) for name in names)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows (header first) as a Markdown table; what would break a cell is escaped."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") or " "

    header, *body = [[cell(str(text)) for text in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(rows: Sequence[Sequence[str]], *, title: str | None = None) -> RenderableType:
    """Rows (header first) for a terminal; in one too narrow for the columns, a block for each row.

    Text is never read as markup.
    """
    return _Fitting(rows, title)


@dataclass(frozen=True)
class _Fitting:
    """Rows that are drawn by the room there is."""

    rows: Sequence[Sequence[str]]
    title: str | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table; where words of it would be cut, its rows below each other."""
        whole = self._columns()
        if whole.__rich_measure__(console, options).minimum <= options.max_width:
            yield whole
        else:
            yield from self._blocks()

    def _columns(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        header, *body = self.rows
        heading = Text(self.title) if self.title else None
        result = Table(title=heading, box=SIMPLE_HEAD, title_justify="left", padding=0, pad_edge=False)
        for index, name in enumerate(header):
            # In a narrow terminal names and headings wrap at spaces; no word of them is cut.
            fixed = [name, *(line[0] for line in body)] if index == 0 else [name]
            width = max((len(word) for text in fixed for word in text.split()), default=1)
            result.add_column(Text(name), justify="left" if index == 0 else "right", min_width=width)
        for line in body:
            result.add_row(*(Text(cell) for cell in line))
        return result

    def _blocks(self) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        (_, *names), *body = self.rows
        if self.title:
            yield Text(self.title)
        for first, *cells in body:
            block = Table.grid(padding=(0, 2))
            for name, cell in zip(names, cells, strict=True):
                if cell != "–":
                    block.add_row(Text(name), Text(cell))
            yield Text(first)
            yield Padding(block, (0, 0, 0, 2))
