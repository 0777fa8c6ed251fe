"""secateur run: run a recipe on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur import recipes
from secateur._utils import distributed
from secateur.cli import words as line
from secateur.cli.command import Command
from secateur.cli.flags import Flag, extra, of_options
from secateur.cli.printing import print_first, print_lines, print_places
from secateur.errors import InputError

__all__ = ["BUDGET", "SHAPE", "execute"]

BUDGET = "how much may stay: {}, ... Give it again for one more {}."
SHAPE = "shape of a network's input, such as 1x3x224x224."


def execute(given: dict[str, Any]) -> None:
    """Run a recipe on a model; the same command again resumes."""
    from secateur.runs import executor

    arms = given.pop("scratch_baseline", None)
    names = [name for name in ("epochs", "lr", "cap") if f"scratch_{name}" in given]
    how = {name: given.pop(f"scratch_{name}") for name in names}
    if arms:  # what can't be trained from scratch is refused before the run
        from secateur.runs import scratch_baseline

        scratch_baseline.check(given["recipe"], given["data"], given, **how)
    rows = executor.run(**given, on_result=print_first)
    if arms and not given.get("dry_run"):
        held_out = given.get("held_out")
        rows = scratch_baseline.add(given["out"], given["model"], given["data"], arms, held_out=held_out, **how)
        if distributed.index() == 0:
            print_lines((Path(given["out"]) / "scratch.md").read_text("utf-8"))
    distributed.end()
    if not given.get("dry_run"):
        print_places(rows, given["out"])


def _check(typed: dict[str, Any]) -> None:
    """Refuse an unknown recipe before its missing arguments, and what does not go together."""
    if "recipe" in typed:
        recipes.signature(typed["recipe"])
    arms = typed.get("scratch_baseline")
    if arms not in (None, "E", "B", "both"):
        raise InputError(f"--scratch-baseline {arms} is not one of E, B, both")
    for name in ("epochs", "lr", "cap"):
        if f"scratch_{name}" in typed and not arms:
            raise InputError(f"--scratch-{name} is of networks trained from scratch: give --scratch-baseline")


def _complete(typed: dict[str, object]) -> None:
    """No data, where the recipe does without: quality is not measured then. Refuses recipes of `prune-context`."""
    card = recipes.cards().get(str(typed.get("recipe")))
    if card is not None and card["family"] == "context":
        raise InputError(
            f"{typed['recipe']} cuts what answers a question, no model: say for example secateur prune-context "
            f'{typed.get("model", "FILE")} --recipe {typed["recipe"]} --budget tokens=2048 --question "..."'
        )
    if "recipe" in typed and recipes.data_kind(str(typed["recipe"])).endswith("| None"):
        typed.setdefault("data", None)


def _recipe_flags(words: Sequence[str]) -> tuple[list[Flag], str]:
    """The flags of the recipe that the command line names, and the first sentences about it."""
    recipe = line.recipe_named(words)
    if recipe not in recipes.cards():
        return [], ""
    summary = recipes.describe(recipe).partition("\n\n")[0].replace("\n", " ")
    flags = of_options(recipes.signature(recipe), f"Options of {recipe}")
    texts = recipes.cards()[recipe]["family"] in ("language", "sparse")
    flags = [replace(flag, also="--calibration") if texts and flag.words == "--samples" else flag for flag in flags]
    return flags, f"{recipe}: {summary}"


_ARMS = "also train networks of the cut shape from scratch, for as long (E), for as many FLOPs (B), or both."
COMMAND = Command(
    execute,
    ["secateur.run"],
    arguments=("recipe", "model"),
    words={"inputs": "--input", "after": "--with"},
    without=("on_result", "on_data"),
    help={
        "recipe": "a recipe's name: `secateur list` shows them.",
        "model": "a model folder or Hub id; for recipes on networks file.py:function.",
        "data": "a .txt, .jsonl or .parquet file, a folder of them, or hub:owner/name; for networks an .npz file, a "
        "folder of images, or file.py:function.",
        "budget": BUDGET.format("speedup=2x, params=50%", "model"),
        "inputs": SHAPE,
    },
    again=("budget",),
    more=[
        extra("scratch_baseline", "str", _ARMS, metavar="E|B|both"),
        extra("scratch_epochs", "int", "epochs of these networks, as of the original; those of the run if not given."),
        extra("scratch_lr", "float", "learning rate of these networks; the run's if not given."),
        extra("scratch_cap", "float", "limit of the epochs of B, as a multiple of those of E."),
    ],
    recipe_flags=_recipe_flags,
    needed={"RECIPE": "recipe", "MODEL": "model", "--budget": "budget", "--data": "data", "--out": "out"},
    example="secateur run ziplm MODEL --budget speedup=2x --data texts.txt --out small",
    pushes=True,
    configured="secateur.runs.executor.configured",
    adapt=_check,
    complete=_complete,
)
