"""Entry points of installed packages, and the files that they point to; nothing is imported."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

__all__ = ["locate", "values"]


def values(group: str) -> tuple[str, ...]:
    """What the entry points of a group point to, such as "package.module:Class"."""
    return _values(group, tuple(sys.path))


@functools.lru_cache
def _values(group: str, path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(point.value for point in importlib.metadata.entry_points(group=group))


def locate(group: str) -> dict[str, tuple[Path, str, str]]:
    """Name -> (file, module, attribute) of the entry points of a group, but for those whose file can't be found."""
    return _locate(group, tuple(sys.path))


@functools.lru_cache
def _locate(group: str, path: tuple[str, ...]) -> dict[str, tuple[Path, str, str]]:
    places = {}
    for point in importlib.metadata.entry_points(group=group):
        file = _file(point.module)
        if file is not None:
            places[point.name] = (file, point.module, point.attr)
    return places


def _file(module: str) -> Path | None:
    """The file of a module: only its outermost package is looked for by the import system, which imports it not."""
    outermost, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(outermost)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    paths = [Path(spec.origin)] if spec.origin and not rest else []
    for folder in spec.submodule_search_locations or () if rest else ():
        paths += [Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")]
    return next((path for path in paths if path.is_file()), None)
