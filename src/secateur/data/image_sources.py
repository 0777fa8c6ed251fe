"""Where images with classes come from: folders, and the files and names that tell shards and tables of `datasets`.

Each is read lazily. Data in Python are in `image_pairs`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from secateur._utils.noting import note
from secateur._utils.plugins import line
from secateur.data import labels as labels_of
from secateur.data import parts as parts_of
from secateur.data.image_items import Classified, name_classes
from secateur.data.image_shards import Shards, expand, find_image, list_others, read_class, read_samples
from secateur.data.image_tables import Shown, is_shown, list_parquet, load_library, open_table, read_rows
from secateur.data.images import Files, Images, is_image, is_unread
from secateur.data.labels import Labels
from secateur.errors import DataError

__all__ = [
    "CHANNELS", "LARGEST", "Data", "choose_split", "find_held_out", "is_shards", "is_splits", "is_table", "read_folder",
    "read_hub", "read_shards", "read_table", "show_rows",
]  # fmt: skip

Data: TypeAlias = Any
"""What a user gives, of whatever library it is."""

_TRAIN = "train"
_PART = re.compile("train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?")
"""What a folder of a part of a data set is called."""
LARGEST = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""Of numbers by which images are stored, what stands for 1."""
CHANNELS = (1, 3, 4)


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
        packed = next((one for form in ("*.tar.gz", "*.tgz", "*.zip") for one in sorted(path.glob(form))), None)
        what = f"unpack {packed.name}, or give" if packed else "give"
        raise DataError(f"{path} holds no images in folders named by class: {what} path/class/image.png")
    images = Images(Files([file for file, _ in files]))
    images.keys()  # what is damaged is told now, and not after hours
    labels, classes = np.array([n for _, n in files]), tuple(kind.name for kind in kinds)
    single = classes if len(kinds) == 1 else ()
    unread = [file.name for file, _ in inside if is_unread(file)]
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
    if is_splits(source):
        return next((source[name] for name in parts_of.HELD_OUT if source.get(name) is not None), None)
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    if files := list_parquet(path) or (expand(path) if is_shards(path) else []):
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


def is_shards(source: object) -> bool:
    """Whether it is a .tar file, a pattern such as data-{000..009}.tar or data-*.tar, or a folder of such files."""
    if not isinstance(source, str | Path):
        return False
    path, _ = parts_of.split_name(Path(source))
    return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


def read_shards(source: str | Path, label: str = labels_of.DEFAULT) -> Classified:
    """WebDataset shards: in each .tar, files of one name with several endings are an example: NAME.jpg and NAME.cls.

    A class is in NAME.cls (a number or a name), in NAME.json under `label`, or in NAME.txt; a `label` that is named
    stands in NAME.json, or is such an ending. Their index takes a pass over the files' headers. Of shards whose names
    tell parts, those of train are read; see `parts.choose`.

    Raises `DataError` for a shard that can't be read or was cut off, or that holds no image, and for a `label` that is
    named and not there.
    """
    paths, notes = parts_of.choose(Path(source), expand(source))
    members, names, kinds, others, bare = array("q"), list[str](), Labels(), "", list[str]()
    column = "cls" if label == labels_of.DEFAULT else label
    for number, path in enumerate(paths):
        for key, parts in read_samples(path):
            image = find_image(path, parts, key)
            if image is None:
                bare.append(f"{key}.{next(iter(parts))}")
                continue
            members.extend((number, image.offset_data, image.size))
            names.append(image.name)
            kind = read_class(path, parts, label, key) if label else None
            kinds.add(kind)
            if "json" in parts and "cls" not in parts:
                column = label
            if label and kind is None and not others:
                others = list_others(path, parts, key)
    if not names:
        raise DataError(f"{source} holds no images: give .tar files of NAME.jpg with NAME.cls beside each")
    images = Images(Shards(paths, np.array(members, np.int64).reshape(-1, 3), names))
    images.keys()
    found = name_classes(images, kinds, Path(source).name, column)
    if found.labels is None and others:
        note(f"{found.name} has no label in .cls, .json or .txt, and is read without classes; {others}")
    if bare:
        few = ", ".join(bare[:3])
        notes = (*notes, f"{len(bare)} examples of {found.name} are left out, without an image that is read: {few}")
    return replace(found, notes=notes)


def is_table(source: object) -> bool:
    """Whether it is a table of `datasets`, one saved on the disk, or parquet."""
    if isinstance(source, str | Path):
        path = Path(source)
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return saved or bool(list_parquet(path))
    return type(source).__module__.partition(".")[0] == "datasets"


def read_table(source: Data, label: str = labels_of.DEFAULT) -> Classified:
    """The images and classes of a table: of `datasets`, of a folder of `save_to_disk`, of parquet; of several splits
    `train`, and so of files that are named for parts, see `parts.choose`. One that is streamed is passed over once, and
    kept in the temporary folder as it is encoded.

    label: the column of classes. Raises `DataError` for a table without a column of images.
    """
    datasets, name = load_library(), Path(source).name if isinstance(source, str | Path) else "the table"
    rows, notes = open_table(Path(source), datasets) if isinstance(source, str | Path) else (source, ())
    return replace(read_rows(choose_split(rows, name), label, name, datasets), notes=notes)


def show_rows(table: Data, label: str = labels_of.DEFAULT) -> Shown | None:
    """The rows of a table, or of the split `train`, as a transform of the user's own gives them; None without one."""
    rows = choose_split(table, "the table")
    return Shown(rows, label) if is_shown(rows) else None


def is_splits(source: Data) -> bool:
    """Whether it is a dict of the parts of a data set, of `datasets` or not, by their names."""
    known = isinstance(source, Mapping) and len(source) > 0
    named = known and (_TRAIN in source or set(source) <= set(parts_of.HELD_OUT))  # a column may be called test
    return named or type(source).__name__ in ("DatasetDict", "IterableDatasetDict")


def choose_split(source: Data, name: str) -> Data:
    """The part `train` of what has several parts; what has none, as it is. Raises `DataError` for other parts alone."""
    if not is_splits(source):
        return source
    if source.get(_TRAIN) is None:
        raise DataError(f"{name} has the splits {', '.join(map(str, source))} and no train: give one of them")
    return source[_TRAIN]


def read_hub(name: str, label: str = labels_of.DEFAULT) -> Classified:
    """A data set of the Hub, "owner/name", "owner/name:configuration" or "owner/name:configuration:split"."""
    identifier, configuration, split = (*name.removeprefix("hub:").split(":"), "", "")[:3]
    datasets = load_library()
    try:
        rows = datasets.load_dataset(identifier, configuration or None, split=split or _TRAIN)
    except Exception as error:  # of the network, the Hub and the library
        raise DataError(f"there is no data at {name}, nor could it be loaded from the Hub: {line(error)}") from error
    found = read_table(rows, label)
    return Classified(found.images, found.labels, found.classes, identifier)
