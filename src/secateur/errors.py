"""Every error secateur raises on purpose.

    SecateurError                 one clear line; the CLI prints it and exits with `exit_code`
    ├── InputError                something given is not what was expected
    │   ├── ModelError            a checkpoint: missing, damaged, pickled, unknown, NaN in weights
    │   ├── DataError             a text, table or cache: missing, empty, too short, not UTF-8
    │   ├── BudgetError           a budget that says nothing sensible ("speedup=0.5x")
    │   └── UnknownRecipeError    no such recipe; names the nearest
    ├── UnsupportedError          a sensible wish that this version can't grant; says what it can
    ├── InfeasibleError           a budget below what is reachable; says what is
    ├── MissingExtraError         an optional library is not installed; names the extra
    ├── NumericalError            NaN or infinity in a loss, a score or a Hessian; says where
    ├── ServerError               a server that is down, slow, refuses or answers nonsense
    ├── MeasurementError          the clock or the sample is too poor to answer
    └── RunError                  a run directory: in use, damaged, of another run, disk full

    MendedWarning                 no error: something on disk was damaged, and is made anew
    DataWarning                   no error: a part of the data is passed over, or cut
    TrainingWarning               no error: training goes on without an option that can't be had

Each message says what was given, what was expected and what to do, in one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BudgetError",
    "DataError",
    "DataWarning",
    "InfeasibleError",
    "InputError",
    "MeasurementError",
    "MendedWarning",
    "MissingExtraError",
    "ModelError",
    "NothingFoundError",
    "NumericalError",
    "RunError",
    "SecateurError",
    "ServerError",
    "TrainingWarning",
    "UnknownRecipeError",
    "UnsupportedError",
    "opening",
]


class SecateurError(Exception):
    """Base of all errors raised on purpose; its text is one line for a person."""

    exit_code = 2


class InputError(SecateurError):
    """Something given is not what was expected."""


class ModelError(InputError):
    """A checkpoint that is missing, damaged, pickled or not finite."""


class DataError(InputError):
    """Text, tables or caches that are missing, empty, too short or unreadable."""


class NothingFoundError(DataError):
    """Data that hold nothing of what is looked for."""


class BudgetError(InputError):
    """A budget that can't be read or says nothing sensible."""


class UnknownRecipeError(InputError):
    """No recipe of that name."""


class UnsupportedError(SecateurError):
    """A sensible wish that this version can't grant."""


class InfeasibleError(SecateurError):
    """A budget that can't be met; `reachable` is the nearest that can (in the budget's own measure)."""

    def __init__(self, message: str, reachable: float | None = None) -> None:
        super().__init__(message)
        self.reachable = reachable


class MissingExtraError(SecateurError):
    """An optional library is not installed."""


class NumericalError(SecateurError):
    """NaN or infinity where a finite number was needed."""


class MeasurementError(SecateurError):
    """A measurement too poor to answer the question asked."""


class ServerError(SecateurError):
    """A server that gave no answer, or none of use, within the attempts allowed."""


class RunError(SecateurError):
    """A run directory that can't be used as asked."""


class MendedWarning(UserWarning):
    """Something on disk was damaged, and is made anew; no error, and one line for users of the command line."""


class DataWarning(UserWarning):
    """Some of the data is passed over, cut, or not understood; no error, and one line for users of the command line."""


class TrainingWarning(UserWarning):
    """Training goes on without an option that this model or machine can't have."""


@contextmanager
def opening(what: str, name: str) -> Iterator[None]:
    """Turn what a library says of a model that it can't open into one `InputError` that names it.

    A folder with a config holds a model: of that, `ModelError` tells what the library said.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if os.path.isfile(os.path.join(name, "config.json")):
            problem = " ".join(str(error).split())[:200]
            raise ModelError(f"{what} {name!r} can't be opened ({problem}): fetch the model again") from error
        there = "a folder without one" if os.path.isdir(name) else "no folder here, nor found on the Hub"
        raise InputError(f"{what} {name!r} is {there}: give a folder or a Hub id") from error
