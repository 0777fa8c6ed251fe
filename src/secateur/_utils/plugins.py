"""Functions a user wrote: `file.py:function`, or `package.module:function`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import InputError, SecateurError

__all__ = ["function", "line", "names_function", "network"]

_SAID = 200
"""Characters of what somebody else's error says that fit into a line."""


def function(name: str) -> Callable[..., Any]:
    """The function `name` points to. It runs the user's own code, so only a name the user gave may come here.

    As in a script, a file imports what stands beside it; imports inside of its functions are too late for that.
    What goes wrong when it is called is an `InputError` too, with its name and signature as they were written.

    Raises `InputError` when the file, the module or the function is not there, or the file fails.
    """
    own = _load_function(name)

    @functools.wraps(own)
    def call(*given: object, **how: object) -> Any:
        try:
            return own(*given, **how)
        except SecateurError:
            raise
        except Exception as error:
            raise InputError(f"{name} failed: {line(error)}") from error

    return call


def names_function(source: object) -> bool:
    """Whether it is such a name, and no path of what is there."""
    return isinstance(source, str) and ":" in source and not Path(source).exists()


def line(error: Exception) -> str:
    """What kind of error it is, and how what it says begins, in a line: torch may add a page of advice."""
    said = " ".join(str(error).split())
    said = said if len(said) <= _SAID else f"{said[:_SAID]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _load_function(name: str) -> Callable[..., object]:
    """Import the user's function."""
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
            with _import_beside(path):
                spec.loader.exec_module(module)
        except Exception as error:
            raise InputError(f"{name!r}: {where} can't be run: {line(error)}") from error
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


@contextmanager
def _import_beside(path: Path) -> Iterator[None]:
    """Let the file import what stands in its folder, as in a script."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # The file may have changed the path itself: only what was put here goes, and only one of it.
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _seed_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's code may use it
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def network(name: str) -> tuple[nn.Module, Any]:
    """What the user's function `name`, "file.py:function" or "package.module:function", gives: (model, example inputs).

    The function returns the model, or the model and the inputs to call it with; without them the inputs are None. The
    generators of Python, NumPy and torch are seeded for it, and left as they were, so that weights which it draws
    without a seed of its own are the same in the next call: a run is resumed by the same command.

    Raises `InputError` for a function that is not there, fails, or returns something else.
    """
    make = _load_function(name)
    try:
        with _seed_generators():
            found = make()
    except Exception as error:
        raise InputError(f"{name} failed to build a model: {line(error)}") from error
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(found).__name__}: expected a torch.nn.Module, or (module, inputs)")
    return model, inputs
