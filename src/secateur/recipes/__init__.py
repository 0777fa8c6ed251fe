"""ONE PUBLISHED METHOD PER FILE, in family folders. The folder is the registry: file = function = command line name.

A recipe opens with a literal `CARD = {...}`; cards and options are read from its text, never by importing it. Other
packages add theirs by entry points of the group `secateur.recipes`: the name, and "module:function" of that name.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from secateur.errors import UnknownRecipeError

__all__ = ["Option", "cards", "describe", "find", "read_options", "signature", "subject", "training"]

_CARD = re.compile(r"^CARD\b[^=]*=\s*(\{.*?^\})", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a recipe: its name, default value, annotation in full, and the line that explains it."""

    name: str
    default: Any
    annotation: str
    help: str


def cards() -> dict[str, dict[str, str]]:
    """Recipe name -> its card, in alphabetical order."""
    found: dict[str, dict[str, str]] = {}
    for name, path in _files().items():
        match = _CARD.search(path.read_text(encoding="utf-8"))
        if match:
            found[name] = {"family": path.parent.name, **ast.literal_eval(match[1])}
    return dict(sorted(found.items()))


@functools.lru_cache
def find(name: str) -> Callable[..., Iterator[Any]]:
    """The recipe function called `name`.

    Raises:
        UnknownRecipeError: no such recipe; names the nearest.
    """
    path = _locate(name)
    own = path.is_relative_to(Path(__file__).parent)
    module = f"{__name__}.{path.parent.name}.{name}" if own else _entry_points()[name].module
    function: Callable[..., Iterator[Any]] = getattr(importlib.import_module(module), name)
    return function


def signature(name: str) -> list[Option]:
    """The options of the recipe called `name`, read from its file.

    Raises:
        UnknownRecipeError: no such recipe; names the nearest.
    """
    return read_options(_locate(name).read_text(encoding="utf-8"), name)


def subject(name: str) -> str:
    """What the recipe called `name` cuts, as the annotation of its first parameter is written."""
    first, *_ = _function(_locate(name).read_text(encoding="utf-8"), name).args.args
    return ast.unparse(first.annotation) if first.annotation else ""


def training(name: str) -> list[Option]:
    """The options of `train` in the file of the recipe called `name`: none where it trains no model of its own."""
    source = _locate(name).read_text(encoding="utf-8")
    return read_options(source, "train") if re.search(r"^def train\(", source, re.MULTILINE) else []


def describe(name: str) -> str:
    """The docstring of the recipe called `name`, read from its file."""
    return ast.get_docstring(_function(_locate(name).read_text(encoding="utf-8"), name)) or ""


def read_options(source: str, name: str) -> list[Option]:
    """The keyword-only arguments of function `name` in `source`, explained by the `Args:` of its docstring."""
    function = _function(source, name)
    explained, aliases = _arguments(ast.get_docstring(function) or ""), _aliases(source)
    texts = any(argument.arg.rpartition("_")[2] == "length" for argument in function.args.kwonlyargs)
    found = list[Option]()
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        name, written = argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""
        if isinstance(default, ast.Call):
            for option in _fields(source, default):
                flag = "train_batch" if option.name == "batch" and texts else option.name
                found.append(replace(option, name=flag, help=explained.get(flag, option.help)))
            if written == "Training":
                found.append(Option(name, "", "str | Sequence[str]", explained.get(name, _TRAINING)))
            continue
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        found.append(Option(name, value, aliases.get(written, written), explained.get(name, "")))
    return found


_TRAINING = "more settings of the training loop, such as accumulate=4,precision=bf16,patience=3,trackers=wandb."


def _fields(source: str, default: ast.Call) -> list[Option]:
    """The options that a default such as `Training(steps=1000)` names, explained where its class is written."""
    named = {str(one.arg): ast.literal_eval(one.value) for one in default.keywords}
    fields = _read_fields(source, ast.unparse(default.func))
    values = {name: named.get(name, value) for name, (value, *_) in fields.items()}
    return [Option(name, value, *fields[name][1:]) for name, value in values.items() if value is not None]


def _read_fields(source: str, kind: str) -> dict[str, tuple[Any, str, str]]:
    """Field -> its default, annotation and explanation, of a class that `source` defines or imports."""
    module = next(
        (
            node.module
            for node in ast.parse(source).body
            if isinstance(node, ast.ImportFrom) and node.module and kind in [alias.name for alias in node.names]
        ),
        None,
    )
    if module is not None:
        source = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    defined = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == kind)
    fields = dict[str, tuple[Any, str, str]]()
    for base in defined.bases:
        fields |= _read_fields(source, ast.unparse(base))
    for node, after in zip(defined.body, [*defined.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            value, annotation = ast.literal_eval(node.value), ast.unparse(node.annotation)
            fields[node.target.id] = value, annotation, " ".join(str(text).split())
    return fields


def _aliases(source: str) -> dict[str, str]:
    """Name -> the type that a line ``Name = Literal[...]`` at the top of a module calls so."""
    return {
        node.targets[0].id: ast.unparse(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Subscript)
    }


def _files() -> dict[str, Path]:
    """Name -> file: of other packages, then of this one."""
    own = {path.stem: path for path in Path(__file__).parent.glob("*/*.py") if not path.name.startswith("_")}
    others = {name: _file_of(point.module) for name, point in _entry_points().items()}
    return {**{name: path for name, path in others.items() if path is not None}, **own}


def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=__name__)}


def _file_of(module: str) -> Path | None:
    """The file of a module, found without importing it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py") if rest else Path(spec.origin)
    return path if path.is_file() else None


def _locate(name: str) -> Path:
    known = cards()
    if name in known:
        return _files()[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UnknownRecipeError(f"no recipe is called {name!r}: {hint}")


def _function(source: str, name: str) -> ast.FunctionDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise UnknownRecipeError(f"the recipe {name!r} has no function of that name")


def _arguments(docstring: str) -> dict[str, str]:
    """Argument -> explanation, from the `Args:` section of a docstring."""
    match = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", match[1]) if match else []:
        name, _, text = entry.strip().partition(":")
        found[name.strip("* ")] = " ".join(text.split())
    return found
