"""How many rows go through a network at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["watch_rows"]


@contextmanager
def watch_rows() -> Iterator[list[int]]:
    """Within the block, the rows that each convolution, linear and embedding is asked with."""
    rows = list[int]()

    def look(module: nn.Module, args: tuple) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and args:
            rows.append(len(args[0]))

    handle = register_module_forward_pre_hook(look)
    try:
        yield rows
    finally:
        handle.remove()
