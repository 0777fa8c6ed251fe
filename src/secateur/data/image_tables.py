"""Tables of `datasets` with a column of images: in memory, saved on the disk, in parquet, or streamed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from secateur._utils.noting import note
from secateur._utils.plugins import line
from secateur.data import labels as labels_of
from secateur.data import parts as parts_of
from secateur.data.image_items import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Classified,
    Given,
    has_boxes,
    name_classes,
    pair_of,
    spool,
)
from secateur.data.images import Encoded, Images, naming
from secateur.data.labels import Labels
from secateur.errors import DataError, MissingExtraError

__all__ = ["Shown", "find_images", "is_shown", "list_parquet", "load_library", "open_table", "read_rows"]


class _Column(Encoded):
    """A column of images in a table of `datasets`, as the bytes or paths that it holds."""

    def __init__(self, rows: Given, column: str, name: str) -> None:
        self.rows, self.column, self.title = rows, column, name

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
        return f"row {place + 1} of {self.title}"

    def _bytes(self, place: int) -> bytes:
        value = self.rows[int(place)][self.column]
        if value is None or (value.get("bytes") is None and not value.get("path")):
            raise DataError(f"{self.name(place)} has no image in {self.column!r}: drop such rows")
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        with naming(f"{self.name(place)}, {value['path']},"):
            return Path(value["path"]).read_bytes()

    def length(self, place: int) -> int:
        return len(self._bytes(place))

    def fetch(self, place: int, start: int, stop: int) -> bytes:
        return self._bytes(place)[start:stop]


def load_library() -> Any:
    """The library `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("tables of images need datasets: pip install 'secateur[data]'") from error
    return datasets


def read_rows(rows: Given, label: str, name: str, datasets: Given) -> Classified:
    """The images of a table, and the classes in its column `label`. Raises `DataError` for one without images."""
    features = rows.features or {}
    column = _find_column(features)
    if column is None and not features:
        raise DataError(
            f"the columns of {name} are not known, as after `map` on a stream: name them with its features=, images as "
            "datasets.Image"
        )
    if column is None:
        known = ", ".join(features)
        raise DataError(f"{name} has no column of images: it has {known}; name one of type datasets.Image, as `image`")
    labels_of.check(label, features, name)
    kinds = next((one for one in (label, *LABEL_COLUMNS) if one in features), None) if label else None
    if kinds and isinstance(features[kinds], datasets.Image):
        raise DataError(
            f"{name} has images in {kinds!r}, where classes belong: give masks as a list of (image, mask), or as "
            "folders images/ and masks/"
        )
    if label and not kinds and (others := [one for one in features if one != column]):
        note(
            f"{name} has no column {', '.join(LABEL_COLUMNS)}, and is read without classes; it has "
            f"{', '.join(others)}: name that of the classes (--label), or say label='' for none; masks and boxes "
            "are those that its with_transform gives"
        )
    names = tuple(getattr(features.get(kinds), "names", None) or ()) if kinds else ()
    if isinstance(features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    kind = _kind_of_numbers(features[column])
    if isinstance(rows, datasets.IterableDataset):
        found = ((row[column], row[kinds] if kinds else None) for row in rows)
        return spool(((np.asarray(image, kind) if kind else image, label) for image, label in found), name, names)
    values = rows.with_format(None)[kinds] if kinds else ()
    if not isinstance(features[column], datasets.Image):
        pictures = rows.select_columns([column]).with_format(
            "numpy" if kind else None, **({"dtype": kind} if kind else {})
        )
        return spool(((row[column], label) for row, label in zip_longest(pictures, values)), name, names)
    images = Images(_Column(rows.with_format(None).select_columns(column), column, name))
    images.keys()
    return name_classes(images, Labels(values), name, kinds or "", names)


def find_images(features: Mapping[str, Given]) -> str | None:
    """That of a table's images, by its type, or by its name where it holds more than names of files or numbers."""
    column = _find_column(features)
    named = column and type(features[column]).__name__ == "Value" and "binary" not in features[column].dtype
    return None if named else column


def _find_column(features: Mapping[str, Given]) -> str | None:
    """The column that is called as images are, of those of type Image where there are any; else the first of these."""
    pictures = [one for one, kind in features.items() if type(kind).__name__ == "Image"]
    return next((one for one in (*IMAGE_COLUMNS, *pictures) if one in (pictures or features)), None)


def _kind_of_numbers(feature: Given) -> np.dtype[np.generic] | None:
    """Of which numbers a column's arrays or nested lists are; None where it holds neither."""
    inner = feature
    while hasattr(inner, "feature"):
        inner = inner.feature
    if inner is feature and not hasattr(feature, "shape"):
        return None
    try:
        kind = np.dtype(getattr(inner, "dtype", None))
    except TypeError:  # strings, bytes, images
        return None
    return kind if kind.kind in "biuf" else None


class Shown:
    """(image, label) of each row of a table with a transform of the user's own, as that gives them.

    The names of a column of classes are there with its values as `targets`, so that they count for no other labels.
    """

    def __init__(self, rows: Given, label: str = labels_of.DEFAULT) -> None:
        self.rows, self.label = rows, label
        column = next((one for one in (label, *LABEL_COLUMNS) if one in rows.features), None) if label else None
        self.classes = tuple(getattr(rows.features.get(column), "names", None) or ())
        self.targets = list(rows.with_format(None)[column]) if self.classes else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Given, Given]:
        row, where = self.rows[int(place)], f"row {place} of the table, as its transform gives it,"
        labels_of.check(self.label, row, where, what="key")
        image, label = pair_of(row, where)
        return row.get("pixel_values", image), label if has_boxes(label) else row.get(self.label, label)


def is_shown(rows: Given) -> bool:
    """Whether a table has a transform of the user's own."""
    return (getattr(rows, "format", None) or {}).get("type") == "custom"


def list_parquet(source: Path) -> list[Path]:
    """The file of parquet that `source` is, or those in the folder, of all its parts; none where it has none."""
    path, _ = parts_of.split_name(source)
    return [path] if path.suffix == ".parquet" and path.is_file() else sorted(path.glob("*.parquet"))


def open_table(path: Path, datasets: Given) -> tuple[Given, tuple[str, ...]]:
    """(its rows, or a dict of splits, a note where files of several parts stand there)."""
    files, notes = parts_of.choose(path, list_parquet(path))
    try:
        if not files:
            return datasets.load_from_disk(str(path)), ()
        return datasets.Dataset.from_parquet([str(file) for file in files]), notes
    except Exception as error:  # the library raises many kinds
        raise DataError(f"{path} can't be read as a table: {line(error)}") from error
