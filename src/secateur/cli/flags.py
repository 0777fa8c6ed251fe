"""Build one flag of the command line from the parameter behind it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from secateur.cli import values
from secateur.errors import InputError
from secateur.recipes import Option

__all__ = ["AS_JSON", "Flag", "extra", "of_options"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command, or one of its arguments.

    Args:
        option: the parameter behind it: name, default, annotation and explanation.
        words: how it is written, such as "--from"; "" for an argument.
        metavar: what the help shows for its value.
        again: it may be given several times, and each text counts as it is, without a look at its commas.
        panel: the heading in the help under which options of a recipe stand.
        also: another way to write it.
    """

    option: Option
    words: str = ""
    metavar: str = ""
    again: bool = False
    panel: str | None = None
    also: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off, and takes no value."""
        return self.option.annotation in ("bool", "bool | None")

    def parameter(self) -> inspect.Parameter:
        """As a parameter that typer reads. One that is not given is None: the function's own default holds then."""
        annotation, words = self.option.annotation, self.words
        kind: Any = list[str] if self.again or values.is_list(annotation) else str
        metavar: str | None = self.metavar or values.describe_kind(annotation)
        if self.is_switch:
            kind, metavar = bool, None
            words += f"/--no-{words[2:]}" if self.panel or self.option.default is not False else ""
        info: Any = typer.Argument(help=self.help(), metavar=self.metavar or None)
        if words:
            every = [words, self.also] if self.also else [words]
            info = typer.Option(*every, help=self.help(), metavar=metavar, rich_help_panel=self.panel)
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.option.name, keyword, default=None, annotation=Annotated[kind | None, info])

    def help(self) -> str:
        """The explanation, and what holds where the flag is not given."""
        text, default = self.option.help, self.option.default
        if text.partition(" ")[0].isalpha():  # a value stays as it is typed
            text = text[:1].upper() + text[1:]
        if self.words and values.is_list(self.option.annotation) and not self.again:
            text += " Separated by commas, or again."
        obvious = default == "" if self.panel else not default or default is inspect.Parameter.empty
        if self.words and not obvious:
            text += f" ({values.describe_default(self.option)})"
        return text.replace("[", r"\[").strip()

    def value(self, typed: str | Sequence[str] | bool) -> Any:
        """What the function is given for what was typed."""
        if isinstance(typed, bool):
            return typed
        if self.again:
            return list(typed)
        kind = self.option.annotation.removesuffix(" | None")
        if self.panel is None and kind in ("int", "float"):  # options of recipes are checked with the others
            try:
                return int(str(typed)) if kind == "int" else float(str(typed))
            except ValueError as error:
                number = "a whole number" if kind == "int" else "a number"
                raise InputError(f"{self.words} {typed}: give {number}") from error
        return values.parse(typed, self.option.annotation)


def extra(name: str, kind: str, help: str, words: str | None = None, metavar: str = "") -> Flag:
    """A flag that no function has: of kind "bool" off unless given, of others None."""
    option = Option(name, False if kind == "bool" else None, kind, help)
    return Flag(option, f"--{name.replace('_', '-')}" if words is None else words, metavar)


AS_JSON = extra("as_json", "bool", "as JSON.", "--json")


def of_options(options: Iterable[Option], panel: str) -> list[Flag]:
    """The flags of a recipe's options, under the heading `panel` in the help."""
    return [Flag(option, f"--{option.name.replace('_', '-')}", panel=panel) for option in options]
