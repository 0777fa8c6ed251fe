"""secateur prune-data: cut a training set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from secateur.cli.command import Command
from secateur.cli.flags import extra
from secateur.cli.run import BUDGET

if TYPE_CHECKING:
    from secateur.vocabulary import Result

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Cut a training set to the examples that are worth most; the same command again resumes, other budgets too."""
    from secateur.runs import configs, data

    results = data.prune_data(**configs.options(data.prune_data, given))
    for note in dict.fromkeys(note for result in results for note in result.notes):
        print(f"note: {note}")
    for result in results:
        place = "" if given.get("dry_run") else f": {Path(given['out']) / result.name / 'index.npz'}"
        print(f"{result.name}  {_describe_kept(result)}{place}")
    if any(result.cut.is_noop for result in results):
        print("note: a budget that all examples fit in keeps them all", file=sys.stderr)
        raise typer.Exit(1)


def _describe_kept(result: Result) -> str:
    """How much of each measure stays, and how many classes."""
    from secateur.reports import display

    parts = []
    for measure, whole in result.cut.before.items():
        unit = "" if display.measure(measure).kind == "bytes" else f" {measure}"
        kept = display.number(measure, result.cut.after[measure])
        parts.append(f"{kept} of {display.number(measure, whole)}{unit}")
    gone, classes = result.cut.removed.get("classes", (0, 0))
    if classes:
        parts.append(f"{classes - gone} of {classes} classes")
    return ", ".join(parts)


def _join_switches(typed: dict[str, Any]) -> None:
    """Two switches are one option, which says what counts as equal."""
    normalised, exact = typed.pop("normalised", False), typed.pop("deduplicate", False)
    if normalised or exact:
        typed["deduplicate"] = "normalised" if normalised else "exact"


COMMAND = Command(
    execute,
    ["secateur.prune_data"],
    arguments=("data",),
    help={
        "data": "texts or a table (.txt .jsonl .parquet .csv), .npz, a folder, hub:owner/name, file.py:function.",
        "budget": BUDGET.format("examples=30%, words=1m", "index"),
        "model": "for scores from el2n on: a classifier, net.py:build, or a folder for texts.",
        "score": "random, length, el2n, grand, forgetting, memorisation, moderate, herding, or file.py:function.",
    },
    again=("budget",),
    without=("deduplicate",),
    more=[
        extra("deduplicate", "bool", "first drop examples that repeat an earlier one."),
        extra("normalised", "bool", "texts of equal words repeat one another, too."),
    ],
    needed={"DATA": "data", "--budget": "budget", "--out": "out"},
    example="secateur prune-data texts.txt --budget examples=30% --out kept, or --dry-run",
    configured="secateur.runs.data.configured",
    adapt=_join_switches,
)
