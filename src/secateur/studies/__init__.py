"""Studies: questions answered by many runs of a recipe, such as whether it beats a simple method at equal cost.

A study that the command line knows opens with a literal `STUDY = {...}`; the folder is the registry. Its module has a
function of the file's name, which answers, and `plan`, which refuses what can't be answered and counts trainings.
"""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path

from secateur import recipes
from secateur.errors import InputError
from secateur.recipes import Option

__all__ = ["cards", "options", "reading"]

_READING = ("text", "label", "transform", "size", "workers")


def cards() -> dict[str, dict[str, str]]:
    """Study name -> its card, in alphabetical order: read from its text, without importing it.

    title; recipe: whose runs it compares, or nothing; backend: of what it is about, where it compares no recipe's runs,
    as "package.module:Class" or "any"; reads: what it reads where that is no network and its examples;
    its module's `read` does so; sets: the recipe's options that it sets itself; grid: its own
    options that may differ when it is given again in the same folder.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if card := _read_card(path.read_text(encoding="utf-8")):
            found[path.stem] = dict(card)
    return found


@functools.lru_cache(256)
def _read_card(source: str) -> dict[str, str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [getattr(one, "id", "") for one in node.targets] == ["STUDY"]:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    return {}


def options(name: str) -> list[Option]:
    """The options of the study called `name`: its own, then those of its recipe that it leaves to the user.

    Raises `InputError` for an unknown study; names the nearest.
    """
    known = cards()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise InputError(
            f"no study is called {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
        )
    own = recipes.read_options((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"), name)
    own += reading(known[name])
    if not (recipe := known[name]["recipe"]):
        return own
    without = {*known[name]["sets"].split(), *(option.name for option in own)}
    return [*own, *(option for option in recipes.signature(recipe) if option.name not in without)]


def reading(card: Mapping[str, str]) -> list[Option]:
    """How a study by this card reads its examples or texts, as `secateur run` does; nothing where it reads no such."""
    if card.get("reads") or not (card["recipe"] or card.get("backend")):
        return []
    run = Path(__file__).parents[1] / "runs" / "executor.py"
    known = {option.name: option for option in recipes.read_options(run.read_text(encoding="utf-8"), "run")}
    return [known[name] for name in _READING]
