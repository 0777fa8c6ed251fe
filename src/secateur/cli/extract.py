"""secateur extract: cut one size out of an elastic model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.cli.command import Command
from secateur.cli.printing import print_folder

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> Path:
    """Cut the model for a budget out of an elastic one, without training."""
    from secateur.runs import extracting

    return print_folder(*extracting.extract(**given))


COMMAND = Command(
    execute,
    ["secateur.extract"],
    arguments=("elastic",),
    help={
        "elastic": "the folder that holds all sizes, such as elastic in that of a run of nemotron_elastic.",
        "budget": "in the measure that its router was trained for, such as params=60%.",
        "out": "the new folder.",
    },
    needed={"ELASTIC": "elastic", "--budget": "budget", "--out": "out"},
    example="secateur extract run/elastic --budget params=60% --out small",
    pushes=True,
)
