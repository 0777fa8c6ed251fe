"""Settings from a YAML file: the run.yaml of every run directory is one, and repeats its run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import InputError
from secateur.runs import keywords

__all__ = ["options", "read"]

RECORDED = ("class_names", "command", "counts", "split", "versions")
"""What a run.yaml holds beside settings, and hashes: `*_sha256`."""

_MOST, _MANY = 2**20, 10_000
"""Bytes of a file of settings, and values in it, those that an alias repeats counted each time."""


def read(
    path: str | Path,
    command: str,
    function: Callable[..., object],
    given: Mapping[str, object] | None = None,
    *,
    more: Callable[[str], Collection[str]] | None = None,
    key: str = "recipe",
) -> dict[str, Any]:
    """What to call `function` with: the settings in the YAML file `path`, where `given` does not say otherwise.

    Args:
        path: the file.
        command: what `secateur COMMAND --config path` asks for; a run.yaml of another command is refused.
        function: whose parameters the keys are.
        given: settings that win over the file's.
        more: from a recipe's name to options of its own, where the file names a recipe.
        key: what the file calls that recipe, or whatever else has options of its own.

    Raises:
        InputError: no such file, not YAML, a key that is no parameter, or text that is none.
    """
    given, values = given or {}, _values(Path(path))
    written = _command(values, command if more and key == "recipe" else "run")
    if written not in ("", command):
        raise InputError(f"config {path} is of another command: say secateur {written} --config {path}")
    named = {**values, **given}.get(key)
    parameters = inspect.signature(function).parameters.values()
    # A key such as `in` can be no parameter, and is one with an underscore; a function can't be written into a file.
    known = [
        one.name.rstrip("_")
        for one in parameters
        if one.kind is not inspect.Parameter.VAR_KEYWORD and not str(one.annotation).startswith("Callable")
    ]
    if more and isinstance(named, str):
        known += more(named)
    elif not more:
        values.pop("recipe", None)
    found = {key: value for key, value in values.items() if not _is_recorded(key)}
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it may hold {', '.join(dict.fromkeys(known))}"
            raise InputError(f"config {path} has the unknown key {name!r}: {hint}")
        if name not in given:
            _check(path, name, value)
    return {**found, **given}


def options(function: Callable[..., object], given: Mapping[str, object]) -> dict[str, Any]:
    """`given`, with what goes by keyword as `function` annotates it: a file may hold anything."""
    own = {name: value for name, value in given.items() if name in keywords.of(function)}
    checked = keywords.check_options(function, own)
    return {name: checked[name] if name in own else value for name, value in given.items()}


def _values(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST + 1)
        if len(text) > _MOST:
            raise InputError(f"config {path} has more than {_MOST >> 20} MiB: give a file of settings")
        values = yaml.safe_load(text.decode("utf-8")) or {}
    except OSError as error:
        raise InputError(f"config {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"config {path} is not YAML: write one `key: value` per line") from error
    if _swollen(values):
        raise InputError(f"config {path} holds more than {_MANY} values, by its aliases perhaps: write them out")
    if not isinstance(values, dict):
        raise InputError(f"config {path} holds no settings: write one `key: value` per line")
    return values


def _swollen(values: object) -> bool:
    """Whether it holds more than `_MANY` values: a few lines of aliases stand for billions, or for themselves."""
    waiting, seen = [values], 0
    while waiting and seen <= _MANY:
        one, seen = waiting.pop(), seen + 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
    return seen > _MANY


def _command(values: Mapping[str, object], of_recipes: str) -> str:
    """The command that the file is of, where it tells; one of recipes where it names a recipe and nothing else."""
    if values.get("recipe") in ("distill", "prune"):
        return str(values["recipe"])
    return str(values.get("command") or (of_recipes if "recipe" in values else ""))


def _is_recorded(key: object) -> bool:
    return key in RECORDED or str(key).endswith("_sha256")


def _check(path: str | Path, key: str, value: object) -> None:
    """Refuse what stands where a name, or several, belong: it would be looked for as a file."""
    one = key in ("recipe", "study", "model", "student", "data", "held_out", "text", "label", "out",
                  "in", "page", "question")  # fmt: skip
    several = key in ("budget", "teachers", "assistants", "files")
    fits = isinstance(value, str) or (several and isinstance(value, list) and all(isinstance(v, str) for v in value))
    if (one or several) and not fits:
        raise InputError(f"config {path}: {key} is {value!r}: give {'text, or a list of texts' if several else 'text'}")
