"""Words of a command line before it is parsed: the name of the recipe, whose options become flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur import recipes

__all__ = ["flag_value", "named_in_file", "recipe_named"]

_SWITCHES = ("dry_run", "overwrite", "stream", "help")
"""Flags without a value, of the commands themselves."""


def recipe_named(words: Sequence[str], key: str = "recipe") -> str | None:
    """The recipe (or study, by `key`) that is the first word of a command which is no flag and no flag's value.

    Without one, that which the file named by --config holds.
    """
    config = None
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return word
        flag, equals, value = word.partition("=")
        if not equals and not _is_switch(flag):
            value = next(rest, "")
        if flag == "--config":
            config = value
    return named_in_file(config, key) if config else None


def _is_switch(flag: str) -> bool:
    """Whether `flag` takes no value: one of a command itself, or one that is on or off in some recipe."""
    name = flag[2:].replace("-", "_")
    if name in _SWITCHES or name.startswith("no_"):
        return True
    known = recipes.cards()
    options = (option for recipe in known for option in (*recipes.signature(recipe), *recipes.training(recipe)))
    return any(option.name == name and option.annotation == "bool" for option in options)


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag."""
    for word, following in zip(words, [*words, None][1:], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def named_in_file(config: str, key: str = "recipe") -> str | None:
    """The recipe (or study, by `key`) that a YAML file names. What is wrong with the file is said where it is used."""
    import yaml

    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    name = values.get(key) if isinstance(values, dict) else None
    return name if isinstance(name, str) else None
