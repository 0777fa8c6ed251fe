"""Backend of training sets, of which examples are kept or dropped."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from secateur.data import box_files, chats, examples, image_sources, masks, ray_data, tables, texts
from secateur.data import parts as parts_of
from secateur.data.examples import Examples
from secateur.data.image_items import IMAGE_COLUMNS, may_be_image
from secateur.data.images import is_image
from secateur.data.survey import Survey, survey
from secateur.data.tables import Table
from secateur.data.texts import Corpus
from secateur.errors import DataError, DataWarning
from secateur.methods import indices
from secateur.runs import sources
from secateur.runs.backends import Backend, Data
from secateur.subjects import ExampleSet
from secateur.subjects.dataset.examples import INDEX

__all__ = ["Datasets", "Rows", "holds_examples", "holds_texts", "is_stream", "read_rows"]

Rows: TypeAlias = Examples | Corpus | Table | Survey


class Datasets(Backend[ExampleSet, None, None]):
    """Texts, arrays, folders of images, tables, and what `datasets` and Ray have."""

    family = "training sets"
    command = "prune-data"

    def takes(self, source: Data) -> bool:
        """Indices of training sets; other data is none by its looks."""
        return indices.is_index(source)

    def open(self, source: Data, device: str | None = None, data: None = None, inputs: object = None) -> ExampleSet:
        """All examples of the data, or an index with those that it keeps."""
        return sources.open_index(source) if indices.is_index(source) else ExampleSet(read_rows(source))

    def inspect(self, source: Data, *, batch: int, length: int, **options: object) -> dict[str, Any]:
        """What stays of a training set, and what it costs; "scores": name -> (least, most) of what stays."""
        subject = self.open(source)
        columns = {name: column[subject.kept] for name, column in subject.scores.items()}
        scores = {name: (float(column.min()), float(column.max())) for name, column in columns.items()}
        title = f"{len(subject)} of {len(subject.source)} examples of {subject.source.name}"
        found = super().inspect(subject, batch=batch, length=length, **options)
        return {**found, "model": title, "scores": scores}

    def digest(self, subject: ExampleSet) -> str:
        """The hash of all of the data that the set is of."""
        return str(subject.source.digest)

    def save(self, subject: ExampleSet, folder: Path) -> None:
        """The index of what stays."""
        subject.save(folder)

    def load_line(self, folder: Path, name: str) -> str:
        """The lines of Python that open the index in `folder`, which the reader knows as `name`."""
        return f'import secateur\n\nexamples = secateur.open_index("{name}").data'

    def saved_in(self, folder: Path) -> bool:
        """Whether there is an index."""
        return (folder / INDEX).is_file()


def read_rows(
    data: Data,
    *,
    held: bool = False,
    shelf: Path | None = None,
    text: str = "text",
    label: str = "label",
    counts: Mapping[str, Callable[[Sequence[str]], Sequence[int]]] | None = None,
    ray: bool = False,
) -> Rows:
    """The training set in `data`; texts are passed over once and not held, unless `held`, for a model to read them.

    shelf: a folder for texts that are held: they lie there on the disk and are read when they are asked for. Without,
    and where they are in memory already, that is where they are. With `ray`, or of a data set of Ray's, it is Ray Data
    that passes over them.
    """
    if indices.is_index(data):
        return sources.read_index(data, shelf=shelf)  # type: ignore[no-any-return]
    columns: dict[str, Any] = {"column": text, "label": label}
    image_sources.choose_split(data, "the data")  # which refuses parts without train
    data = texts.take_rows(data)
    if ray or ray_data.is_dataset(data):
        place = shelf or Path(tempfile.gettempdir())
        return ray_data.survey(data, counts=counts, shelf=place if held else None, **columns)
    if isinstance(data, Examples | Corpus | Survey):
        return data
    if _may_end(data):
        data = iter(data)  # a second pass may go on where the first one stopped
    if isinstance(data, Iterator):  # which can be looked at once only
        seen = list(islice(data, 1))
        data = chain(seen, data)
        if holds_examples(seen, text):
            return examples.read(data, label=label)
    if holds_examples(data, text):
        return examples.read(data, label=label)
    if not isinstance(data, Table) and (is_stream(data) or holds_texts(data, text)):
        if held and (shelf is None or isinstance(data, list | tuple)):
            return texts.read(data, **columns)
        return survey(data, counts=counts, shelf=shelf if held else None, **columns)
    if isinstance(data, Table) or tables.is_table(data):
        table = data if isinstance(data, Table) else tables.read(data, text=text, label=label)
        if table.texts is not None and isinstance(data, str | Path) and Path(data).suffix in texts.SUFFIXES:
            raise DataError(f"{table.name} has texts in {text!r} of some rows, and its first has none: drop such rows")
        return table.corpus(shelf) if held and table.texts is not None else table
    return examples.read(data, label=label)


def _may_end(data: Data) -> bool:
    """Whether data of Python may be one that can be passed over once, such as a bar around a generator."""
    if isinstance(data, IterableDataset):
        return not image_sources.is_table(data)
    known = isinstance(data, Set | DataLoader | Path | Table) or image_sources.is_table(data)
    return isinstance(data, Iterable) and hasattr(data, "__len__") and not known and not hasattr(data, "__getitem__")


def holds_examples(data: Data, text: str) -> bool:
    """Whether data of Python is arrays, or images with whatever stands beside them, and no texts or rows of columns."""
    if (
        isinstance(data, np.ndarray) and data.ndim and data.dtype.kind in "USTO"
    ):  # strings are texts, objects whatever they are
        return data.dtype.kind == "O" and holds_examples(data.ravel().tolist(), text)
    if isinstance(data, DataLoader | Tensor | np.ndarray):
        return True
    if isinstance(data, tuple) and len(data) == 2 and not all(isinstance(one, Mapping) for one in data):
        return not all(isinstance(one, str | Mapping) for one in data)
    if type(data).__name__ == "IterableDataset":  # of `datasets`
        features = getattr(data, "features", None) or {}
        return not _is_written(features, text) and any(type(kind).__name__ == "Image" for kind in features.values())
    if isinstance(data, str | Path | Mapping | Table) or not hasattr(data, "__len__") or image_sources.is_table(data):
        return False
    first = next(iter(data), None) if isinstance(data, Iterable) else None
    if isinstance(first, Mapping):
        return not _is_written(first, text) and any(_shows(first[name]) for name in IMAGE_COLUMNS if name in first)
    return _shows(first[0] if isinstance(first, list | tuple) and len(first) == 2 else first)


def _is_written(row: Mapping[str, object], text: str) -> bool:
    """Whether a row's columns have a text or a chat, whatever stands beside it."""
    return text in row or any(name in row for name in chats.COLUMNS) or set(chats.PAIR) <= row.keys()


def _shows(value: Data) -> bool:
    """Whether it is an image, or a batch of some."""
    return may_be_image(value) or getattr(value, "ndim", 0) == 4


def is_stream(data: Data) -> bool:
    """Whether `data` can be passed over once only: a data set that is streamed, or an iterator."""
    return isinstance(data, Iterator) or type(data).__name__ == "IterableDataset"


def holds_texts(data: Data, text: str) -> bool:
    """Whether `data` is texts alone; rows without any are a table, unless `text` was to name a column of theirs.

    A folder with as many images as texts, or more, holds images with notes beside them, as a warning says.
    """
    if not isinstance(data, str | Path):
        names = dict.fromkeys(getattr(data, "column_names", None) or ())
        return isinstance(data, Iterable) and (
            not tables.is_table(data) or (text not in names and _is_written(names, text))
        )
    path, name = parts_of.split_name(Path(data))[0], str(data)
    if path.is_dir():  # YOLO's labels, VOC's lists of images and names of classes of masks are .txt files
        if tables.is_table(path) or box_files.holds_boxes(path) or masks.find_pair(path) is not None:
            return False
        files = [file for file in path.rglob("*") if not file.name.startswith(".")]
        written = sum(file.suffix in texts.SUFFIXES for file in files)
        pictures = sum(is_image(file) for file in files) if written else 0
        if pictures >= max(1, written):
            warnings.warn(f"{path} holds {pictures} images and {written} texts: the images are read", DataWarning, 1)
            return False
        return written > 0
    if path.exists() or path.suffix in (".npz", *tables.SUFFIXES):
        return path.suffix in texts.SUFFIXES and not (text == "text" and texts.wordless(path, text))
    return name.startswith("hub:") or ":" not in name
