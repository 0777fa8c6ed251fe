"""secateur serve-context: a recipe of the family context behind HTTP."""

from __future__ import annotations

from typing import Any

from secateur.cli.command import Command
from secateur.cli.prune_context import check_budget, recipe_flags

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Serve a recipe that cuts what a model reads: POST /prune takes a question and documents."""
    from secateur.runs import serving

    serving.serve_context(**given)


COMMAND = Command(
    execute,
    ["secateur.runs.serving.serve_context"],
    help={"recipe": "which recipe: `secateur list` shows those of the family context."},
    recipe_flags=recipe_flags,
    needed={"--recipe": "recipe", "--budget": "budget"},
    check_budget=check_budget,
    example="secateur serve-context --recipe htmlrag --budget tokens=2048 --embedder MODEL",
)
