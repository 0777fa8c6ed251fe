"""secateur prune: cut a network without training."""

from __future__ import annotations

from typing import Any

from secateur._utils import distributed
from secateur.cli.command import Command
from secateur.cli.printing import print_first, print_places
from secateur.cli.run import BUDGET, SHAPE

__all__ = ["SCOPES", "execute"]

SCOPES = {"scope": "local|kind|global|isomorphic|SITE=POOL,...", "normalise": "l2|max|mean|zscore|rank"}
"""What the help shows for these two options of `prune` and `inspect`."""


_REFUSED = ("after", "environment", "timer")
"""Of `secateur.run`, what no network can have: a pair of models, decoding, and another runtime."""


def execute(given: dict[str, Any]) -> None:
    """Cut any network to a budget, without training; recipes (run) also win back what was lost."""
    from secateur.runs import cutting, executor

    rows = executor.run(cutting.prune, **{"data": None, **given}, on_result=print_first)
    distributed.end()
    if not given.get("dry_run"):
        print_places(rows, given["out"])


COMMAND = Command(
    execute,
    ["secateur.run", "secateur.runs.cutting.prune"],
    arguments=("model",),
    words={"inputs": "--input"},
    help={
        "model": "file.py:function, or package.module:function, that builds any network, a folder or Hub id of "
        "transformers, a GGUF file, or the folder of a cut one.",
        "budget": BUDGET.format("channels=50%, params=, bytes=, flops=", "network"),
        "data": "examples for scores that look at them, and for quality.",
        "inputs": SHAPE,
        "batch": "examples at a time, also while measuring; 32 if not given.",
        "score": "by which the least go: magnitude, l1, taylor, ..., or file.py:function.",
        "part": "of a model of several, such as one that reads images, too: vision_tower, projector, language_model.",
    },
    metavars=SCOPES,
    again=("budget", "protect"),
    without=("recipe", "length", "stream", "on_result", "on_data", "subject", "budgets", "run", *_REFUSED),
    needed={"MODEL": "model", "--budget": "budget", "--out": "out"},
    example="secateur prune net.py:build --budget channels=50% --out small",
    pushes=True,
    configured="secateur.runs.cutting.configured",
)
