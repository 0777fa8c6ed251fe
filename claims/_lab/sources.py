"""Digests of the code that a figure depends on: a file, and all of ours that it imports, directly or not.

Comments, docstrings and blank lines do not count. Imports inside functions do, and recipes that a claims file names,
since they are called by name; names that `secateur/__init__` loads on first use are no imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

from claims import ROOT

__all__ = ["digest", "files"]

PLACES = {"secateur": ROOT / "src", "claims": ROOT}
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
        waiting += _read(name)[1]
    return reached


@functools.cache
def _recipes() -> dict[object, str]:
    """Name of a recipe -> its module."""
    files = (PLACES["secateur"] / "secateur" / "recipes").glob("*/*.py")
    return {file.stem: f"secateur.recipes.{file.parent.name}.{file.stem}" for file in files if file.stem[0] != "_"}


def _path(name: str) -> Path | None:
    root = PLACES.get(name.partition(".")[0])
    if root is None:
        return None
    base = root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _read(name: str) -> tuple[str, tuple[str, ...]]:
    """(code of a module without comments, docstrings and blank lines, what it imports)."""
    path = _path(name)
    assert path is not None, name
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    dropped: set[int] = set()
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Constant) and name.startswith("claims.") and node.value in _recipes():
            imported.append(_recipes()[node.value])
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    lines = (line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in dropped)
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#")), tuple(imported)
