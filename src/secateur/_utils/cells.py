"""A progress bar of rich as an output of a notebook's cell."""

from __future__ import annotations

import importlib
import time
from typing import Any

from rich.progress import Progress, TaskID

__all__ = ["CellProgress"]

_EVERY = 0.2
"""Seconds between two looks of a bar, each of which is a message to the page."""


class CellProgress(Progress):
    """A bar that is displayed once, and replaced now and then.

    Rich's own is a widget, and draws nothing where ipywidgets is not installed, as in many kernels.
    """

    _output: Any = None
    """IPython's handle of what is displayed."""
    _last = 0.0

    def start(self) -> None:
        """Put the bar below the cell, unless it is there."""
        if self._output is None:
            self._output = importlib.import_module("IPython.display").display(self, display_id=True)

    def stop(self) -> None:
        """Show the last state, or nothing any more."""
        if self._output is not None and self.live.transient:
            self._output.update({"text/plain": ""}, raw=True)
        elif self._output is not None:
            self._output.update(self)

    def refresh(self) -> None:
        """Show the present state, if that was not done just now."""
        if self._output is not None and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._output.update(self)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich does, and at once to be seen."""
        super().advance(task_id, advance)
        self.refresh()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich does, and at once to be seen."""
        super().update(task_id, **changes)
        self.refresh()
