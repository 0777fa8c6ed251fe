"""Names of a package whose modules are imported when a name is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

__all__ = ["load_name"]


def load_name(package: str, places: Mapping[str, str], name: str) -> object:
    """What a package's `__getattr__` gives for `name`, which stands in its module `places[name]`, or is one if "".

    Raises `AttributeError` for a name without a place.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if not places[name]:
        return importlib.import_module(f"{package}.{name}")
    return getattr(importlib.import_module(f"{package}.{places[name]}"), name)
