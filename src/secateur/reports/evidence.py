"""Evidence on disk, in tables, and judged; and the rows from which the table of claims is generated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur._utils.disk import atomic_write
from secateur.errors import BudgetError, RunError
from secateur.reports import display
from secateur.vocabulary import Budget, Evidence, Figure

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "judge",
    "markdown",
    "measured",
    "not_faster",
    "plain",
    "read",
    "render",
    "rich_table",
    "row",
    "speedup_of",
    "summary",
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


def plain(value: Any) -> Any:
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


def _lively(value: Any) -> Any:
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
        before = _before(evidence, limit.measure)
        if limit.measure == "latency" and limit.relative:
            limits["speedup"] = 1.0 / limit.value
        if before is not None or not limit.relative:
            limits[limit.measure] = limit.absolute(before or 0.0)
    if budget.pattern is not None:
        limits["off_pattern"] = 0.0
    return limits


def _before(evidence: Evidence, measure: str) -> float | None:
    if measure in evidence.before:
        return evidence.before[measure].value
    return evidence.cut.before.get(measure) if evidence.cut else None


def measured(evidence: Evidence, measure: str) -> Figure | None:
    """What was measured on the result, by name: as `measured`, as `after`, or as counted by the cut's receipt."""
    figure = evidence.measured.get(measure) or evidence.after.get(measure)
    if figure is None and evidence.cut and measure in evidence.cut.after:
        return Figure(evidence.cut.after[measure])
    return figure


def speedup_of(evidence: Evidence) -> Figure | None:
    """The measured speedup; where only two latencies are known, their ratio, without an interval."""
    figure = measured(evidence, "speedup")
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
    figures = {name: speedup if name == "speedup" else measured(evidence, name) for name in limits}
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
            asked, got = display.asked(name, limit), display.number(name, figure.value)
            return f"missed: {got} {_label(name)} instead of {asked}"
    unknown = [name for name in _asked(evidence.target) if name not in known]
    if known and unknown:
        return f"missed: {' and '.join(map(_label, unknown))} could not be measured"
    return evidence.verdict or ("met" if known else "")


def _asked(target: str) -> list[str]:
    """The measures which the budget `target` limits, a relative latency as a speedup."""
    try:
        budget = Budget.parse(target)
    except BudgetError:
        return []
    limits = ["speedup" if limit.measure == "latency" and limit.relative else limit.measure for limit in budget.limits]
    return [*limits, *(["off_pattern"] if budget.pattern else [])]


def _label(name: str) -> str:
    """The name of a measure inside a sentence."""
    label = display.measure(name).label
    return label if label.isupper() else label.lower()


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
            before, after = Figure(evidence.cut.before[name]), measured(evidence, name)
        rows.append(
            [
                display.measure(name).label,
                display.asked(name, limits[name]) if name in limits else "–",
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
        rows.append([result.target, judge(result) or "–", *(display.text(name, figures.get(name)) for name in names)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows (header first) as a Markdown table; what would break a cell is escaped."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") or " "

    header, *body = [[cell(str(text)) for text in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """Rows (header first) for a terminal. Text is never read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    header, *body = rows
    heading = Text(title) if title else None
    result = Table(title=heading, box=SIMPLE_HEAD, title_justify="left", padding=0, pad_edge=False)
    for index, name in enumerate(header):
        # In a narrow terminal names and headings wrap at spaces; no word of them is cut.
        fixed = [name, *(line[0] for line in body)] if index == 0 else [name]
        width = max((len(word) for text in fixed for word in text.split()), default=1)
        result.add_column(Text(name), justify="left" if index == 0 else "right", min_width=width)
    for line in body:
        result.add_row(*(Text(cell) for cell in line))
    return result


# ------------------------------------------------------------------------------------------- rows of the documents


def row(
    path: str | Path,
    *,
    recipe: str,
    claim: str,
    holds: bool,
    figures: Mapping[str, Figure],
    baselines: Mapping[str, Mapping[str, Figure]] | None = None,
    difference: Figure | None = None,
    seeds: Sequence[int] = (),
    setup: str = "",
    reason: str = "",
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the JSON record of one checked claim, from which `render` makes a row of the table.

    figures: measure -> what the system reached; baselines: name -> its figures at the same budget; difference: system
    against the best baseline, paired over seeds, with its interval; reason: why a claim does not hold at this scale.
    The commit is taken from `environment` (default: this machine's `environment.describe()`). No time stamp: the same
    measurement writes the same bytes.
    """
    if environment is None:
        from secateur.measure.environment import describe

        environment = describe()
    record: dict[str, Any] = {
        "recipe": recipe,
        "claim": claim,
        "holds": holds,
        "reason": reason,
        "setup": setup,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "baselines": {name: {k: asdict(f) for k, f in row.items()} for name, row in (baselines or {}).items()},
        "difference": asdict(difference) if difference else None,
        "seeds": list(seeds),
        "commit": environment.get("commit", ""),
        "environment": {key: value for key, value in environment.items() if key != "commit"},
    }
    record = plain(record)
    atomic_write(Path(path), json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    return record


def render(folder: str | Path, *, output: str | Path | None = None) -> str:
    """The table of all records `folder`/*.json by recipe and file name, written to README.md there (or `output`)."""
    folder = Path(folder)
    rows = [["Recipe", "Claim", "Measured", "Baselines", "Difference", "Seeds", "Holds", "Commit"]]
    rows += [cells for _, cells in _records(folder)]
    text = "# Evidence\n\nGenerated from the records in this folder by `make claims`; do not edit.\n\n" + markdown(rows)
    atomic_write(Path(output) if output is not None else folder / "README.md", text)
    return text


def summary(folder: str | Path, headlines: Mapping[str, str]) -> str:
    """A table of one row per recipe: its headline claim beside the baselines, and how many of its claims hold.

    headlines: recipe -> name of the record `folder`/<recipe>-<name>.json to show; else the first that holds and has
    baselines.
    """
    grouped: dict[str, list[tuple[str, list[str]]]] = {}
    for name, cells in _records(Path(folder)):
        grouped.setdefault(cells[0], []).append((name, cells))
    rows = [["Recipe", "Headline claim", "Measured", "Baselines", "Claims that hold"]]
    for recipe, found in grouped.items():
        wanted = f"{recipe}-{headlines.get(recipe)}.json"
        first = max(found, key=lambda one: (one[0] == wanted, one[1][6] == "yes", one[1][3] != "–"))[1]
        holding = sum(cells[6] == "yes" for _, cells in found)
        claim = first[1] if first[6] == "yes" else f"{first[1]}: does not hold"
        rows.append([recipe, claim, first[2], first[3], f"{holding} of {len(found)}"])
    return markdown(rows)


def _records(folder: Path) -> list[tuple[str, list[str]]]:
    """(file name, cells of its row) of every record, by recipe and file name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = _lively(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a readable evidence record: run the claim again") from error
        try:
            found.append((path.name, _cells(record)))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is not a whole evidence record: run the claim again") from error
    return sorted(found, key=lambda pair: (pair[1][0], pair[0]))


def _cells(record: Mapping[str, Any]) -> list[str]:
    def figures(part: Mapping[str, Any]) -> str:
        listed = [(name, Figure(**part[name])) for name in display.order(part)]
        return ", ".join(f"{display.measure(name).label} {display.text(name, figure)}" for name, figure in listed)

    baselines = "; ".join(f"{name}: {figures(part)}" for name, part in record["baselines"].items())
    difference = display.text("", Figure(**record["difference"])) if record["difference"] else "–"
    return [
        record["recipe"],
        record["claim"] + (f" ({record['setup']})" if record["setup"] else ""),
        figures(record["figures"]),
        baselines or "–",
        difference,
        ", ".join(str(seed) for seed in record["seeds"]) or "–",
        "yes" if record["holds"] else f"no: {record['reason']}" if record["reason"] else "no",
        record["commit"] or "–",
    ]
