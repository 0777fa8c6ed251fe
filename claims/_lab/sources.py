"""Digests of the code that a figure depends on: a file, and all of ours that it imports, directly or not.

Comments, docstrings and blank lines do not count. Imports inside functions do, and recipes that a claims file names,
since they are called by name; imports for type checkers do not. Of a package's `__init__`, what is asked for counts and
not what else it has: `from secateur.subjects import open_page` leads to the module of pages alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

from claims import ROOT

__all__ = ["digest", "files"]

PLACES = {"secateur": ROOT / "src", "claims": ROOT}
HELPERS = ROOT / "tests"
"""Where modules of other names are looked for: fetchers of data and small networks, which the tests use as well."""
LEFT_OUT = ("claims", "claims._lab.claim", "claims._lab.rows", "claims._lab.sources", "claims._lab.verdict")
"""What judges and stores figures does not make them."""


def digest(*modules: str) -> str:
    """SHA-256, 16 digits, of the code of `modules` and of all that they import of secateur and of the claims."""
    total = hashlib.sha256()
    for name in sorted(files(*modules)):
        total.update(f"{name}\0{_read(name)[0]}\0".encode())
    return total.hexdigest()[:16]


def files(*modules: str) -> dict[str, Path]:
    """Module -> file, of `modules` and of all that they import of ours."""
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


def _path(name: str) -> Path | None:
    root = PLACES.get(name.partition(".")[0], HELPERS)
    base = root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _read(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(code of a module without comments, docstrings and blank lines, what it imports: modules, and names of them)."""
    path = _path(name)
    assert path is not None, name
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    dropped: set[int] = set()
    unused = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    imported: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Constant) and name.startswith("claims.") and node.value in _recipes():
            imported.append((_recipes()[node.value], ""))
        elif id(node) in unused:
            continue
        elif isinstance(node, ast.Import):
            imported += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported += [(node.module, alias.name) for alias in node.names]
    lines = (line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in dropped)
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#")), tuple(imported)


def _is_for_types(node: ast.AST) -> bool:
    """Whether it is a block that only type checkers see."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
