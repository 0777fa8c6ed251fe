"""Where images with classes come from: folders, WebDataset shards, tables of `datasets`, data sets of torch.

Each is read lazily. What can be passed over once only goes to a file without a name in the temporary folder.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import tarfile
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import length_hint
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data as loading

from secateur._utils.disk import guard
from secateur._utils.noting import note
from secateur._utils.plugins import line
from secateur.data import labels as labels_of
from secateur.data import parts as parts_of
from secateur.data import transforms
from secateur.data.images import Encoded, Files, Images, Source, convert, is_image, naming
from secateur.data.labels import Labels
from secateur.data.transforms import Picture
from secateur.errors import DataError, MissingExtraError

__all__ = [
    "CHANNELS", "LARGEST", "Classified", "Data", "Items", "Shards", "find_held_out", "has_boxes", "has_places",
    "is_batch", "is_mask", "is_shards", "is_table", "pair_of", "picture_of", "read_folder",
    "read_hub", "read_pairs", "read_shards", "read_table", "restrict", "whole_of",
]  # fmt: skip

Data: TypeAlias = Any
"""What a user gives, of whatever library it is."""

_TRAIN = "train"
_PART = re.compile("train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?")
"""What a folder of a part of a data set is called."""
_UNREAD = frozenset({".arw", ".cr2", ".dng", ".heic", ".heif", ".nef", ".psd", ".svg"})
"""Files of images that Pillow does not read by itself."""
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
_LABEL_KEYS = (*_LABEL_COLUMNS, "targets")
_MASK_COLUMNS = ("mask", "masks")
LARGEST = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""Of numbers by which images are stored, what stands for 1."""
CHANNELS = (1, 3, 4)
_TEXTS = "; texts, in a list, are for recipes on language models (secateur list)"
_ARRAY = b"\x93secateur-array\n"
"""How an image begins that is kept as numbers: then kind and shape as a line of JSON."""


@dataclass(frozen=True)
class Classified:
    """Images, the class of each if they have any, the names of the classes, and notes for the run's evidence."""

    images: Images
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    notes: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------- folders


def read_folder(path: Path) -> Classified:
    """A folder with one folder of images per class, however deep they lie in it; of `train/` and `val/` the first.

    Raises `DataError` for none, and for damaged files.
    """
    if find_held_out(path) is not None:
        return replace(read_folder(path / _TRAIN), name=path.name)
    kinds = _class_folders(path)
    _check_classes(path, kinds)
    inside = [(file, number) for number, kind in enumerate(kinds) for file in sorted(kind.rglob("*"))]
    files = [(file, number) for file, number in inside if is_image(file)]
    if not files:
        raise DataError(f"{path} holds no images in folders named by class: give path/class/image.png")
    images = Images(Files([file for file, _ in files]))
    images.keys()  # what is damaged is told now, and not after hours
    labels, classes = np.array([n for _, n in files]), tuple(kind.name for kind in kinds)
    single = classes if len(kinds) == 1 else ()
    unread = [file.name for file, _ in inside if file.suffix.lower() in _UNREAD and not file.name.startswith(".")]
    bare = [kind.name for number, kind in enumerate(kinds) if number not in labels]
    notes = {
        f"{len(unread)} images of {path.name} are left out, for their form is not read": unread,
        f"{len(bare)} of {len(kinds)} folders of {path.name} hold no image": bare,
        f"all images of {path.name} are of one class, for classes are its folders": single,
    }
    told = tuple(f"{note}: {', '.join(names[:3])}" for note, names in notes.items() if names)
    return Classified(images, labels, classes, path.name, told)


def _check_classes(path: Path, kinds: Sequence[Path]) -> None:
    """Raise `DataError` where in place of folders of classes stand parts of a data set, one folder, or Pascal VOC."""
    deep = next((one.parent for form in ("*/JPEGImages", "*/*/JPEGImages") for one in sorted(path.glob(form))), path)
    if (deep / "Annotations").is_dir() and deep != path:
        raise DataError(f"{path} holds annotations of Pascal VOC in {deep}, and no classes: say --data {deep}")
    parts = [one for one in kinds if _PART.fullmatch(one.name.lower())]
    inner = [_class_folders(kind) for kind in kinds]
    if not kinds or not all(inner) or any(is_image(file) for kind in kinds for file in kind.iterdir()):
        return
    if len(parts) == len(kinds):
        learned = next((one for one in parts if one.name.lower().startswith(_TRAIN)), parts[0])
        held = next((f" --held-out {one}" for one in parts if one != learned), "")
        names = ", ".join(one.name for one in parts)
        raise DataError(f"{path} holds {names}, parts of a data set and no classes: say --data {learned}{held}")
    if len(kinds) == 1 and len(inner[0]) > 1:
        raise DataError(f"{path} holds the one folder {kinds[0].name}, with folders of images: say --data {kinds[0]}")


def _class_folders(path: Path) -> list[Path]:
    return [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith((".", "__"))]


def find_held_out(source: Data) -> Data:
    """The part of `source` that is there to measure on: `val/` beside `train/`, or that split of a `datasets` dict.

    A folder counts where both hold folders of images, or where names of shards or tables tell parts; see `parts`. None
    where there is no such part.
    """
    if type(source).__name__ == "DatasetDict" or (isinstance(source, Mapping) and _TRAIN in source):
        return next((source[name] for name in parts_of.HELD_OUT if name in source), None)
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    if files := _parquet(path) or (_expand(path) if is_shards(path) else []):
        return parts_of.find_held_out(path, files)
    if not path.is_dir():
        return None
    if (path / "dataset_dict.json").is_file():
        return next((path / name for name in parts_of.HELD_OUT if (path / name / "dataset_info.json").is_file()), None)
    train = path / _TRAIN
    if not train.is_dir() or any(is_image(file) for file in train.iterdir()):
        return None
    inner = next((path / name for name in parts_of.HELD_OUT if (path / name).is_dir()), None)
    return inner if inner is not None and _class_folders(inner) and _class_folders(train) else None


# ------------------------------------------------------------------------------------------------------------ shards


class Shards(Encoded):
    """Images inside of .tar files, each read from where it stands.

    members: for each image its shard, where in it its bytes begin, and how many they are.
    """

    def __init__(self, paths: Sequence[Path], members: NDArray[np.int64], names: Sequence[str]) -> None:
        self.paths, self.members, self.names = [str(path) for path in paths], members, names

    def __len__(self) -> int:
        return len(self.members)

    def name(self, place: int) -> str:
        """Its shard and its name there."""
        return f"{self.paths[self.members[place][0]]}:{self.names[place]}"

    def length(self, place: int) -> int:
        """Bytes of the image's file."""
        return int(self.members[place][2])

    def fetch(self, place: int, start: int, stop: int) -> bytes:
        """Some of them."""
        shard, offset, length = (int(number) for number in self.members[place])
        with naming(self.name(place)), open(self.paths[shard], "rb") as file:
            file.seek(offset + start)
            return file.read(max(0, min(stop, length) - start))


def is_shards(source: object) -> bool:
    """Whether it is a .tar file, a pattern such as data-{000..009}.tar or data-*.tar, or a folder of such files."""
    if not isinstance(source, str | Path):
        return False
    path, _ = parts_of.split_name(Path(source))
    return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


def read_shards(source: str | Path, label: str = labels_of.DEFAULT) -> Classified:
    """WebDataset shards: in each .tar, files of one name with several endings are an example: NAME.jpg and NAME.cls.

    A class is in NAME.cls (a number or a name), in NAME.txt, or in NAME.json under `label`. Their index takes a pass
    over the files' headers. Of shards whose names tell parts, those of train are read; see `parts.choose`.

    Raises `DataError` for a shard that can't be read, or that holds no image.
    """
    paths, notes = parts_of.choose(Path(source), _expand(source))
    members, names, kinds = array("q"), list[str](), Labels()
    for number, path in enumerate(paths):
        for key, parts in _samples(path):
            image = next((part for ending, part in parts.items() if is_image(Path(f"x.{ending}"))), None)
            if image is None:
                continue
            members.extend((number, image.offset_data, image.size))
            names.append(image.name)
            kinds.add(_class_of(path, parts, label, key) if label else None)
    if not names:
        raise DataError(f"{source} holds no images: give .tar files of NAME.jpg with NAME.cls beside each")
    images = Images(Shards(paths, np.array(members, np.int64).reshape(-1, 3), names))
    images.keys()
    return replace(_name_classes(images, kinds, Path(source).name, "cls"), notes=notes)


def _expand(source: str | Path) -> list[Path]:
    """The .tar files that a name, a pattern or a folder stands for, of all its parts."""
    path, _ = parts_of.split_name(Path(source))
    text = str(path)
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if braces:
        first, last = braces.groups()
        found = [Path(f"{text[: braces.start()]}{number:0{len(first)}}{text[braces.end() :]}")
                 for number in range(int(first), int(last) + 1)]  # fmt: skip
    elif path.is_dir():
        found = sorted(path.glob("*.tar"))
    else:
        found = [Path(one) for one in sorted(glob.glob(text))] or [path]
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"there is no shard {missing}: give .tar files, such as data-*.tar or data-{{000..009}}.tar")
    return found


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name, ending -> file) of each example in a shard, whose files stand together."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, parts = "", dict[str, tarfile.TarInfo]()
            for member in tar:
                if not member.isfile():
                    continue
                place = PurePosixPath(member.name)
                stem, _, ending = place.name.partition(".")
                own = str(place.with_name(stem or "_"))
                if own != key and parts:
                    yield key, parts
                    parts = {}
                key = own
                parts[ending.lower()] = member
            if parts:
                yield key, parts
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} can't be read as .tar ({line(error)}): give it uncompressed and whole") from error


def _class_of(path: Path, parts: Mapping[str, tarfile.TarInfo], label: str, key: str) -> object:
    ending = next((one for one in ("cls", "json", "txt") if one in parts), None)
    if ending is None:
        return None
    member = parts[ending]
    with path.open("rb") as file:
        file.seek(member.offset_data)
        content = file.read(member.size).decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            found = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path}:{key}.json is no JSON ({error}): mend it") from error
        return found.get(label) if isinstance(found, dict) else found
    return int(content) if re.fullmatch(r"\d+", content) else content


# ------------------------------------------------------------------------------------------------------------ tables


class _Column(Encoded):
    """A column of images in a table of `datasets`, as the bytes or paths that it holds."""

    def __init__(self, rows: Data, column: str, name: str) -> None:
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


def is_table(source: object) -> bool:
    """Whether it is a table of `datasets`, one saved on the disk, or parquet."""
    if isinstance(source, str | Path):
        path = Path(source)
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return saved or bool(_parquet(path))
    return type(source).__module__.partition(".")[0] == "datasets"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("tables of images need datasets: pip install 'secateur[data]'") from error
    return datasets


def read_table(source: Data, label: str = labels_of.DEFAULT) -> Classified:
    """The images and classes of a table: of `datasets`, of a folder of `save_to_disk`, of parquet; of several splits
    `train`, and so of files that are named for parts, see `parts.choose`. One that is streamed is passed over once, and
    kept in the temporary folder as it is encoded.

    label: the column of classes. Raises `DataError` for a table without a column of images.
    """
    datasets, name = _datasets(), Path(source).name if isinstance(source, str | Path) else "the table"
    rows, notes = _open_table(Path(source), datasets) if isinstance(source, str | Path) else (source, ())
    if isinstance(rows, dict):
        if _TRAIN not in rows:
            raise DataError(f"{name} has the splits {', '.join(rows)} and no train: give one of them")
        rows = rows[_TRAIN]
    return replace(_read_rows(rows, label, name, datasets), notes=notes)


def _read_rows(rows: Data, label: str, name: str, datasets: Data) -> Classified:
    features = rows.features or {}
    pictures = [one for one, kind in features.items() if isinstance(kind, datasets.Image)]
    called = [one for one in _IMAGE_COLUMNS if one in (pictures or features)]
    column = next(iter((*called, *pictures)), None)
    if column is None:
        known = ", ".join(features) or "none that are known"
        raise DataError(f"{name} has no column of images: it has {known}; name one of type datasets.Image, as `image`")
    shown = (getattr(rows, "format", None) or {}).get("type") == "custom"  # by a transform of the user's own
    if label not in ("", labels_of.DEFAULT) and not shown:
        labels_of.check(label, features, name)
    kinds = next((one for one in (label, *_LABEL_COLUMNS) if one in features), None) if label else None
    if kinds and isinstance(features[kinds], datasets.Image):
        raise DataError(
            f"{name} has images in {kinds!r}, where classes belong: give masks as a list of (image, mask), or as "
            "folders images/ and masks/"
        )
    if label and not kinds and not shown and (others := [one for one in features if one != column]):
        note(
            f"{name} has no column {', '.join(_LABEL_COLUMNS)}, and is read without classes; it has "
            f"{', '.join(others)}: name that of the classes (--label), or say label='' for none; masks and boxes of "
            "tables are not read"
        )
    names = tuple(getattr(features.get(kinds), "names", None) or ()) if kinds else ()
    if shown:
        return _read_places(_Shown(rows, label, names), name, labelled=bool(label))
    if isinstance(features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    kind = _kind_of_numbers(features[column])
    if isinstance(rows, datasets.IterableDataset):
        found = ((row[column], row[kinds] if kinds else None) for row in rows)
        return _spool(((np.asarray(image, kind) if kind else image, label) for image, label in found), name, names)
    values = rows.with_format(None)[kinds] if kinds else ()
    if not isinstance(features[column], datasets.Image):
        pictures = rows.select_columns([column]).with_format(
            "numpy" if kind else None, **({"dtype": kind} if kind else {})
        )
        return _spool(((row[column], label) for row, label in zip_longest(pictures, values)), name, names)
    images = Images(_Column(rows.with_format(None).select_columns(column), column, name))
    images.keys()
    return _name_classes(images, Labels(values), name, kinds or "", names)


def _kind_of_numbers(feature: Data) -> np.dtype[np.generic] | None:
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


class _Shown:
    """(image, label) of each row of a table with a transform of the user's own, as that gives them."""

    def __init__(self, rows: Data, label: str, classes: tuple[str, ...]) -> None:
        self.rows, self.label, self.classes = rows, label, classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Data, Data]:
        row = self.rows[int(place)]
        image, label = pair_of(row, "a row of the table")
        return row.get("pixel_values", image), row.get(self.label, label)


def _parquet(source: Path) -> list[Path]:
    """The file of parquet that `source` is, or those in the folder, of all its parts; none where it has none."""
    path, _ = parts_of.split_name(source)
    return [path] if path.suffix == ".parquet" and path.is_file() else sorted(path.glob("*.parquet"))


def _open_table(path: Path, datasets: Data) -> tuple[Data, tuple[str, ...]]:
    """(its rows, or a dict of splits, a note where files of several parts stand there)."""
    files, notes = parts_of.choose(path, _parquet(path))
    try:
        if not files:
            return datasets.load_from_disk(str(path)), ()
        return datasets.Dataset.from_parquet([str(file) for file in files]), notes
    except Exception as error:  # the library raises many kinds
        raise DataError(f"{path} can't be read as a table: {line(error)}") from error


def read_hub(name: str, label: str = labels_of.DEFAULT) -> Classified:
    """A data set of the Hub, "owner/name", "owner/name:configuration" or "owner/name:configuration:split"."""
    identifier, configuration, split = (*name.removeprefix("hub:").split(":"), "", "")[:3]
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(identifier, configuration or None, split=split or _TRAIN)
    except Exception as error:  # of the network, the Hub and the library
        raise DataError(f"there is no data at {name}, nor could it be loaded from the Hub: {line(error)}") from error
    found = read_table(rows, label)
    return Classified(found.images, found.labels, found.classes, identifier)


# ------------------------------------------------------------------------------------------------------------ Python


_LOOKS = 8
"""Items of a data set that are asked what it has beside its images."""


def _is_held(items: Data) -> bool:
    """Whether they lie in memory as they are."""
    return type(items) in (list, tuple)


class Items(Source):
    """Images in a sequence of Python's: of arrays, tensors or PIL images, of (image, label), or of dicts of both.

    Each is read under a seed of its own, so that a data set that augments gives the same image again.
    """

    def __init__(self, items: Data, name: str) -> None:
        self.items, self.title = items, name
        self._sizes = dict[int, tuple[int, int]]()

    def __len__(self) -> int:
        return len(self.items)

    def open(self, place: int) -> Picture:
        """The image."""
        return picture_of(self.pair(place)[0], self.name(place))

    def pair(self, place: int) -> tuple[Data, Data]:
        """(image, its label or None)."""
        image, label = pair_of(self.item(place), self.name(place))
        if isinstance(image, Image.Image):
            self._sizes[place] = image.size
        elif isinstance(image, Tensor | np.ndarray) and image.ndim in (2, 3):
            height, width = image.shape[:2] if _has_channels_last(image) else image.shape[-2:]
            self._sizes[place] = (width, height)
        return image, label

    def item(self, place: int) -> Data:
        """What the sequence holds."""
        if _is_held(self.items):
            return self.items[place]
        with transforms.seed_generators([place]):
            try:
                return self.items[place]
            except Exception as error:
                raise DataError(f"{self.name(place)} can't be read: {line(error)}") from error

    def ask(self) -> Sequence[int]:
        """Places that show what stands beside images: all, if no image has to be read for it."""
        return range(len(self)) if _is_held(self.items) else self.look()

    def look(self) -> list[int]:
        """A few places, the first and the last among them."""
        looks = min(_LOOKS, len(self))
        return [place * (len(self) - 1) // max(1, looks - 1) for place in range(looks)]

    def name(self, place: int) -> str:
        """Its place in the sequence."""
        return f"item {place} of {self.title}"

    def size(self, place: int) -> tuple[int, int]:
        """(width, height), known once it was asked for."""
        if place not in self._sizes:
            self.open(place)
        return self._sizes[place]

    def stamp(self, place: int) -> bytes:
        """Its shape and all its numbers."""
        picture = self.open(place)
        values = picture.numpy() if isinstance(picture, Tensor) else np.asarray(picture)
        return str(values.shape).encode() + values.tobytes()


def read_pairs(source: Data, name: str, *, labelled: bool = True) -> Classified:
    """A data set or a loader of torch, or any iterable, of (image, label): arrays, tensors or PIL images.

    Dicts of both count as well, as {"pixel_values", "labels"}, and batches of either. A data set with a length is read
    where it is; of a `DataLoader` over one, the examples that its sampler is restricted to, in an order and batches of
    our own; a note says where these are not all. What can only be passed over is kept in the temporary folder.
    labelled: whether classes are asked for, or may be missing in part.

    Raises `DataError` for what gives no such pairs, and for a loader that draws examples more than once.
    """
    if isinstance(source, loading.DataLoader):
        batched = source.batch_sampler is not None
        plain = source.collate_fn is loading.default_collate or (
            not batched and source.collate_fn is loading.default_convert
        )
        if not (plain and has_places(source.dataset)):
            with transforms.seed_generators([0]):  # by which it may draw an order
                pairs = _unbatch(source, name, batched=batched, labelled=labelled)
                return _spool(pairs, name, called=_names_of(source.dataset))
        source, notes = restrict(source, name)
        return replace(_read_places(source, name, labelled=labelled), notes=notes)
    if has_places(source):
        return _read_places(source, name, labelled=labelled)
    if not isinstance(source, Iterable) or isinstance(source, str | bytes | Mapping):
        raise DataError(
            f"data is of {type(source).__name__}: give a path, Examples, (inputs, labels), or a data set or an "
            "iterable of (image, label)"
        )
    return _spool(_unbatch(source, name, labelled=labelled), name, called=_names_of(source))


def _read_places(source: Data, name: str, *, labelled: bool) -> Classified:
    """A data set each of whose items can be had by its place."""
    if not len(source):
        raise DataError(f"{name} holds no example: give at least one")
    items = Items(source, name)
    image, label = items.pair(0)
    if is_batch(image, label):
        return _spool(_unbatch((source[place] for place in range(len(source))), name, labelled=labelled), name)
    items.open(0)
    if labelled:
        _note_others(items.item(0), name)
        labelled = any(items.pair(place)[1] is not None for place in items.ask())
        paired = isinstance(items.item(0), tuple | list) and len(items.item(0)) == 2
        if not labelled and paired and not _is_held(source):
            looks = len(items.look())
            note(f"no label was found beside {looks} of the {len(items)} items of {name}, which are read without any")
    kinds, classes = _read_labels(items) if labelled else (Labels(), whole_of(source)[0])
    return _name_classes(Images(items), kinds, name, "the second of each pair", classes)


def _note_others(item: object, name: str) -> None:
    """Say what of a dict that holds an image is passed over, where that may be what it should give."""
    if not isinstance(item, Mapping):
        return
    image, label, mask = (
        next((one for one in names if one in item), None) for names in (_IMAGE_COLUMNS, _LABEL_KEYS, _MASK_COLUMNS)
    )
    if label and mask:
        note(
            f"{name} has {label} and {mask} beside each image: classes are those of {label}, and masks are passed "
            f"over; leave {label} out of a data set with a length to learn from masks"
        )
    elif not (label or mask) and (others := [str(one) for one in item if one != image]):
        note(
            f"{name} has no {', '.join(_LABEL_COLUMNS)}, and is read without classes; it has {', '.join(others)}: call "
            "a class `label`, a mask `mask`, boxes `boxes` and `labels`"
        )


def has_places(source: Data) -> bool:
    """Whether each of its items can be had by its place."""
    passed_over = isinstance(source, loading.IterableDataset | Mapping)
    return not passed_over and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def restrict(loader: Data, name: str) -> tuple[Data, tuple[str, ...]]:
    """(the data set of a loader, or those of its examples that its sampler draws from, in their order; notes).

    What a batch sampler with `drop_last` leaves of its last batch is among them.
    """
    data, batches = loader.dataset, loader.batch_sampler
    while type(batches).__name__ == "BatchSamplerShard":  # of Accelerate: a process's share, as DistributedSampler's
        batches = batches.batch_sampler
    own = batches is not None and type(batches) is not loading.BatchSampler
    sampler = batches if own else getattr(batches, "sampler", loader.sampler)
    if isinstance(sampler, loading.DistributedSampler):  # each process gets its share of the batches from us
        return data, ()
    if isinstance(sampler, loading.RandomSampler) and not sampler.replacement and sampler.num_samples >= len(data):
        return data, ()
    drawn, largest = set[int](), 0
    with transforms.seed_generators([0]):
        for draw in sampler:
            places = [int(place) for place in (draw if own else (draw,))]
            largest = max(largest, len(places))
            for place in places:
                if place in drawn:
                    raise DataError(
                        f"the loader of {name} draws examples more than once ({type(sampler).__name__}), and here each "
                        "counts once: give its data set, or a torch.utils.data.Subset of it"
                    )
                drawn.add(place)
    missing = len(data) - len(drawn)
    if not missing:
        return data, ()
    whole = length_hint(getattr(sampler, "sampler", data)) == len(data)
    if own and getattr(sampler, "drop_last", False) and whole and missing < largest:
        return data, (f"all {len(data)} examples of {name} are read, with those that its loader drops of a last batch",)
    note = f"of the {len(data)} examples of {name} {len(drawn)} are read, those that its loader's sampler draws"
    return loading.Subset(data, sorted(drawn)), (note,)


def _read_labels(items: Items) -> tuple[Labels, tuple[str, ...]]:
    """(the label of each, the names of the classes).

    Data sets of torchvision that change no label have them in `targets`, so that no image is read. Names are those of
    the `targets`, and none are known where what the items give is something else.
    """
    names, whole, places = whole_of(items.items)
    known = _targets_of(whole)
    if known is None:
        return Labels(_label(items.pair(place)[1]) for place in range(len(items))), names
    kept = [_label(known[int(place)]) for place in places]
    if _gives_targets(items.items) and all(_label(items.pair(place)[1]) == kept[place] for place in items.look()):
        return Labels(kept), names
    found = [_label(items.pair(place)[1]) for place in range(len(items))]
    return Labels(found), names if found == kept else ()


def whole_of(data: Data) -> tuple[tuple[str, ...], Data, Sequence[int]]:
    """(names of its classes, the data set that `data` is a `Subset` of, or is, and the places of its items there)."""
    places: Sequence[int] = range(len(data))
    while isinstance(data, loading.Subset):
        places = [data.indices[place] for place in places]
        data = data.dataset
    return _names_of(data), data, places


def _names_of(data: Data) -> tuple[str, ...]:
    """What a data set calls its classes, if it lists them, or numbers them from 0."""
    names: Data = getattr(data, "classes", None)
    if isinstance(names, Mapping):
        by_number = {number: name for name, number in names.items()}
        names = [by_number.get(number) for number in range(len(names))]
        names = () if None in names else names
    if not isinstance(names, Iterable) or isinstance(names, str | bytes) or getattr(names, "shape", None) == ():
        return ()
    return tuple(map(str, names.tolist() if hasattr(names, "tolist") else names))


def _targets_of(data: Data) -> Sequence[Data] | None:
    """The label of each item, if the data set has them at hand: torchvision's folders give those of their `samples`."""
    samples = getattr(data, "samples", None)
    read = getattr(type(data), "__getitem__", None)
    if getattr(read, "__qualname__", "") == "DatasetFolder.__getitem__" and samples is not None:
        return [label for _, label in samples]
    found: Data = getattr(data, "targets", None)
    listed = hasattr(found, "__len__") and not isinstance(found, type | Mapping) and getattr(found, "shape", None) != ()
    if not listed or len(found) != len(data):
        return None
    values: Sequence[Data] = found.to_numpy() if hasattr(found, "to_numpy") else found  # pandas names its rows
    return values


def _gives_targets(data: Data) -> bool:
    """Whether the label of each item is the one in `targets`, whatever code of a user's own might change."""
    if type(data) is loading.Subset:
        return _gives_targets(data.dataset)
    joint = getattr(data, "transforms", None)
    changes = (getattr(data, "target_transform", None), getattr(joint, "target_transform", joint))
    return type(data).__getitem__.__module__.startswith("torchvision.") and changes == (None, None)


def _unbatch(
    source: Iterable[object], name: str, *, batched: bool = False, labelled: bool = True
) -> Iterator[tuple[object, object]]:
    """(image, label) of each item, and of each example of items that are batches.

    batched: all of them are. labelled: whether labels are asked for; else they are None, whatever stands there.
    """
    for number, item in enumerate(source):
        alone = batched and isinstance(item, Tensor | np.ndarray) and is_batch(item, item)
        if batched and not (alone or isinstance(item, Mapping) or (isinstance(item, tuple | list) and len(item) == 2)):
            raise DataError(f"{name} gives batches of {type(item).__name__}: expected (images [B, ...], labels [B])")
        image, label = pair_of(item, f"item {number} of {name}")
        if batched and _are_examples(image, label):
            raise DataError(f"{name} gives two examples in a list as a batch: expected (images [B, ...], labels [B])")
        if batched and _is_one(image, label):
            yield image, label if labelled else None
            continue
        if labelled and not number:
            _note_others(item, name)
        batched = batched or is_batch(image, label)  # after a batch, one of three grey images is one as well
        if not batched:
            yield image, label if labelled else None
            continue
        labels = [None] * len(image) if label is None or (not labelled and is_batch(image, image)) else label
        if (not isinstance(labels, list | tuple) and not getattr(labels, "ndim", 0)) or len(image) != len(labels):
            raise DataError(f"item {number} of {name} is a batch of {len(image)} images: give a label for each")
        yield from zip(image, labels if labelled else [None] * len(image), strict=True)


def _are_examples(one: Data, other: Data) -> bool:
    """Whether these are two images, or (image, label) and (image, label), and no images and their labels."""
    if isinstance(one, tuple | list):
        return len(one) == 2 and _may_be_image(one[0]) and not _may_be_image(one[1], one[0])
    return getattr(one, "ndim", 0) == getattr(other, "ndim", 0) and _may_be_image(one) and _may_be_image(other)


def _may_be_image(value: Data, other: Data = None) -> bool:
    """Whether it is a single image, of the dimensions of the `other`, which is a tensor as well."""
    alike = not isinstance(other, Tensor) or getattr(value, "ndim", 0) == other.ndim
    whole = isinstance(value, Tensor) and value.dtype in (torch.int64, torch.bool)  # as masks are
    return isinstance(value, Image.Image) or (getattr(value, "ndim", 0) in (2, 3) and alike and not whole)


def _is_one(image: Data, label: Data) -> bool:
    """Whether a batch is one example: an opened image, or an array with channels and one label."""
    if isinstance(image, Image.Image):
        return True
    single = not isinstance(label, list | tuple) and label is not None and not getattr(label, "ndim", 0)
    return single and getattr(image, "ndim", 0) == 3 and bool({image.shape[0], image.shape[-1]} & set(CHANNELS))


def is_batch(image: Data, label: Data) -> bool:
    """Whether it is several images: [B, C, H, W], a list of images, or [B, H, W] with B labels.

    What may be one image with channels is one, though it has as many labels: these may tell of each class whether it
    is there.
    """
    if isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4:
        return True
    several = isinstance(label, list | tuple) or getattr(label, "ndim", 0) == 1
    grey = getattr(image, "ndim", 0) == 3 and not {image.shape[0], image.shape[-1]} & set(CHANNELS)
    return grey and several and len(label) == len(image)


def pair_of(item: object, where: str) -> tuple[Data, Data]:
    """(image, label) of an item, or (images, labels) of a batch; None for a label that is not there.

    Of an item with boxes the label is what it holds beside its image, and a mask stands in for a label.
    """
    if isinstance(item, Mapping):
        image = next((name for name in _IMAGE_COLUMNS if name in item), None)
        if image is None:
            raise DataError(f"{where} has {', '.join(map(str, item))} and no image: call it `image`, its class `label`")
        if has_boxes(item):
            return item[image], {name: value for name, value in item.items() if name != image}
        return item[image], next((item[name] for name in (*_LABEL_KEYS, *_MASK_COLUMNS) if name in item), None)
    if isinstance(item, Image.Image | Tensor | np.ndarray):
        return item, None
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return item[0], item[1] if len(item) == 2 else None
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
    raise DataError(f"{where} is {what}: expected a pair (image, label){_TEXTS if isinstance(item, str) else ''}")


def has_boxes(target: Data) -> bool:
    """Whether it is {"boxes", "labels"}, with whatever else."""
    return isinstance(target, Mapping) and {"boxes", "labels"} <= target.keys()


def is_mask(target: Data) -> bool:
    """Whether it is [H, W], [1, H, W] or [H, W, 1], or an image."""
    shape = list(getattr(target, "shape", ()))
    flat = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[-1]))
    return isinstance(target, Image.Image) or (flat and math.prod(shape) > 1)


def _label(value: object) -> object:
    """The label in Python's own numbers; of an array of one element, that element."""
    if not isinstance(value, Tensor | np.generic | np.ndarray):
        return value
    return value.item() if math.prod(value.shape) == 1 else value.tolist()


def picture_of(value: object, name: str) -> Picture:
    """An image as `transforms.Picture`: 16 bits as shares of 65,535; float tensors and arrays as they are."""
    if isinstance(value, Image.Image):
        try:
            return convert(value, name)
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError, TypeError, AssertionError) as error:  # opened, not read, or closed
            raise DataError(f"{name} can't be read: {line(error)}") from error
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        value = tensor.permute(2, 0, 1) if _has_channels_last(value) else tensor
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise DataError(
            f"{name} is {type(value).__name__}{shape}: give PIL images, or arrays [C, H, W] or [H, W, 3]"
            + (_TEXTS if isinstance(value, str) else "")
        )
    values = value.as_subclass(Tensor).detach().cpu()
    values = values[None] if values.dim() == 2 else values
    if values.dtype == torch.uint8 and len(values) in (3, 4):
        return Image.fromarray(values[:3].permute(1, 2, 0).contiguous().numpy())
    if values.dtype == torch.uint16 and len(values) == 4:  # as of bytes, transparency is left out
        values = values[:3]
    largest = LARGEST.get(values.dtype)
    return values.float().contiguous() if largest is None else values.float() / largest


def _has_channels_last(image: Tensor | NDArray[np.generic]) -> bool:
    """Whether it is [H, W, C]: an array of whole numbers, or of floats where nothing but colours can stand last."""
    if isinstance(image, Tensor) or image.ndim != 3:
        return False
    if image.dtype in (np.uint8, np.uint16):
        return image.shape[-1] in CHANNELS
    return image.shape[-1] == 3 and image.shape[0] not in CHANNELS


class _Spooled(Encoded):
    """Images that were passed over once: encoded, or as numbers, one after the other in a file without a name."""

    def __init__(self, name: str) -> None:
        with guard(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the images
        self.title, self._ends = name, array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, value: object) -> None:
        """One more: {"bytes", "path"} as `datasets` has it, or an image."""
        if isinstance(value, Mapping) and not {"bytes", "path"} & value.keys():
            raise DataError(f"{self.name(len(self))} is {', '.join(map(str, value))}, where an image belongs")
        if isinstance(value, Mapping):
            data = value.get("bytes") or Path(value["path"]).read_bytes()
        elif isinstance(value, bytes):
            data = value
        else:
            picture = picture_of(value, self.name(len(self)))
            numbers = picture.numpy() if isinstance(picture, Tensor) else np.asarray(picture)
            data = _ARRAY + json.dumps([str(numbers.dtype), numbers.shape]).encode() + b"\n" + numbers.tobytes()
        with guard(Path(tempfile.gettempdir())):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def end(self) -> None:
        """After the last."""
        with guard(Path(tempfile.gettempdir())):
            self._file.flush()

    def name(self, place: int) -> str:
        return f"item {place} of {self.title}"

    def length(self, place: int) -> int:
        return self._ends[place + 1] - self._ends[place]

    def fetch(self, place: int, start: int, stop: int) -> bytes:
        length = max(0, min(stop, self.length(place)) - start)
        return os.pread(self._file.fileno(), length, self._ends[place] + start)

    def open(self, place: int) -> Picture:
        data = self.fetch(place, 0, self.length(place))
        if not data.startswith(_ARRAY):
            return super().open(place)
        head, _, body = data[len(_ARRAY) :].partition(b"\n")
        kind, shape = json.loads(head)
        numbers = np.frombuffer(bytearray(body), kind).reshape(shape)
        return torch.from_numpy(numbers) if kind == "float32" else Image.fromarray(numbers)

    def size(self, place: int) -> tuple[int, int]:
        picture = self.open(place)
        return (picture.shape[-1], picture.shape[-2]) if isinstance(picture, Tensor) else picture.size

    def stamp(self, place: int) -> bytes:
        if self.fetch(place, 0, len(_ARRAY)) != _ARRAY:
            return super().stamp(place)
        return self.fetch(place, 0, self.length(place))


def _spool(
    pairs: Iterable[tuple[object, object]], name: str, names: tuple[str, ...] = (), called: tuple[str, ...] = ()
) -> Classified:
    """Pass over (image, label) once, and keep them. names, called: see `_name_classes`."""
    source, kinds = _Spooled(name), Labels()
    for image, label in pairs:
        if has_boxes(label) or is_mask(label):
            what = "boxes" if has_boxes(label) else "a mask"
            raise DataError(
                f"{source.name(len(source))} has {what}, which {name} gives in batches or as it is passed over: give a "
                "list, or a data set with a length, of single examples that are had by their places"
            )
        source.add(image)
        kinds.add(_label(label))
    if not len(source):
        raise DataError(f"{name} holds no example: give at least one")
    source.end()
    images = Images(source)
    images.keys()
    return _name_classes(images, kinds, name, "the second of each pair", names, called)


def _name_classes(
    images: Images, kinds: Labels, name: str, column: str, names: tuple[str, ...] = (), called: tuple[str, ...] = ()
) -> Classified:
    """names: of the classes by their numbers; called: of those that are given by name alone."""
    found = kinds.end(name, column, "image")
    if found.classes is not None and not len(found.classes):  # none was added
        return Classified(images, None, names, name)
    if found.classes is None:  # but for numbers, or several for one image, none was added
        if found.flaw:
            raise DataError(found.flaw)
        return Classified(images, None, names, name)
    if not found.names:
        return Classified(images, found.classes, names, name)
    names = names or called
    other = [one for one in found.names if one not in names]
    if other and names:
        note(f"{name} has the label {other[0]!r}, which is none of its classes: they are numbered by the alphabet")
    if other:
        return Classified(images, found.classes, found.names, name)
    return Classified(images, np.array([names.index(one) for one in found.names])[found.classes], names, name)
