"""What is passed over or cut of data: said as it comes up, and kept for the evidence of the run that reads it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from secateur._utils import distributed
from secateur._utils.disk import atomic_write
from secateur.errors import DataWarning, RunError

__all__ = ["keep_notes", "keep_notes_in", "list_notes", "note"]


@dataclass
class _Notes:
    """Notes in the order in which they came up, each once, and the file that has them, too."""

    lines: dict[str, None] = field(default_factory=dict)
    file: Path | None = None

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines[line] = None
            self.write()

    def write(self) -> None:
        if self.file is not None:
            atomic_write(self.file, json.dumps(list(self.lines), indent=1))


_KEPT: ContextVar[_Notes | None] = ContextVar("kept", default=None)


def note(line: str) -> None:
    """Warn (`DataWarning`) of what is passed over or cut, and keep the line while `keep_notes` does."""
    warnings.warn(line, DataWarning, stacklevel=2)
    kept = _KEPT.get()
    if kept is not None:
        kept.add(line)


@contextmanager
def keep_notes() -> Iterator[None]:
    """Within the block, or the function that this decorates, `list_notes` has the notes that came up in it."""
    token = _KEPT.set(_Notes())
    try:
        yield
    finally:
        _KEPT.reset(token)


def keep_notes_in(file: Path) -> None:
    """From here on `keep_notes` keeps its notes in `file` as well, and counts those that stand there already.

    A run that goes on skips the steps that it has done, and with them the notes that came up there. Of several
    processes the first does so, as it writes the evidence. Raises `RunError` for a damaged file.
    """
    kept = _KEPT.get()
    if kept is None or distributed.index():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    except ValueError as error:
        raise RunError(f"{file} is damaged: delete it and run the same command again") from error
    kept.lines, kept.file = dict.fromkeys([*before, *kept.lines]), file
    if list(kept.lines) != before:
        kept.write()


def list_notes() -> tuple[str, ...]:
    """The notes since `keep_notes`, each once, and those of `keep_notes_in`; none outside of it."""
    kept = _KEPT.get()
    return () if kept is None else tuple(kept.lines)
