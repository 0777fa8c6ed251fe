"""Arrays and texts that are appended to files on disk and read back in parts.

For what is larger than memory. A shelf is a file without a name: no kill leaves it behind, nobody else can change it.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from secateur._utils.disk import guard

__all__ = ["CHUNK", "Shelf", "Texts", "Writer", "nearest"]

CHUNK = 1024
"""Texts in memory at once."""
Fetch: TypeAlias = Callable[[NDArray[np.int64]], list[str]]


class Shelf:
    """A one-dimensional array on the disk, which grows at its end and gives slices.

    folder: where the file lies; it has no name there, and its space is free again when nobody holds the shelf.

    Raises `RunError` for a folder that can't be written, or a full disk.
    """

    def __init__(self, folder: Path, kind: type[np.generic]) -> None:
        self.folder, self.kind = folder, np.dtype(kind)
        with guard(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the shelf
        weakref.finalize(self, self._file.close)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, values: bytes | NDArray[Any]) -> None:
        """These numbers, of the shelf's kind, or their bytes, at the end."""
        with guard(self.folder):
            written = self._file.write(values if isinstance(values, bytes) else values.data)
        self._count += written // self.kind.itemsize

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """The numbers from `part.start` to `part.stop`, read now."""
        with guard(self.folder):
            self._file.flush()
        size = self.kind.itemsize
        start, stop, _ = part.indices(self._count)
        wanted = bytearray(max(0, stop - start) * size)
        read = 0
        while read < len(wanted):  # the system reads 2 GiB at once, at most
            read += os.preadv(self._file.fileno(), [memoryview(wanted)[read:]], start * size + read)
        return np.frombuffer(wanted, self.kind)


class Texts(Sequence[str]):
    """Texts in order that lie on the disk: each is read when it is asked for, and not held.

    fetch: [k] places -> the k texts there; places: [N] those that these texts are, in order; folder: where more that is
    as large as they are may be written.
    """

    def __init__(self, fetch: Fetch, places: NDArray[np.int64], folder: Path) -> None:
        self._fetch, self._places, self.folder = fetch, places, folder

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """The text at a place, or a list of those in a slice."""
        if isinstance(index, slice):
            return self._fetch(self._places[index])
        return self._fetch(self._places[index, None])[0]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Texts:
        """Those at `indices`, in that order, which stay where they are."""
        return Texts(self._fetch, self._places[np.asarray(indices, np.int64)], self.folder)


class Writer:
    """Texts on their way to a shelf in `folder`. About 16 bytes for each stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._bytes, self._ends = Shelf(folder, np.uint8), array("q", [0])

    def add(self, texts: Sequence[str]) -> None:
        """Some more texts."""
        for text in texts:
            self._bytes.add(text.encode("utf-8", "surrogatepass"))
            self._ends.append(len(self._bytes))

    def end(self) -> Texts:
        """After the last text: all of them."""
        data, ends = self._bytes, np.array(self._ends)

        def fetch(places: NDArray[np.int64]) -> list[str]:
            if len(places) and (np.diff(places) == 1).all():  # neighbours are read together
                first = ends[places[0]]
                packed = data[first : ends[places[-1] + 1]].data
                parts = (packed[a:b] for a, b in pairwise((ends[places[0] : places[-1] + 2] - first).tolist()))
            else:
                parts = (data[ends[place] : ends[place + 1]].data for place in places)
            return [str(part, "utf-8", "surrogatepass") for part in parts]

        return Texts(fetch, np.arange(len(ends) - 1), data.folder)


def nearest(path: str | Path) -> Path:
    """`path`, if it is a folder, or the nearest folder above it that is there: where its shelves may lie."""
    whole = Path(path).absolute()
    return next(folder for folder in (whole, *whole.parents) if folder.is_dir())
