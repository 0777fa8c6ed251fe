"""report.html: one self-contained page per run, readable on a phone and without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from secateur._utils.disk import atomic_write
from secateur.reports import charts, details, display, evidence
from secateur.reports.details import ClassRow, Details
from secateur.vocabulary import Cut, Evidence, Figure, Recovery

__all__ = ["render", "write"]

_LOAD = """import secateur

model = secateur.load("path/to/this/folder")"""


_CLASSES = 12
"""Classes that are shown before the others are asked for."""

_WORDS = {
    "cpu": "Processor", "cores": "Cores", "logical cores": "Usable cores", "threads": "Threads", "system": "System",
    "memory gb": "Memory, GB", "python": "Python", "gpu": "GPU", "cuda": "CUDA",
    "measured at": "Measured at", "commit": "secateur commit",
}  # fmt: skip
"""What keys of the environment are called; a package is called by its name."""


def write(
    path: str | Path,
    results: Evidence | Sequence[Evidence],
    *,
    run_yaml: str | None = None,
    load: str | Mapping[str, str] = "",
    title: str = "",
    shown: Mapping[str, Details] | None = None,
) -> Path:
    """Write the page to `path` (report.html in it, if it is a folder), whole or not at all.

    run_yaml: the settings that repeat the run; by default the run.yaml beside the page, where there is one.
    load: code that loads the result, one for all or by target.
    shown: classes and samples of results, by target.
    """
    path = Path(path)
    path = path / "report.html" if path.is_dir() else path
    beside = path.parent / "run.yaml"
    if run_yaml is None:
        run_yaml = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    atomic_write(path, render(results, run_yaml=run_yaml, load=load, title=title, shown=shown))
    return path


def render(
    results: Evidence | Sequence[Evidence],
    *,
    run_yaml: str = "",
    load: str | Mapping[str, str] = "",
    title: str = "",
    shown: Mapping[str, Details] | None = None,
) -> str:
    """The page as text. Every name, note and setting is escaped; only our own drawings enter as markup."""
    found = [results] if isinstance(results, Evidence) else list(results)
    if not found:
        raise ValueError("a report needs at least one result")
    known = shown or {}
    views = [_view(result, index, load, known.get(result.target)) for index, result in enumerate(found)]
    first = found[0]
    command = first.recipe if first.recipe in ("distill", "prune") else "run"
    name = title or " ".join(part for part in (first.recipe, _model(first)) if part)
    return display.fill_template(
        "report.html.j2",
        title=name,
        recipe=first.recipe,
        model=_model(first),
        results=views,
        several=len(found) > 1,
        verdict=_together(views) if len(found) > 1 else views[0]["verdict"],
        overview=_overview(found, views),
        quality=Markup(charts.quality(found, "quality")),
        quality_words=_quality_words(found),
        environment=[(_WORDS.get(key, key), value) for key, value in _flat(first.environment)],
        run_yaml=run_yaml,
        command=command,
    )


def _model(result: Evidence) -> str:
    """The model's name without the folders that lead to it."""
    model = result.settings.get("model", "")
    return PurePath(str(model)).name if model else ""


def _view(result: Evidence, index: int, load: str | Mapping[str, str], shown: Details | None) -> dict[str, object]:
    verdict = _verdict(result)
    code = load if isinstance(load, str) else load.get(result.target, "")
    return {
        "id": f"result-{index + 1}",
        "target": result.target,
        "verdict": verdict,
        "tiles": _tiles(result),
        "promise": _promise(result),
        "measures": _measures(result, shown),
        "classes": None if shown is None or len(shown.classes) < 2 else _classes(shown),
        "samples": None if shown is None else _samples(shown),
        "stages": list(result.stages),
        "baselines": list(result.baselines),
        "cut": _cut(result.cut),
        "recovery": _recovery(result.recovery, f"loss{index}"),
        "load": code or _LOAD,
    }


# ------------------------------------------------------------------------------------------------------ in words


def _verdict(result: Evidence) -> dict[str, object]:
    """State, its word, the headline, and warnings; a failure is worded as one whatever else went well."""
    judged = evidence.judge(result)
    state, _, why = (part.strip() for part in judged.partition(":"))
    state = state if state in ("met", "missed", "failed") else "open"
    headline = {
        "met": why if why and result.cut is None else _describe_result(result),
        "missed": f"Target missed: {why}" if why else "Target missed",
        "failed": f"Failed: {why}" if why else "Failed",
        "open": judged or "Not judged: nothing was measured against a target",
    }[state]
    warnings = []
    if result.cut is not None and result.cut.is_noop:
        warnings.append("This is the original again. Do not use it as a smaller one.")
    if state != "failed" and evidence.not_faster(result):
        warnings.append(f"Not measurably faster: {display.text('speedup', evidence.speedup_of(result))} was measured.")
    word = {"met": "Target met", "missed": "Target missed", "failed": "Failed", "open": "Not judged"}[state]
    lost = evidence.describe_lost_quality(result)
    if lost and state == "met":
        state, word, headline = "missed", "Target met, quality lost", f"Of no use: {lost}"
        warnings.append(f"The target {result.target} is met, and what is left does not do its task.")
    elif lost:
        warnings.append(f"{lost}.")
    return {"state": state, "word": word, "headline": headline, "warnings": warnings, "lead": _lead(result)}


def _describe_result(result: Evidence) -> str:
    """What was reached, in a few words: "2.03× as fast, with 51.6 % of the parameters"."""
    parts = []
    if (speedup := evidence.speedup_of(result)) is not None and not evidence.not_faster(result):
        parts.append(f"{display.number('speedup', speedup.value)} as fast")
    if sizes := _describe_sizes(result):
        parts.append(sizes)
    return ", with ".join(parts) if parts else f"Target met: {result.target}"


_SIZES = {"params": "parameters", "weights": "weights", "bytes": "bytes", "tokens": "tokens", "examples": "examples"}
"""Measures that tell a size where the budget names none, the first that there is, and what they are called."""


def _describe_sizes(result: Evidence) -> str:
    """What is left in each measure of size that the budget names, else in the first known; "" where there is none."""

    def share(name: str) -> str:
        before, after = evidence.before_of(result, name), evidence.figure_of(result, name)
        if before is None or after is None or before <= 0:
            return ""
        words = _SIZES.get(name) or evidence.name_inside(name)
        return f"{after.value / before * 100:.1f}{display.NO_BREAK}% of the {words}"

    asked = [name for name in evidence.targets(result) if name not in ("speedup", "latency", "off_pattern", "zeros")]
    if told := list(filter(None, map(share, asked))):
        return " and ".join(told)
    known = [name for name in _SIZES if not (name == "params" and _sparse(result))]
    return next(filter(None, map(share, known)), "")


def _sparse(result: Evidence) -> bool:
    """Whether the result is smaller by zeros alone: as many parameters as before, fewer that are not zero."""
    before, after = result.before, result.after
    if not all(name in row for name in ("params", "weights") for row in (before, after)):
        return False
    return after["params"].value >= before["params"].value and after["weights"].value < before["weights"].value


def _lead(result: Evidence) -> str:
    trained = display.thousands(result.recovery.steps) if result.recovery and result.recovery.steps else ""
    if result.cut is None and trained:
        return f"{result.recipe} trained {_model(result) or 'the student'} for {trained} steps."
    words = f"{result.recipe} cut {_model(result) or 'the original'} to the budget {result.target}"
    return f"{words} and recovered it by {trained} steps of training." if trained else f"{words}."


def _together(views: Sequence[dict[str, Any]]) -> dict[str, object]:
    states = [view["verdict"]["state"] for view in views]
    state = next(state for state in ("failed", "missed", "open", "met") if state in states)
    met, all_ = states.count("met"), len(states)
    headline = f"All {all_} targets met" if met == all_ else f"{met or 'None'} of {all_} targets met"
    if "failed" in states:
        headline += f", {states.count('failed')} failed"
    word = {"met": "Targets met", "missed": "Targets missed", "failed": "Failed", "open": "Not judged"}[state]
    return {"state": state, "word": word, "headline": headline, "warnings": [], "lead": ""}


def _quality_words(results: Sequence[Evidence]) -> str:
    """What the quality chart shows, for those who don't see it."""
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    words = "Quality against speed and size: the original, " + ", ".join(result.target for result in results)
    return words + (
        f"; baselines at the same budget: {', '.join(baselines)}." if baselines else ". No baselines were run."
    )


# ------------------------------------------------------------------------------------------------------ in tables


def _cell(name: str, value: Figure | float | None) -> dict[str, str]:
    if value is None:
        return {"value": "–", "spread": ""}
    figure = value if isinstance(value, Figure) else Figure(value)
    return {"value": display.number(name, figure.value), "spread": display.interval(name, figure)}


def _tiles(result: Evidence) -> list[dict[str, str]]:
    """Up to four figures to see first: speed, size, quality."""
    figures = {**result.after, **result.measured}
    if "speedup" not in figures and (speedup := evidence.speedup_of(result)) is not None:
        figures["speedup"] = speedup
    names = display.order(figures)
    quality = [name for name in names if display.measure(name).role == "quality"]
    sizes = ("weights", "packed_bytes") if _sparse(result) else ("params", "bytes")
    wanted = [*(name for name in ("speedup", *sizes, "tokens", "examples") if name in figures), *quality]
    tiles = []
    for name in wanted[:4] if len(quality) < 2 else [*wanted[: max(1, 4 - len(quality))], *quality][:4]:
        before = result.before.get(name)
        note = f"from {display.number(name, before.value)}" if before else ""
        if name == "speedup":
            asked = evidence.targets(result).get("speedup")
            note = f"asked: {display.format_target(name, asked)}" if asked else ""
        elif change := display.change(name, before, figures[name]):
            note += f", {change}"
        elif baseline := _best_baseline(result, name):
            note = f"best baseline: {display.number(name, baseline.value)}"
        tiles.append(
            {"label": display.measure(name).label, "value": display.number(name, figures[name].value), "note": note}
        )
    return tiles


def _best_baseline(result: Evidence, name: str) -> Figure | None:
    """The best that a baseline reached in one measure, which is what a result has to be read against."""
    found = [figures[name] for figures in result.baselines.values() if name in figures]
    if not found or not display.measure(name).better:
        return None
    return (max if display.measure(name).better == "more" else min)(found, key=lambda figure: figure.value)


def _promise(result: Evidence) -> list[dict[str, Any]]:
    """Target, predicted, measured: the measures that were asked for or predicted."""
    limits = evidence.targets(result)
    rows = []
    for name in display.order([*limits, *result.predicted]):
        measured = evidence.speedup_of(result) if name == "speedup" else evidence.figure_of(result, name)
        predicted = result.predicted.get(name)
        rows.append(
            {
                "label": display.measure(name).label,
                "target": {"value": display.format_target(name, limits[name]) if name in limits else "–", "spread": ""},
                "predicted": _cell(name, predicted),
                "measured": _cell(name, measured),
                "off": display.change("", predicted, measured) or "–",
            }
        )
    return rows


def _measures(result: Evidence, shown: Details | None) -> list[dict[str, object]]:
    """Before, after, change, each stage and each baseline: every measure that was taken, but of the classes `shown`."""
    apart = set[str]() if shown is None else {f"{row.name}/{shown.measure}" for row in shown.classes}
    after = {**result.after, **result.measured}
    others = [*result.stages.values(), *result.baselines.values()]
    return [
        {
            "label": display.measure(name).label,
            "better": display.measure(name).better,
            "before": _cell(name, result.before.get(name)),
            "after": _cell(name, after.get(name)),
            "change": display.change(name, result.before.get(name), after.get(name)) or "–",
            "others": [_cell(name, figures.get(name)) for figures in others],
        }
        for name in display.order([*result.before, *after, *(k for row in others for k in row)])
        if name not in apart
    ]


def _classes(shown: Details) -> dict[str, object]:
    """Each class, the worst after the cut first; beyond the first few in a part that opens."""
    name = shown.measure

    def place(row: ClassRow) -> tuple[float, str]:
        return (-1.0 if row.after is None else row.after, row.name)

    rows = [
        {
            "name": display.trim_left(row.name, 40),
            "whole": row.name,
            "count": display.thousands(row.count),
            "before": _cell(name, row.before),
            "after": _cell(name, row.after),
            "change": display.change(name, row.before, row.after) or "–",
        }
        for row in sorted(shown.classes, key=place)
    ]
    label = display.measure(name).label
    first, more = rows[:_CLASSES], rows[_CLASSES:]
    return {"label": label, "counted": shown.counted, "sides": shown.sides, "rows": first, "more": more}


def _samples(shown: Details) -> list[dict[str, object]]:
    """Sample images; a name is trimmed from the left, and only data URIs of images are let in."""
    return [
        {
            "name": display.trim_left(sample.name, 32),
            "whole": sample.name,
            "pictures": [
                {"label": label, "uri": uri} for label, uri in sample.pictures if uri.startswith(details.PICTURE)
            ],
        }
        for sample in shown.samples
    ]


def _overview(results: Sequence[Evidence], views: Sequence[dict[str, Any]]) -> dict[str, object]:
    names = display.order(name for result in results for name in [*result.after, *result.measured])
    size = "weights" if all(map(_sparse, results)) else "params"
    chosen = [n for n in names if display.measure(n).role == "quality" or n in ("speedup", size, "tokens")][:5]
    rows = [
        {
            "target": result.target,
            "id": view["id"],
            "state": view["verdict"]["state"],
            "word": view["verdict"]["word"],
            "cells": [_cell(name, {**result.after, **result.measured}.get(name)) for name in chosen],
        }
        for result, view in zip(results, views, strict=True)
    ]
    return {"labels": [display.measure(name).label for name in chosen], "rows": rows}


def _cut(cut: Cut | None) -> dict[str, object] | None:
    if cut is None:
        return None
    rows = [(site, *map(display.thousands, (count - gone, gone, count))) for site, (gone, count) in cut.removed.items()]
    return {
        "panels": charts.panels(cut),
        "rows": rows,
        "words": _cut_words(cut),
        "notes": list(cut.notes),
    }


def _cut_words(cut: Cut) -> str:
    """The cut in one sentence: "Of 6 layers 1 was removed; 31 of 72 heads stay, 4 520 of 9 216 neurons stay"."""
    if cut.is_noop:
        return "Nothing was removed."
    thousands = display.thousands
    parts = []
    for site, noun in (("layers", "layers"), ("attention", "attention blocks"), ("ffn", "FFN blocks"),
                       ("channels", "channels")):  # fmt: skip
        gone, count = cut.removed.get(site, (0, 0))
        if gone:
            parts.append(f"{thousands(gone)} of {thousands(count)} {noun} removed")
    single = [0, 0]  # single weights, whatever matrix of a block they stand in
    for kind, rows in charts.layers(cut).items():
        kept, count = sum(row[0] for row in rows if row), sum(row[1] for row in rows if row)
        if "weights" in cut.before and "_" in kind and kind != "kv_groups":
            single = [single[0] + kept, single[1] + count]
        elif kept < count and count:
            parts.append(f"{thousands(kept)} of {thousands(count)} {kind.replace('_', ' ').replace('kv', 'KV')} stay")
    if single[1]:
        parts.append(f"{thousands(single[0])} of {thousands(single[1])} weights in the blocks' matrices stay")
    if not parts:
        parts = [
            f"{thousands(gone)} of {thousands(count)} units of {site} removed"
            for site, (gone, count) in cut.removed.items()
            if gone
        ]
    return "; ".join(parts[:6]) + "."


def _recovery(recovery: Recovery | None, name: str) -> dict[str, object] | None:
    if recovery is None or (recovery.steps == 0 and not recovery.losses):
        return None
    facts = [("Steps", display.thousands(recovery.steps))]
    if recovery.tokens:
        counted = str(recovery.settings.get("counted", "tokens"))
        facts.append((display.measure(counted).label, display.number(counted, recovery.tokens)))
    if recovery.seconds:
        facts.append(("Time", _duration(recovery.seconds)))
    if recovery.flops:
        facts.append(("Training FLOPs", display.number("flops", recovery.flops)))
    facts += [(key, value) for key, value in _flat(recovery.settings) if key != "counted"]
    words = ""
    values = [loss for _, loss in recovery.losses if math.isfinite(loss)]
    if len(values) > 1:
        words = f"Training loss from {values[0]:.3g} at the start to {values[-1]:.3g} at the end."
    return {"chart": Markup(charts.losses(recovery, name)), "facts": facts, "words": words}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _flat(mapping: Mapping[str, object], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as one list of words and values."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        label = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, label)
        else:
            rows.append((label, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return rows
