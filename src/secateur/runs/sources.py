"""An index that `secateur prune-data` wrote, as data and as a result of its own: opened again, by its place alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from secateur.data.labels import DEFAULT
from secateur.errors import InputError
from secateur.methods import indices
from secateur.subjects.dataset.examples import ExampleSet

__all__ = ["open_index", "read_index"]


def open_index(
    index: str | Path | ExampleSet, *, shelf: Path | None = None, text: str = "text", label: str = DEFAULT
) -> ExampleSet:
    """The index in a folder, or a file, that `prune_data` or a recipe wrote, and the data that it is of.

    What it tells: `kept`, the places that stay; `scores`, name -> [N] of all of the data; `labels`; `data`, the
    examples that stay. It is cut further as any subject is, by `units` and `cut`.

    shelf: a folder for texts of that data, see `dataset.read_rows`. Raises `InputError` for what is no index, and
    `DataError` as `indices.open_index`.
    """
    from secateur.runs.backends.dataset import read_rows  # which reads an index here

    if not indices.is_index(index):
        raise InputError(f"{index} is no index: give a folder or an index.npz that prune-data wrote")
    return indices.open_index(index, partial(read_rows, held=True, shelf=shelf), text=text, label=label)


def read_index(
    index: str | Path | ExampleSet, *, shelf: Path | None = None, text: str = "text", label: str = DEFAULT
) -> Any:
    """The examples that an index keeps, see `open_index`."""
    return open_index(index, shelf=shelf, text=text, label=label).data
