"""Build a command: flags come from signatures and docstrings of the functions behind it, without importing them.

What is typed becomes what the parameters' annotations ask for, and is checked as values from a config are.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from secateur import recipes
from secateur._utils import distributed, hub
from secateur.cli.flags import Flag, extra
from secateur.errors import InputError, SecateurError
from secateur.recipes import Option
from secateur.vocabulary import Budget

__all__ = ["Command"]

_HELP = {
    "text": "the column of texts.",
    "label": "the column of classes, or of an .npz file the array (`labels` first); '' for none.",
}
"""Explanations of parameters that share one in docstrings."""
_PUSH = (
    extra("push_to_hub", "str", "upload the model to this repository of the Hub.", metavar="OWNER/NAME"),
    extra("public", "bool", "a new repository is for everybody; private if not given."),
)
_TRUST = (
    "pass trust_remote_code=True if you trust it",
    "no command runs it; take auto_map out of its config.json to have transformers' own class of that type",
)
"""An error's advice to Python, and to who types a command."""
_METAVARS = {"budget": "MEASURE=AMOUNT", "sizes": "LOW,HIGH", "config": "FILE"}


@dataclass(frozen=True, slots=True)
class Command:
    """What a command does, with which flags.

    Args:
        execute: takes settings by the names of parameters; its docstring is the command's help. It may return the
            folder that it wrote, else that is `out`.
        functions: whose parameters the flags are, by their names in full, such as "secateur.run".
        arguments: parameters that stand on the command line without a flag.
        words: parameter -> its flag, where that is not --name.
        help: parameter -> explanation, where the docstring speaks to Python.
        metavars: parameter -> what the help shows for its value.
        again: parameters that are lists of texts, each given by a flag of its own.
        without: parameters that have no flag.
        more: flags beside those.
        recipe_flags: from the words of a command line to the flags of the recipe that they name, and the help's text
            about it.
        needed: what has to be given: how the command line calls it -> parameter. A dry run needs no `out`.
        example: a command line that gives it.
        config: what --config is; none if empty.
        configured: from a config's path and what was typed to settings, by its name in full; the keys are the flags'
            if empty.
        adapt: changes what was typed, before a config is read.
        complete: adds what need not be given to what was typed or stands in a config.
        pushes: whether it writes a model, which can be pushed to the Hub.
        check_budget: reads a budget, and says what is wrong with one in the words of what is cut.
    """

    execute: Callable[[dict[str, Any]], Path | None]
    functions: Sequence[str] = ()
    arguments: Collection[str] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    help: Mapping[str, str] = field(default_factory=dict)
    metavars: Mapping[str, str] = field(default_factory=dict)
    again: Collection[str] = ()
    without: Collection[str] = ()
    more: Sequence[Flag] = ()
    recipe_flags: Callable[[Sequence[str]], tuple[Sequence[Flag], str]] = lambda words: ((), "")
    needed: Mapping[str, str] = field(default_factory=dict)
    example: str = ""
    config: str = "a run.yaml with the same keys; flags win over it."
    configured: str = ""
    adapt: Callable[[dict[str, Any]], None] = lambda typed: None
    complete: Callable[[dict[str, object]], None] = lambda typed: None
    pushes: bool = False
    check_budget: Callable[[str], Budget] = Budget.parse

    def callback(self, line: Sequence[str] | None) -> Callable[..., None]:
        """A function with the parameters that typer is to read, by the words after the command.

        Without any parameters where `line` is None: the command is not the one that is asked for.
        """
        flags, about = list[Flag](), ""
        if line is not None:
            own, (further, about) = self.flags(), self.recipe_flags(line)
            taken = {flag.option.name for flag in own}
            flags = [*own, *(flag for flag in further if flag.option.name not in taken)]

        def call(**typed: Any) -> None:
            given = {flag.option.name: (flag, typed[flag.option.name]) for flag in flags}
            try:
                self.run({name: flag.value(text) for name, (flag, text) in given.items() if text not in (None, [])})
            except SecateurError as error:
                error.args = (_with_flags(_blame(str(error), given), flags),)
                raise

        parameters = [flag.parameter() for flag in flags]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        call.__doc__ = (inspect.getdoc(self.execute) or "") + (f"\n\n{about}" if about else "")
        return call

    def flags(self) -> list[Flag]:
        """Flags of the functions, read from their text, and the further ones."""
        options: dict[str, Option] = {}
        for function in self.functions:
            for option in recipes.parameters(function):
                if option.name not in self.without:
                    options.setdefault(option.name, option)
        words = {name: self.words.get(name, f"--{name.replace('_', '-')}") for name in options}
        help, metavars = {**_HELP, **self.help}, {**_METAVARS, **self.metavars}
        flags = []
        for name, option in options.items():
            text = help.get(name) or _in_flags(option.help, words)
            argument = name in self.arguments
            metavar = metavars.get(name, name.upper() if argument else "")
            flags.append(Flag(replace(option, help=text), "" if argument else words[name], metavar, name in self.again))
        flags += [extra("config", "str", self.config, metavar="FILE")] if self.config else []
        return [*flags, *self.more, *(_PUSH if self.pushes else [])]

    def run(self, typed: dict[str, Any]) -> None:
        """Do what the command does, by what was typed and what a config says as well."""
        for budget in [typed["budget"]] if isinstance(typed.get("budget"), str) else typed.get("budget", ()):
            self.check_budget(budget)  # before torch takes its seconds to load
        self.adapt(typed)
        repository, public = typed.pop("push_to_hub", None), typed.pop("public", False)
        if public and not repository:
            raise InputError("--public is of a repository: give --push-to-hub OWNER/NAME")
        if repository:
            hub.check_id(repository)  # before hours of work
        if self.config and (config := typed.pop("config", None)):
            typed = self.read(config, typed)
        if typed.get("dry_run"):
            typed.setdefault("out", "")
        self.complete(typed)
        if missing := [word for word, name in self.needed.items() if name not in typed]:
            raise InputError(f"{self.example.split()[1]} needs {', '.join(missing)}: say for example {self.example}")
        if repository and not isinstance(typed.get("budget", ""), str) and len(typed["budget"]) > 1:
            raise InputError(f"--push-to-hub {repository} holds one model, and there are several budgets: give one")
        missed: typer.Exit | None = None
        try:
            place = self.execute(typed)
        except typer.Exit as stop:  # a budget that was missed has a model all the same
            place, missed = None, stop
        if repository and not typed.get("dry_run") and distributed.index() == 0:
            folder = Path(place or typed["out"])
            for file, name in hub.list_names(folder).items():
                print(f"note: {file} goes along and names {name}: give its Hub id where others should not read that")
            print(f"pushed  {hub.push(folder, repository, public=public)}")
        if missed is not None:
            raise missed

    def read(self, config: str, typed: dict[str, Any]) -> dict[str, Any]:
        """The settings in a config, where those that were typed do not say otherwise."""
        module, _, name = (self.configured or self.functions[0]).rpartition(".")
        function = getattr(importlib.import_module(module), name)
        if self.configured:
            return dict(function(config, typed))
        from secateur.runs import configs

        flags = {flag.option.name: flag for flag in self.flags()}
        given = configs.read(config, name, function, typed, more=lambda _: flags, key=next(iter(self.arguments)))
        return {key: flags[key].value(value) if isinstance(value, str) else value for key, value in given.items()}


def _with_flags(text: str, flags: Sequence[Flag]) -> str:
    """An error that speaks to Python, with --name VALUE in place of name=VALUE, and --no-name of name=False.

    What names the flag as well, "name=True (--name)", stays, and so do numbers, calls, and what a run on disk was told.
    What no command has a flag for is said in other words.
    """
    for flag in flags:
        if flag.is_switch:
            for value, words in ((True, flag.words), (False, f"--no-{flag.words[2:]}")):
                text = re.sub(rf"(?<![\w(]){flag.option.name}={value}\b(?! \(--)", words, text)
    words_of = {flag.option.name: flag.words for flag in flags if flag.words and not flag.is_switch}

    def say(match: re.Match[str]) -> str:
        if match["needed"] in words_of:
            return words_of[match["needed"]]
        return f"{words_of[match['name']]} " if match["name"] in words_of else match[0]

    return _ASSIGNED.sub(say, text).replace(*_TRUST)


_ASSIGNED = re.compile(
    r"\w\([^()]*\)|\b(?:run|built) with [^:]*|the option '(?P<needed>\w+)'"
    r"|(?<![\w.,/?&'\"=-])(?P<name>[a-z]\w*)=(?!True\b|False\b|None\b)(?=[A-Za-z])(?!\S* \(--)"
)
"""An option and its value in an error, or what holds such and is left as it is."""


def _blame(text: str, given: Mapping[str, tuple[Flag, object]]) -> str:
    """An error about a tokenizer, with the flag that it was taken from where that was not --tokenizer."""
    refused = re.match(r"tokenizer '([^']+)' is ", text)
    if refused is None or given.get("tokenizer", (None, None))[1] is not None:
        return text
    words = [flag.words for flag, typed in given.values() if flag.words and typed == refused[1]]
    return text.replace(f"tokenizer '{refused[1]}'", f"{words[0]} {refused[1]}", 1) if len(words) == 1 else text


def _in_flags(text: str, words: Mapping[str, str]) -> str:
    """An explanation of a docstring, with flags in place of the names of parameters."""
    text = re.sub(r"`(\w+)`", lambda match: words.get(match[1], match[0]), text)
    return text.replace("if None", "if not given")
