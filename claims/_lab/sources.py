"""Digests of the code that a figure depends on: a file, and all of ours that it imports, directly or not.

Comments, docstrings and blank lines do not count. Imports inside functions do, and recipes that a claims file names,
since they are called by name; imports for type checkers do not. Of a package's `__init__`, what is asked for counts and
not what else it has: `from secateur.subjects import open_page` leads to the module of pages alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from claims import ROOT

__all__ = ["digest", "files", "forget", "of_functions"]

PLACES = {"secateur": ROOT / "src", "claims": ROOT}
HELPERS = ROOT / "tests"
"""Where modules of other names are looked for: fetchers of data and small networks, which the tests use as well."""
LEFT_OUT = (
    "claims",
    "secateur",
    "secateur._utils.lazy",
    *(f"claims._lab.{name}" for name in ("claim", "ran", "rows", "sources", "verdict")),
)
"""What judges and stores figures does not make them, nor do lists of where names stand."""


def digest(*modules: str) -> str:
    """SHA-256, 16 digits, of the code of `modules` and of all that they import of secateur and of the claims."""
    total = hashlib.sha256()
    for name in sorted(files(*modules)):
        total.update(f"{name}\0{_read(name)[0]}\0".encode())
    return total.hexdigest()[:16]


def of_functions(module: str, names: Iterable[str]) -> str:
    """SHA-256, 16 digits, of functions named `file:name`, and of the constants and classes whose names they use.

    Constants and classes are looked for by name in the file of what uses them and, unless they are private, in those
    that it imports, as far as `module` reaches. Of the files where functions stand, also where they import what these
    use from, and what else runs on import. Words and layout do not count. What stands nowhere any more counts as empty.
    Not noticed: a method that overrides one of them from now on, a function that registers itself in its place.
    """
    asked = [name for name in names if ROOT / name.partition(":")[0] not in map(_path, LEFT_OUT)]
    modules = {path.relative_to(ROOT).as_posix(): name for name, path in files(module).items()}
    places = {*modules, *(name.partition(":")[0] for name in asked)}
    known = {file: _definitions(ROOT / file) for file in places if (ROOT / file).is_file()}
    found = {name: _function(known.get(name.partition(":")[0], _NOTHING), name.partition(":")[2]) for name in asked}
    waiting = [(name.partition(":")[0], part) for name in asked for part in name.partition(":")[2].split(".")[:-1]]
    waiting += [(name.partition(":")[0], word) for name, code in found.items() for word in code.uses]
    waiting += [(name.partition(":")[0], "") for name in found]
    homes: dict[str, list[str]] = {}
    for file, (_, kept) in known.items():
        for word in kept:
            homes.setdefault(word, []).append(file)
    done = set[tuple[str, str]]()
    while waiting:
        if (use := waiting.pop()) in done:
            continue
        done.add(use)
        user, word = use
        private = word[:1] in ("", "_") or user not in modules
        for file in homes.get(word, ()):
            name = f"{file}:{word}"
            reached = not private and file in modules and file in _reached(modules[user])
            if name not in found and (file == user or reached):
                found[name] = known[file][1][word].code
                waiting += [(file, ""), *((file, each) for each in found[name].uses)]
    uses: dict[str, set[str]] = {}
    for name, code in found.items():
        uses.setdefault(name.partition(":")[0], set()).update(code.uses)
    for file in uses.keys() & modules.keys():
        pairs = sorted(pair for pair in _read(modules[file])[1] if pair[1] in uses[file])
        found[f"{file}: imports"] = _Code(repr(pairs), frozenset())
    total = hashlib.sha256("".join(f"{name}\0{code.text}\0" for name, code in sorted(found.items())).encode())
    return total.hexdigest()[:16]


@functools.cache
def _reached(module: str) -> frozenset[str]:
    """The files, from the root, that what a module imports stands in."""
    paths = (_path(_find(*pair)) for pair in _read(module)[1])
    return frozenset(path.relative_to(ROOT).as_posix() for path in paths if path is not None)


@functools.cache
def files(*modules: str) -> dict[str, Path]:
    """Module -> file, of `modules` and of all that they import of ours; nobody changes it."""
    reached: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in reached or name in LEFT_OUT:
            continue
        reached[name] = path
        waiting += [_find(module, imported) for module, imported in _read(name)[1]]
    return reached


@functools.cache
def _find(module: str, name: str) -> str:
    """The module that `from module import name` leads to; `module` itself where the name is its own, or none."""
    if not name:
        return module
    if _path(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    if _is_package(module):
        for source in _names(module).get(name, []):
            return _find(source, name)
    return module


def _is_package(name: str) -> bool:
    path = _path(name)
    return path is not None and path.name == "__init__.py"


@functools.cache
def _names(package: str) -> dict[str, list[str]]:
    """Name -> the modules that a package imports it from, for type checkers too: so it says where lazy names stand."""
    path = _path(package)
    assert path is not None, package
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, []).append(node.module)
    return found


@functools.cache
def _recipes() -> dict[object, str]:
    """Name of a recipe -> its module."""
    files = (PLACES["secateur"] / "secateur" / "recipes").glob("*/*.py")
    return {file.stem: f"secateur.recipes.{file.parent.name}.{file.stem}" for file in files if file.stem[0] != "_"}


@functools.cache
def _path(name: str) -> Path | None:
    root = PLACES.get(name.partition(".")[0], HELPERS)
    base = root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


_Read: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


def _read(name: str) -> _Read:
    """(code of a module without comments, docstrings and blank lines, what it imports: modules, and names of them)."""
    path = _path(name)
    assert path is not None, name
    return _parse(path)[0]


@functools.cache
def _parse(path: Path) -> tuple[_Read, ast.Module]:
    """What `_read` says of a file, and its tree, out of which `_definitions` takes the docstrings."""
    text = path.read_text("utf-8")
    tree, named = ast.parse(text), path.is_relative_to(ROOT / "claims")
    nodes = list(ast.walk(tree))
    dropped: set[int] = set()
    unused = {id(node) for block in nodes if _is_for_types(block) for node in ast.walk(block)}
    imported: list[tuple[str, str]] = []
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Constant) and named and node.value in _recipes():
            imported.append((_recipes()[node.value], ""))
        elif id(node) in unused:
            continue
        elif isinstance(node, ast.Import):
            imported += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported += [(node.module, alias.name) for alias in node.names]
    lines = (line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in dropped)
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return (code, tuple(imported)), tree


def _is_for_types(node: ast.AST) -> bool:
    """Whether it is a block that only type checkers see."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class _Code(NamedTuple):
    """What a function, a constant or the head of a class says, and the names that it uses."""

    text: str
    uses: frozenset[str]


_GONE = _Code("", frozenset())


class _Nodes(list[ast.AST]):
    """What stands under one name, in its order, such as a property and its setter, or overloads."""

    @functools.cached_property
    def code(self) -> _Code:
        """What they say: asked of few of all that a file has."""
        inside = [part for node in self for part in ast.walk(node)]
        uses = {part.id for part in inside if isinstance(part, ast.Name)}
        uses |= {part.attr for part in inside if isinstance(part, ast.Attribute)}
        uses |= {part.name for part in inside if isinstance(part, ast.alias)}
        return _Code("".join(map(ast.dump, self)), frozenset(uses))


_Definitions: TypeAlias = tuple[dict[str, _Nodes], dict[str, _Nodes]]
_NOTHING: _Definitions = ({}, {})


def _function(known: _Definitions, name: str) -> _Code:
    return known[0][name].code if name in known[0] else _GONE


@functools.cache
def _definitions(path: Path) -> _Definitions:
    """(functions and methods, constants and classes without their methods) of a file, by name.

    Under "" what else runs when it is imported.
    """
    functions: dict[str, _Nodes] = {}
    constants: dict[str, _Nodes] = {}

    def visit(body: Sequence[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.setdefault(inside + node.name, _Nodes()).append(node)
            elif isinstance(node, ast.ClassDef):
                rest = [part for part in node.body if not isinstance(part, _BLOCKS)]
                constants[node.name] = _Nodes([*node.bases, *node.keywords, *node.decorator_list, *rest])
                visit(node.body, f"{inside}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign) and not inside:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}:
                    constants.setdefault(name, _Nodes()).append(node)
            elif not (
                inside or isinstance(node, ast.Import | ast.ImportFrom) or _is_words(node) or _is_for_types(node)
            ):
                constants.setdefault("", _Nodes()).append(node)

    visit(_without_words(_parse(path)[1]).body, "")
    return functions, constants


_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _without_words(tree: ast.Module) -> ast.Module:
    """The same file, the docstrings of its functions, its classes and their fields left out."""
    for block in ast.walk(tree):
        if isinstance(block, _BLOCKS):
            kept = [part for part in block.body if not _is_words(part)]
            block.body = kept or [ast.Pass()]
    return tree


def _is_words(node: ast.stmt) -> bool:
    """Whether it is a docstring, of a function or of the field above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def forget() -> None:
    """Read all files anew from here on: some have changed."""
    for cache in (_definitions, _find, _names, _parse, _path, _reached, _recipes, files):
        cache.cache_clear()
