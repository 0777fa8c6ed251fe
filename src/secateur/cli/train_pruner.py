"""secateur train-pruner: train the model with which a context recipe scores text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur import recipes
from secateur._utils import distributed
from secateur.cli import words as line
from secateur.cli.command import Command
from secateur.cli.flags import Flag, of_options
from secateur.errors import InputError

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Train the model with which a recipe prunes what a model reads; the same command again resumes."""
    from secateur.runs import pruner_training

    recovery = pruner_training.train_pruner(**given)
    record = json.loads((Path(given["out"]) / "training.json").read_text(encoding="utf-8"))
    distributed.end()
    if distributed.index():
        return
    summary = f"{recovery.steps} steps on {recovery.tokens} tokens: {given['out']}"
    print(summary, *record["notes"], sep="\n", file=sys.stderr)


def _check(typed: dict[str, Any]) -> None:
    """Refuse a recipe that trains no model before its missing arguments."""
    if "recipe" in typed and not recipes.training(typed["recipe"]):
        raise InputError(f"{typed['recipe']} trains no model: `secateur run` runs it")


def _recipe_flags(words: Sequence[str]) -> tuple[list[Flag], str]:
    """The flags of the training of the recipe that the command line names, and of the server that it asks."""
    recipe = line.recipe_named(words)
    options = recipes.training(recipe) if recipe in recipes.cards() else []
    flags = of_options(options, f"Options of {recipe}")
    if any(option.name == "llm" for option in options):
        servers = recipes.parameters("secateur.runs.servers.servers")
        flags += of_options([option for option in servers if option.name.startswith("llm_")], "Servers")
    return flags, ""


COMMAND = Command(
    execute,
    ["secateur.train_pruner"],
    arguments=("recipe", "model"),
    help={
        "recipe": "a recipe of the family context.",
        "model": "folder or Hub id of the model to train; it stays as it is.",
        "data": "a .jsonl file with question, html, text or passages, and answers in each line.",
        "out": "the run directory, where the model will stand.",
        "device": "where the model reads and is judged before and after training, such as cuda.",
    },
    recipe_flags=_recipe_flags,
    needed={"RECIPE": "recipe", "MODEL": "model", "--data": "data", "--out": "out"},
    example="secateur train-pruner provence MODEL --data passages.jsonl --out pruner",
    configured="secateur.runs.pruner_training.configured",
    adapt=_check,
)
