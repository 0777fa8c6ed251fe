"""Sequences that make each item from its number, such as the batches of training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

__all__ = ["Computed"]

T = TypeVar("T")


class Computed(Sequence[T]):
    """A sequence by `make(number)` and `len`; one pass over it ends at `len`, whatever numbers `make` takes beyond."""

    @abstractmethod
    def make(self, index: int) -> T:
        """Item `index`."""

    def __iter__(self) -> Iterator[T]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """One item, or those of a slice of the first `len`."""
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(len(self)))]
        return self.make(index)

    def take(self, count: int) -> list[T]:
        """The first `count` items, or all of `len` if that is fewer."""
        return self[:count]
