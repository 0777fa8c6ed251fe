"""One published method per file, in folders by family. The folder is the registry: file = function = command line name.

A recipe opens with a literal `CARD = {...}`; cards and options are read from its text, never by importing it. Installed
packages add recipes by entry points of the group `secateur.recipes`, each a name and "module:function".
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur._utils import entry_points
from secateur.errors import UnknownRecipeError
from secateur.vocabulary import Result

__all__ = [
    "Option",
    "budgets",
    "cards",
    "data_kind",
    "describe",
    "describe_bounds",
    "find",
    "parameters",
    "read_options",
    "signature",
    "subject",
    "training",
]

_CARD = re.compile(r"^CARD\b[^=]*=\s*(\{.*?^\})", re.MULTILINE | re.DOTALL)
_TRAINING = "more settings of the training loop, such as accumulate=4,precision=bf16,patience=3,trackers=wandb."
_BOUNDS = {
    "Gt": "above {}",
    "Ge": "at least {}",
    "Lt": "below {}",
    "Le": "at most {}",
    "MultipleOf": "that is a multiple of {}",
    "MinLen": "at least {} of them",
    "MaxLen": "at most {} of them",
}
"""How bounds of annotated_types are said."""


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a recipe.

    name, default, annotation: as in the signature, the annotation in full but for bounds. help: the line of the
    docstring that explains it. bounds: such as "above 0 and at most 1".
    """

    name: str
    default: Any
    annotation: str
    help: str
    bounds: str = ""


_VALIDATING = [
    Option(
        "patience",
        None,
        "int | None",
        "stop after so many evaluations on a part of the data without a new best, whose weights are kept.",
    ),
    Option("validation", None, "float | None", "share of the training data to judge by, and not to learn from."),
]
"""Flags of every recipe that trains; run.yaml has them among the settings of `training`."""


def cards() -> dict[str, dict[str, str]]:
    """Recipe name -> its card, in alphabetical order."""
    found: dict[str, dict[str, str]] = {}
    for name, place in _places().items():
        card = _read_card(place.text())
        if card:
            found[name] = {"family": place.path.parent.name, **card}
    return dict(sorted(found.items()))


@functools.lru_cache(256)
def _read_card(source: str) -> dict[str, str]:
    match = _CARD.search(source)
    return ast.literal_eval(match[1]) if match else {}


@functools.lru_cache(256)
def _parse(source: str) -> ast.Module:
    """The tree of a module's text, for all who read it: nobody changes it."""
    return ast.parse(source)


@functools.lru_cache
def find(name: str) -> Callable[..., Iterator[Result]]:
    """The recipe function called `name`.

    Raises:
        UnknownRecipeError: no such recipe; names the nearest.
    """
    place = _locate(name)
    function: Callable[..., Iterator[Result]] = getattr(importlib.import_module(place.module), place.function)
    return function


def signature(name: str) -> list[Option]:
    """The options of the recipe called `name`, read from its file.

    Raises:
        UnknownRecipeError: no such recipe; names the nearest.
    """
    place = _locate(name)
    return list(_read_signature(place.text(), place.function))


@functools.lru_cache(256)
def _read_signature(source: str, function: str) -> tuple[Option, ...]:
    names = _Names(_parse(source))
    options = read_options(source, function)
    return tuple(replace(option, annotation=names.write_out(option.annotation)) for option in options)


def subject(name: str) -> str:
    """What the recipe called `name` cuts, as the annotation of its first parameter is written."""
    place = _locate(name)
    first, *_ = _function(_parse(place.text()), place.function).args.args
    return ast.unparse(first.annotation) if first.annotation else ""


def data_kind(name: str) -> str:
    """What the recipe called `name` reads, as the annotation of its second parameter is written."""
    place = _locate(name)
    for second in _function(_parse(place.text()), place.function).args.args[1:2]:
        return ast.unparse(second.annotation) if second.annotation else ""
    return ""


def budgets(name: str) -> str:
    """Which budgets the recipe called `name` takes, as its docstring says it; "" where it says nothing."""
    return _arguments(describe(name)).get("budgets", "")


def training(name: str) -> list[Option]:
    """The options of `train` in the file of the recipe called `name`: none where it trains no model of its own."""
    source = _locate(name).text()
    return read_options(source, "train") if re.search(r"^def train\(", source, re.MULTILINE) else []


def describe(name: str) -> str:
    """The docstring of the recipe called `name`, read from its file."""
    place = _locate(name)
    return ast.get_docstring(_function(_parse(place.text()), place.function)) or ""


def parameters(function: str) -> list[Option]:
    """All named parameters of a function of secateur, in order, read from the text of the module that defines it.

    Args:
        function: its name in full, such as "secateur.run"; what a module imports is followed to its own module.
    """
    module, _, name = function.rpartition(".")
    source = _text_of(module)
    home = _home_of(_parse(source), name)
    return parameters(f"{home}.{name}") if home else read_options(source, name, by_position=True)


def read_options(source: str, name: str, *, by_position: bool = False) -> list[Option]:
    """The keyword-only parameters of function `name` in `source`, explained by the `Args:` of its docstring.

    One whose default is a value such as `Asking(calls=3)` is an option for each of its fields, and
    `Training(steps=1000)` for each of the fields that it names.

    by_position: the other parameters too, before them.
    """
    return list(_read_options(source, name, by_position))


@functools.lru_cache(256)
def _read_options(source: str, name: str, by_position: bool) -> tuple[Option, ...]:
    module = _parse(source)
    function, types = _function(module, name), _Types(module)
    explained = _arguments(ast.get_docstring(function) or "")
    arguments, defaults = [*function.args.kwonlyargs], [*function.args.kw_defaults]
    if by_position:
        required = len(function.args.args) - len(function.args.defaults)
        arguments = [*function.args.args, *arguments]
        defaults = [*[None] * required, *function.args.defaults, *defaults]
    texts = any(argument.arg.rpartition("_")[2] == "length" for argument in arguments)
    options = list[Option]()
    for argument, default in zip(arguments, defaults, strict=True):
        annotation, bounds = types.read(argument.annotation)
        help = explained.get(argument.arg, "")
        if isinstance(default, ast.Call):
            for option in _fields(module, default):
                flag = "train_batch" if option.name == "batch" and texts else option.name
                options.append(replace(option, name=flag, help=explained.get(flag, option.help)))
            if annotation == "Training":
                options += [one for one in _VALIDATING if one.name not in [option.name for option in options]]
                options.append(Option(argument.arg, "", "str | Sequence[str]", help or _TRAINING))
            continue
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        options.append(Option(argument.arg, value, annotation, help, bounds))
    return tuple(options)


def describe_bounds(limits: Iterable[tuple[str, Any]]) -> str:
    """In words what (name, value) pairs of annotated_types say: [("Gt", 0), ("Le", 1)] is "above 0 and at most 1"."""
    return " and ".join(_BOUNDS[name].format(value) for name, value in limits if name in _BOUNDS)


class _Types(ast.NodeTransformer):
    """Annotations with names such as ``Name = Literal[...]`` written out, and their bounds taken aside."""

    def __init__(self, module: ast.Module) -> None:
        self.aliases = {
            node.targets[0].id: node.value
            for node in module.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Subscript)
        }
        self.limits: list[tuple[str, Any]] = []

    def read(self, annotation: ast.expr | None) -> tuple[str, str]:
        """The annotation as text, without bounds, and these in words."""
        self.limits = []
        text = ast.unparse(self.visit(ast.parse(ast.unparse(annotation)))) if annotation else ""
        return text, describe_bounds(self.limits)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name for a type is that type."""
        return self.visit_Subscript(copy.deepcopy(self.aliases[node.id])) if node.id in self.aliases else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """Of ``Annotated[float, Gt(0)]`` the float."""
        if ast.unparse(node.value) != "Annotated" or not isinstance(node.slice, ast.Tuple):
            return self.generic_visit(node)  # type: ignore[return-value]
        inner, *others = node.slice.elts
        for one in others:
            if isinstance(one, ast.Call) and one.args:
                self.limits.append((ast.unparse(one.func), ast.literal_eval(one.args[0])))
        return self.visit(inner)  # type: ignore[no-any-return]


class _Names(ast.NodeTransformer):
    """Annotations with names that a module imports for ``Literal[...]``, such as ``weights.Scope``, written out."""

    def __init__(self, module: ast.Module) -> None:
        self.module = module

    def write_out(self, annotation: str) -> str:
        """The annotation with the choices in place of such names."""
        return ast.unparse(self.visit(ast.parse(annotation)))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """What ``from secateur.methods.updates import Scope`` brings."""
        return self._choices(_home_of(self.module, node.id), node.id) or node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """What is in a module that ``from secateur.select import weights`` brings."""
        name = ast.unparse(node.value)
        home = _home_of(self.module, name)
        return self._choices(home and f"{home}.{name}", node.attr) or node

    def _choices(self, home: str | None, name: str) -> ast.expr | None:
        """What `name` stands for in the module `home` of secateur; None where that is no list of choices."""
        if home is None or home.partition(".")[0] != __name__.partition(".")[0]:
            return None
        for node in _parse(_text_of(home)).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                names = node.targets if isinstance(node, ast.Assign) else [node.target]
                if name in map(ast.unparse, names) and ast.unparse(node.value).startswith("Literal["):
                    return node.value
        return self._choices(_home_of(_parse(_text_of(home)), name), name)


def _fields(module: ast.Module, default: ast.Call) -> list[Option]:
    """The options of a default such as `Training(steps=1000)`, explained where its class is written."""
    values = {str(one.arg): ast.literal_eval(one.value) for one in default.keywords}
    fields = _read_fields(module, ast.unparse(default.func)).values()
    options = [replace(field, default=values.get(field.name, field.default)) for field in fields]
    named = ast.unparse(default.func) == "Training"
    return [option for option in options if option.default is not None or not named]


def _read_fields(module: ast.Module, kind: str) -> dict[str, Option]:
    """Field -> option, of a class that `module` defines or imports: its own fields, after those of its bases."""
    home = _home_of(module, kind)
    module = _parse(_text_of(home)) if home else module
    defined = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind)
    types, names, options = _Types(module), _Names(module), dict[str, Option]()
    for base in defined.bases:
        options |= _read_fields(module, ast.unparse(base))
    for node, after in zip(defined.body, [*defined.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            annotation, bounds = types.read(node.annotation)
            name, value = node.target.id, ast.literal_eval(node.value)
            options[name] = Option(name, value, names.write_out(annotation), " ".join(str(text).split()), bounds)
    return options


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a recipe is: its file, the module's name, and the function."""

    path: Path
    module: str
    function: str

    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def _places() -> dict[str, _Place]:
    places = {name: _Place(*where) for name, where in entry_points.locate("secateur.recipes").items()}
    for path in sorted(Path(__file__).parent.glob("*/*.py")):
        if not path.name.startswith("_"):
            places[path.stem] = _Place(path, f"{__name__}.{path.parent.name}.{path.stem}", path.stem)
    return places


def _locate(name: str) -> _Place:
    known = list(cards())
    if name in known:
        return _places()[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UnknownRecipeError(f"no recipe is called {name!r}: {hint}")


@functools.lru_cache(256)
def _text_of(module: str) -> str:
    """The text of a module of secateur, by its name in full."""
    root = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    path = root / "__init__.py" if root.is_dir() else root.with_suffix(".py")
    return path.read_text(encoding="utf-8")


def _home_of(module: ast.Module, name: str) -> str | None:
    """The module from which `name` is imported."""
    return _imports(module).get(name)


@functools.lru_cache(256)
def _imports(module: ast.Module) -> dict[str, str]:
    """Name -> the module from which it is imported, the first where there are several."""
    found = dict[str, str]()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, node.module)
    return found


def _function(module: ast.Module, name: str) -> ast.FunctionDef:
    for node in reversed(module.body):  # what stands before may be overloads of it
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise UnknownRecipeError(f"the recipe {name!r} has no function of that name")


def _arguments(docstring: str) -> dict[str, str]:
    """Argument -> explanation, from the `Args:` section of a docstring."""
    match = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", match[1]) if match else []:
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip("* ")] = " ".join(text.split())
    return found
