"""secateur distill: train a student on the answers of its teachers, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from secateur._utils import distributed
from secateur.cli.command import Command
from secateur.cli.printing import print_first, print_lines
from secateur.errors import InputError

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Teach a model to answer as another does; the same command again resumes."""
    from secateur.runs import configs, distilling

    row = distilling.distill(**configs.options(distilling.distill, given))
    print_first(row)
    distributed.end()
    notes = list(row.settings.get("notes", ()))
    if why := row.settings.get("not_measured"):
        notes.append(f"quality: {why}")
    lines, dry = [f"note: {note}" for note in notes], row.verdict == "dry run"
    if not dry:
        lines += ["", f"result  {given['out']}", f"report  {Path(given['out']) / 'report.html'}"]
    if lines and distributed.index() == 0:
        print_lines(*lines)
    if not dry and not row.verdict.startswith("met"):
        raise typer.Exit(1)


def _divide(typed: dict[str, Any]) -> None:
    """Teachers and their shares in the mean, from "path=0.7": all have one, or none has."""
    if "teachers" not in typed:
        return
    names, shares = list[str](), list[float | None]()
    for text in typed["teachers"]:
        name, equals, number = text.rpartition("=")
        try:
            shares.append(float(number) if equals else None)
            names.append(name if equals else text)
        except ValueError:  # an equals sign of the path's own
            shares.append(None)
            names.append(text)
    known = [share for share in shares if share is not None]
    if known and len(known) < len(shares):
        raise InputError(f"--from {names[shares.index(None)]} has no share, and another has: write MODEL=0.3 for each")
    typed.update(teachers=names, shares=known or None)


COMMAND = Command(
    execute,
    ["secateur.distill"],
    arguments=("student",),
    words={"teachers": "--from", "assistants": "--assistant"},
    help={
        "student": "a model folder or Hub id, or file.py:function for any network. It stays as it is.",
        "teachers": "the teacher. Again for one more: the mean of both, or with shares MODEL=0.7.",
        "assistants": "a model between: it learns first, then teaches. Again for more, from the largest down.",
    },
    metavars={
        "teachers": "MODEL",
        "assistants": "MODEL",
        "server": "URL",
        "buckets": "K,N",
        "match": "PATTERN[=PATTERN]",
        "match_index": "1,3,...",
        "match_weight": "NUMBER,...",
        "match_loss": "mse|cosine|unit|unit-l1|normalised|attention|channel-wise|relational|contrastive",
        "warm_up": "match=0.1,...",
        "cache": "K|all",
        "cache_at": "DIR",
    },
    again=("teachers", "assistants", "match"),
    without=("shares",),
    needed={"STUDENT": "student", "--from": "teachers", "--data": "data", "--out": "out"},
    example="secateur distill STUDENT --from TEACHER --data texts.txt --out taught",
    pushes=True,
    configured="secateur.runs.distilling.configured",
    adapt=_divide,
)
