"""What networks are fed: batches of tensors by name, and batches by number."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Protocol, TypeAlias

from torch import Tensor

__all__ = ["Batch", "Batches", "FiniteBatches"]

Batch: TypeAlias = Mapping[str, Tensor]
"""Name of an input -> tensor, one example a row."""


class Batches(Protocol):
    """Batches by number, such as a list of them, or an endless feed."""

    def __getitem__(self, index: int, /) -> Batch:
        """The batch of that number, the same whenever it is asked for."""
        ...


class FiniteBatches(Sized, Batches, Protocol):
    """Batches by number of which there are `len`."""
