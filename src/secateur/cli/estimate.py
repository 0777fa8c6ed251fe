"""secateur estimate: peak memory of scoring, cutting and training, from a configuration alone."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from secateur.cli.command import Command
from secateur.cli.flags import AS_JSON
from secateur.cli.printing import console, print_lines

__all__ = ["execute"]

_STAGES = {
    "weights": "weights alone",
    "score": "score: a forward pass over 16 sequences",
    "gradients": "score by gradients, reduced one by one",
    "cut": "cut: the original and its student",
    "training": "training, with the original as the teacher",
}


def execute(given: dict[str, Any]) -> None:
    """Say what memory scoring, cutting and training a language model take, before any of it."""
    from secateur.reports import display, evidence
    from secateur.runs import memory_plan, memory_steps

    as_json = given.pop("as_json", False)
    plan = memory_plan.estimate(**given)
    if as_json:
        print(json.dumps(asdict(plan), indent=1))
        return
    device = given.get("device", "cpu")
    have = memory_steps.available(device)
    rows = [["Stage", "Peak memory", f"Fits {device}"]]
    for name, value in plan.stages().items():
        rows.append(
            [_STAGES[name], display.number("memory", value), "yes" if value <= have else "no" if value > have else "?"]
        )
    title = f"{plan.model}, {display.number('params', plan.params)} parameters"
    console().print(evidence.rich_table(rows, title=title))
    known = f"{device} has {display.number('memory', have)} in all"
    print_lines(f"{device} is not here, so what it has is not known" if math.isnan(have) else known)


COMMAND = Command(
    execute,
    ["secateur.runs.memory_plan.estimate"],
    arguments=("model",),
    help={"model": "a folder with a config.json, with weights or without, the file itself, a GGUF file, or a Hub id."},
    more=[AS_JSON],
    needed={"MODEL": "model"},
    example="secateur estimate MODEL --share 0.5",
)
