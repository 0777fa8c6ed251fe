"""Tables of examples: whatever `datasets` reads, with all columns, so that a subset keeps its rows unchanged."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secateur._utils import hashes
from secateur.data import labels
from secateur.data.labels import Labelled, Labels
from secateur.data.shelf import CHUNK, Texts
from secateur.data.texts import Corpus
from secateur.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SUFFIXES", "Table", "is_table", "read"]

SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of named columns in order.

    text, label: which columns hold a text and a class, if such columns are there.
    """

    rows: Dataset
    text: str = "text"
    label: str = "label"
    name: str = "table"

    def __post_init__(self) -> None:
        if not len(self):
            raise DataError(f"{self.name} holds no row: give at least one")
        labels.check(self.label, self.rows.column_names, self.name)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _labelled(self) -> Labelled:
        if self.label not in self.rows.column_names:
            return Labelled()
        return Labels(self.rows.with_format(None)[self.label]).end(self.name, self.label, "row")

    @property
    def labels(self) -> list[int] | None:
        """[N] class of each row, or None where there is no such column or its values are no classes: see `flaw`."""
        return None if self._labelled.classes is None else self._labelled.classes.tolist()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the table has them."""
        if self.label not in self.rows.column_names:
            return ()
        return tuple(getattr(self.rows.features[self.label], "names", None) or self._labelled.names)

    @property
    def flaw(self) -> str:
        """Why the column of classes holds none, for whoever needs some, see `labels.Labelled`."""
        return self._labelled.flaw

    @property
    def texts(self) -> Sequence[str] | None:
        """[N] texts, read when asked for; None where there is no such column."""
        return self.rows.with_format(None)[self.text] if self.text in self.rows.column_names else None

    def corpus(self, shelf: Path | None = None) -> Corpus:
        """The texts with their classes, for a model to read.

        shelf: a folder for what is as large as the texts; the texts stay in the table, and are read when asked for.
        Without, they are all in memory.

        Raises:
            DataError: no column of texts, or a row without one.
        """
        if self.text not in self.rows.column_names:
            raise DataError(f"{self.name} has no column {self.text!r} for a model to read: name it with --text")
        column = self.rows.with_format(None).select_columns(self.text)

        def fetch(places: NDArray[np.int64]) -> list[str]:
            near = len(places) and (np.diff(places) == 1).all()  # a slice is read at once
            found = list(column[slice(places[0], places[-1] + 1) if near else places.tolist()][self.text])
            for place, text in zip(places, found, strict=True):
                if not isinstance(text, str):
                    raise DataError(f"{self.name} has {text!r} and no text in {self.text!r} of row {place + 1}: "
                                    "drop the row")  # fmt: skip
            return found

        spoken: Sequence[str] = Texts(fetch, np.arange(len(self)), shelf or Path())
        numbers = None if self._labelled.numbers is None else self._labelled.numbers.tolist()
        held = spoken if shelf else list(spoken)
        return Corpus(held, self.labels, self.name, self.digest, self.classes, numbers, self.flaw)

    @cached_property
    def digest(self) -> str:
        """sha256 of the columns' names and of all rows."""
        found = hashlib.sha256(json.dumps(sorted(self.rows.column_names)).encode())
        for row in self._packed():
            found.update(len(row).to_bytes(8, "little") + row)
        return found.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Table:
        """The rows at `indices`, in that order."""
        return replace(self, rows=self.rows.select(np.asarray(indices, np.int64)))

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N]: the bytes of each row as JSON, and the words of its text if it has one."""
        found = {"bytes": np.fromiter(map(len, self._packed()), np.float64, len(self))}
        if self.texts is not None:
            found["words"] = np.fromiter((len(str(text).split()) for text in self.texts), np.float64, len(self))
        return found

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests of 16 bytes, equal for rows of equal texts; of equal columns but the class if there is no text.

        normalised: for equal words, as `texts.Corpus.keys` takes them.
        """
        if self.texts is not None:
            spoken = map(str, self.texts)
            return hashes.digests(hashes.normalise_words(one) if normalised else one.encode("utf-8", "surrogatepass")
                              for one in spoken)  # fmt: skip
        if normalised:
            raise DataError(f"{self.name} has no column {self.text!r}: only exact duplicates can be told without texts")
        return hashes.digests(self._packed(skip=self.label))

    def _packed(self, skip: str = "") -> Iterator[bytes]:
        """Each row as JSON; what JSON can't hold, such as an image's bytes, as Python writes it."""
        for chunk in self.rows.with_format("arrow").iter(batch_size=CHUNK):
            for row in chunk.to_pylist():
                row.pop(skip, None)
                yield json.dumps(row, sort_keys=True, default=repr).encode()


def is_table(source: object) -> bool:
    """Whether `read` takes `source`: a `datasets.Dataset`, a folder that one was saved in, or a file of rows."""
    if isinstance(source, str | Path):
        path = Path(source)
        saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
        return saved or (path.suffix in SUFFIXES and path.is_file())
    return type(source).__module__.partition(".")[0] == "datasets"


def read(source: str | Path | Dataset, *, text: str = "text", label: str = "label") -> Table:
    """Read a table: a `datasets.Dataset`, a folder of `save_to_disk`, a .csv, .parquet or .jsonl file.

    A folder of several splits gives its `train`. Files are mapped from the disk by way of the cache of `datasets`.

    Raises:
        DataError: not there, empty, or not to be read.
        MissingExtraError: without the `data` extra.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("tables need datasets: pip install 'secateur[data]'") from error
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise DataError(f"there is no table at {path}: give a folder of save_to_disk, or one of {_listed()}")
        try:
            with _quietly(datasets):
                rows = _opened(path, datasets)
        except DataError:
            raise
        except Exception as error:  # the library raises many kinds: not JSON, uneven rows, other types
            first = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path} can't be read as a table: {first}") from error
        return Table(_split(rows, path.name, datasets), text, label, path.name)
    return Table(_split(source, "the table", datasets), text, label, "table")


@contextmanager
def _quietly(datasets: Any) -> Iterator[None]:
    """What the library prints of a file that it can't read, bars and its own error, stays unprinted: we tell it."""
    bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        datasets.logging.set_verbosity(level)


def _opened(path: Path, datasets: Any) -> Any:
    if path.is_dir():
        return datasets.load_from_disk(str(path))
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is no table: give a folder of save_to_disk, or one of {_listed()}")
    kind = {".csv": "csv", ".parquet": "parquet", ".jsonl": "json"}[path.suffix]
    return getattr(datasets.Dataset, f"from_{kind}")(str(path))


def _split(rows: Any, name: str, datasets: Any) -> Dataset:
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise DataError(f"{name} has the splits {', '.join(rows)} and no train: give the folder of one of them")
        rows = rows["train"]
    if not isinstance(rows, datasets.Dataset):
        raise DataError(f"{name} is of {type(rows).__name__}: give a datasets.Dataset")
    return rows


def _listed() -> str:
    return ", ".join(SUFFIXES)
