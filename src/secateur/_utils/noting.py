"""What is passed over or cut of data: said as it comes up, and kept for the evidence of the run that reads it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from secateur.errors import DataWarning

__all__ = ["keep_notes", "list_notes", "note"]

_KEPT: ContextVar[dict[str, None] | None] = ContextVar("kept", default=None)


def note(line: str) -> None:
    """Warn (`DataWarning`) of what is passed over or cut, and keep the line while `keep_notes` does."""
    warnings.warn(line, DataWarning, stacklevel=2)
    kept = _KEPT.get()
    if kept is not None:
        kept[line] = None


@contextmanager
def keep_notes() -> Iterator[None]:
    """Within the block, or the function that this decorates, `list_notes` has the notes that came up in it."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def list_notes() -> tuple[str, ...]:
    """The notes since `keep_notes`, each once; none outside of it."""
    return tuple(_KEPT.get() or ())
