"""Functions a user wrote: `file.py:function`, or `package.module:function`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.errors import InputError

__all__ = ["function"]


def function(name: str) -> Callable[..., Any]:
    """The function `name` points to. It runs the user's own code, so only a name the user gave may come here.

    Raises `InputError` when the file, the module or the function is not there, or the file fails.
    """
    where, colon, what = name.rpartition(":")
    if not colon or not where or not what:
        raise InputError(f"{name!r} names no function: write file.py:function or package.module:function")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise InputError(f"{name!r}: there is no file {where}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise InputError(f"{name!r}: {where} can't be run: {type(error).__name__}: {error}") from error
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise InputError(f"{name!r}: {error}") from error
    found = getattr(module, what, None)
    if not callable(found):
        raise InputError(f"{name!r}: {where} has no function {what}")
    result: Callable[..., Any] = found
    return result
