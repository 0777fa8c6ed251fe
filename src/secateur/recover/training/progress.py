"""What training tells meanwhile: a bar on a terminal and in a notebook, else a line now and then."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from secateur._utils import bars

__all__ = ["LINE_EVERY", "Bar", "Lines", "show_progress"]

LINE_EVERY = 60.0
"""Seconds between lines where no bar is seen."""


class Lines:
    """What training says: lines on stderr, or nothing at all unless `wanted`; `Bar` draws it."""

    def __init__(self, wanted: bool, title: str, steps: int, done: int) -> None:
        self._wanted, self._title, self._steps, self._step = wanted, title, steps, done
        self._last = time.monotonic()

    def show(self, loss: float, speed: str) -> None:
        """One step is done."""
        self._step += 1
        if self._step == self._steps or time.monotonic() - self._last >= LINE_EVERY:
            self.note(f"loss {loss:.4g}, {speed}")

    def note(self, text: str) -> None:
        """Say something at this step."""
        self._last = time.monotonic()
        if self._wanted:
            print(f"{self._title}: step {self._step:,} of {self._steps:,}: {text}", file=sys.stderr, flush=True)


class Bar(Lines):
    """A progress bar."""

    def __init__(self, shown: Progress, title: str, steps: int, done: int) -> None:
        super().__init__(False, title, steps, done)
        self._shown = shown
        self._task = shown.add_task(title, total=steps, completed=done, loss=math.nan, speed="")

    def show(self, loss: float, speed: str) -> None:
        """One step is done."""
        self._shown.update(self._task, advance=1, loss=loss, speed=speed)

    def note(self, text: str) -> None:
        """Say something above the bar."""
        self._shown.console.print(f"{self._title}: {text}", markup=False)


@contextlib.contextmanager
def show_progress(wanted: bool, title: str, steps: int, done: int) -> Iterator[Lines]:
    """What tells of training: a bar on a terminal and in a notebook, else lines."""
    if not wanted or not bars.are_shown():
        yield Lines(wanted and bool(title), title, steps, done)  # one step on trial has none
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with bars.make_bar(*columns) as shown:
        yield Bar(shown, title, steps, done)
