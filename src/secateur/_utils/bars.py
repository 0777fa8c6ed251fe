"""Progress bars on stderr: on a terminal, and among the outputs of a notebook's cell."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

__all__ = ["are_shown", "in_notebook", "make_bar", "show_bar"]

T = TypeVar("T")


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel: Jupyter's, or one that is built on it, such as Colab's."""
    find_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(find_shell()).__mro__)


def are_shown() -> bool:
    """Whether somebody sees a bar."""
    return sys.stderr.isatty() or in_notebook()


def make_bar(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """A bar for a `with` block, of rich's usual columns unless some are given; nothing at all where nobody sees it.

    transient: it goes away in the end.
    """
    from rich.console import Console
    from rich.progress import Progress

    if in_notebook():
        from secateur._utils.cells import CellProgress

        return CellProgress(*columns, transient=transient, auto_refresh=False)
    return Progress(*columns, console=Console(stderr=True), transient=transient, disable=not sys.stderr.isatty())


def show_bar(items: Iterable[T], title: str) -> Iterable[T]:
    """`items`, and meanwhile a bar that goes away again; nothing at all where nobody sees it."""
    if not are_shown():
        yield from items
        return
    with make_bar(transient=True) as bar:
        yield from bar.track(items, description=title)
