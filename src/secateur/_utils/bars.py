"""Progress bars of loops that say nothing themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["show_bar"]

T = TypeVar("T")


def show_bar(items: Iterable[T], title: str) -> Iterable[T]:
    """`items`, and meanwhile a bar that goes away again; nothing at all where there is no terminal and no notebook.

    There a bar of rich would leave an empty line behind.
    """
    from rich import get_console
    from rich.progress import track

    console = get_console()
    shown = console.is_terminal or console.is_jupyter
    return track(items, title, transient=True, disable=not shown)
