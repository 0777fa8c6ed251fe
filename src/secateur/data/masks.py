"""Masks beside images, a class for each pixel: found in folders, read when they are asked for, moved with their images.

In a mask of 8 bits 255 counts nowhere, as in Pascal VOC and Cityscapes; in one of 16 bits 65,535 does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from secateur.data import parts as parts_of
from secateur.data import transforms
from secateur.data.images import Files, Images, Places, Source, is_image, naming
from secateur.errors import DataError

__all__ = [
    "BINARY", "IGNORED", "VOID", "Masked", "Masks", "find_held_out", "find_pair", "is_binary", "read", "void_note",
]  # fmt: skip

IGNORED = -100
"""Label of a pixel that counts nowhere."""

_IMAGES = ("images", "imgs", "img", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
_ENDS = ("", "_mask", "-mask", "_label", "_seg")
"""What a mask's name has after its image's."""
_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})
_NAMES = ("classes.txt", "labels.txt")
_AT_ONCE = 2**20
"""Numbers of masks in memory that are looked at in one go."""
_SAMPLE = 200
"""Masks that are looked into before any is asked for."""
VOID = 255
"""What counts nowhere, of networks of no more classes, in masks of any depth."""
BINARY = "255 is read as class 1"
"""What is said of masks that are `Masks.binary`."""


class Masks:
    """A mask for each image of a source, [H, W] int64: only those that are asked for are in memory.

    files: the masks in the order of the source's images. binary: 255 is class 1, and not what counts nowhere. classes:
    of the network that learns from them, if one is known: a label that is none of them is refused where it is read.
    """

    def __init__(self, files: Source, binary: bool = False, classes: int | None = None) -> None:
        self.files, self.binary, self.classes = files, binary, classes

    def limit(self, classes: int) -> Masks:
        """The same masks, for a network of so many classes."""
        return type(self)(self.files, self.binary, classes)

    def follow(self, other: Masks) -> Masks:
        """The same masks, in which 255 is what it is in the `other` ones."""
        return type(self)(self.files, other.binary, self.classes)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def _stamps(self) -> NDArray[np.void]:
        return Images(self.files).keys()

    def digest(self, images: Images) -> bytes:
        """sha256 of the files of these images' masks."""
        return hashlib.sha256(self._stamps[images.places].tobytes() + bytes([self.binary])).digest()

    def original(self, place: int) -> Tensor:
        """The mask of the image at a place of the source, [H, W] int32, in its own size.

        Raises `DataError` for a file that can't be read, whose colours are no numbers of classes, or that holds a label
        which is none of the `classes`; where masks are `binary`, for any value but 0 and 255.
        """
        name = self.files.name(place)
        values, void = self._decode(place)
        if self.binary:
            others = values[(values != 0) & (values != void)]
            if len(others):
                raise DataError(
                    f"{name} holds the value {int(others[0])}, and masks that the data was read by hold 0 and {void} "
                    f"alone, where {void} is class 1: write the classes as 0, 1, 2, ... in all of them"
                )
            return (values > 0).int()
        values.masked_fill_(values == void, IGNORED)
        if self.classes is not None:
            if self.classes <= VOID:
                values.masked_fill_(values == VOID, IGNORED)
            wrong = values[(values != IGNORED) & ((values < 0) | (values >= self.classes))]
            if len(wrong):
                raise DataError(
                    f"{name} holds the label {int(wrong[0])}: the model has {self.classes} classes, 0 to "
                    f"{self.classes - 1}"
                )
        return values

    def _decode(self, place: int) -> tuple[Tensor, int]:
        """(the numbers [H, W] int32 of a mask, the number that counts nowhere); of a mask of bits 255 for its ones."""
        files, name = cast(Files, self.files), self.files.name(place)
        with naming(name), Image.open(BytesIO(files.fetch(place, 0, files.length(place)))) as image:
            mode = image.mode
            if mode not in ("P", "L", "1") and not mode.startswith("I"):
                raise DataError(
                    f"{name} is in {mode}: give masks whose pixels are numbers of classes, in grey or with a palette"
                )
            values = torch.from_numpy(np.asarray(image).astype(np.int32))
        values = values * VOID if mode == "1" and self.binary else values
        return values, 65535 if mode.startswith("I") else VOID

    def read(self, images: Images, indices: Places, draw: Sequence[int] | None = None) -> Tensor:
        """[n, H, W] int64: the masks of the images at `indices`, moved as these are; see `Images.read`.

        Raises `DataError` also for a mask of another size than its image.
        """
        transform = images.transform or transforms.PRESETS["none"]
        found = list[Tensor]()
        for index in np.asarray(indices, np.int64):
            place = int(images.places[index])
            mask = self.original(place)
            width, height = images.source.size(place)
            if mask.shape != (height, width):
                raise DataError(
                    f"{self.files.name(place)} is {mask.shape[1]}x{mask.shape[0]}, its image "
                    f"{images.source.name(place)} is {width}x{height}: give masks of the size of their images"
                )
            if draw is None:
                moved = transform.move_mask(mask, IGNORED)
            else:
                with transforms.seed_generators([*draw, place]):
                    moved = transform.move_mask(mask, IGNORED, training=True)
            found.append(moved.long())
        return torch.stack(found) if found else torch.zeros(0, *images.shape[2:], dtype=torch.long)

    def look_binary(self) -> bool:
        """Whether a sample of them holds 0 and the number that counts nowhere, and no other."""
        return _sample_values(self) == {0, IGNORED}

    def count_classes(self, images: Images, classes: int | None = None) -> NDArray[np.int64]:
        """[classes]: pixels of each class in a sample of the images' masks, evenly spaced.

        classes: of a network: where these are no more than 255, the value 255 is no class in masks of any depth.
        """
        counts = np.zeros(1, np.int64)
        for place in images.places[_sample(len(images))].tolist():
            mask = self.original(place)
            void = classes is not None and classes <= VOID
            own = torch.bincount(mask[(mask >= 0) & ~((mask == VOID) & void)]).numpy()
            longer = np.zeros(max(len(counts), len(own)), np.int64)
            longer[: len(counts)] += counts
            longer[: len(own)] += own
            counts = longer
        return counts


def is_binary(labels: Tensor) -> bool:
    """Whether masks [N, H, W] hold 0 and 255 and no other, as of files `Masks.look_binary` says."""
    if labels.dim() != 3 or not labels.numel():
        return False
    seen = {0: False, VOID: False}
    for part in labels.split(max(1, _AT_ONCE // labels[0].numel())):  # the first of them tell most
        found = {value: part == value for value in seen}
        if not bool((found[0] | found[VOID]).all()):
            return False
        seen = {value: seen[value] or bool(found[value].any()) for value in seen}
    return all(seen.values())


def void_note(labels: Tensor | None, name: str) -> str:
    """A line on masks in an array that hold 0 and 255 alone, where one class would be learned; "" for other labels."""
    if labels is None or not is_binary(labels):
        return ""
    return f"masks of {name} hold 0 and 255 alone: 255 counts nowhere in arrays, write 1 for what is a class"


@dataclass(frozen=True)
class Masked:
    """Images, the mask of each, names of the classes, and what was left out."""

    images: Images
    masks: Masks
    classes: tuple[str, ...] = ()
    name: str = "masks"
    notes: tuple[str, ...] = ()


def find_pair(path: Path) -> tuple[Path, Path] | None:
    """(folder of images, folder of their masks) in `path`; of a part for training, where there are several.

    `images/` beside `masks/`, in the folder or in its `train/`, or `images/train/` beside `masks/train/`; also named
    `imgs`, `JPEGImages`, and `labels`, `annotations`, `SegmentationClass`. `path` may be one of several parts of the
    images. None where there is no such pair.
    """
    if not path.is_dir():
        return None
    for folder in (path, path / "train"):
        pair = _pair_in(folder)
        if pair is not None:
            train = pair[0] / "train", pair[1] / "train"
            return train if all(part.is_dir() for part in train) else pair
    if path.parent.name in _IMAGES:  # a part of the images
        beside = _first_folder(path.parent.parent, _MASKS)
        if beside is not None and _holds_masks(beside / path.name):
            return path, beside / path.name
    return None


def find_held_out(path: Path) -> Path | None:
    """The part of a folder of images and masks that is there to measure on, for `read`; None where there is none."""
    pair = find_pair(path)
    if pair is None or "train" not in (pair[0].name, pair[0].parent.name):
        return None
    if pair[0].name == "train":
        parts = [pair[0].with_name(name) for name in parts_of.HELD_OUT]
    else:
        parts = [pair[0].parent.with_name(name) for name in parts_of.HELD_OUT]
    return next((part for part in parts if part.is_dir() and find_pair(part) is not None), None)


def read(path: Path) -> Masked | None:
    """Images and their masks in a folder, see `find_pair`; None where it holds none.

    The names of classes stand in `classes.txt`, one a line. Where masks hold 0 and 255 alone, 255 is class 1.

    Raises `DataError` for masks that belong to no image, and for damaged files.
    """
    pair = find_pair(path)
    if pair is None:
        return None
    pictures, drawn = pair
    by_name = {str(file.relative_to(drawn).with_suffix("")): file for file in _list(drawn, _LOSSLESS)}
    files, masks, without = list[Path](), list[Path](), 0
    for file in _list(pictures):
        stem = str(file.relative_to(pictures).with_suffix(""))
        mask = next((by_name[stem + end] for end in _ENDS if stem + end in by_name), None)
        if mask is None:
            without += 1
        else:
            files.append(file)
            masks.append(mask)
    if not files:
        lossy = "; JPEG does not keep numbers" if any(_list(drawn)) and not by_name else ""
        raise DataError(
            f"no mask in {drawn} is of an image in {pictures}: give each the name of its image, as PNG{lossy}"
        )
    images, found = Images(Files(files)), Masks(Files(masks))
    images.keys()  # what is damaged is told now, and not after hours
    notes = [f"{without} images of {pictures} have no mask, and are left out"] if without else []
    if found.look_binary():
        found = Masks(found.files, binary=True)
        notes.append(f"masks in {drawn} hold 0 and 255 alone: {BINARY}")
    found.digest(images)
    return Masked(images, found, _read_names(path, drawn), path.name, tuple(notes))


def _pair_in(folder: Path) -> tuple[Path, Path] | None:
    images, masks = _first_folder(folder, _IMAGES), _first_folder(folder, _MASKS)
    return (images, masks) if images is not None and masks is not None and _holds_masks(masks) else None


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _holds_masks(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(file) for file in folder.rglob("*"))


def _list(folder: Path, suffixes: frozenset[str] | None = None) -> list[Path]:
    files = (file for file in sorted(folder.rglob("*")) if is_image(file))
    return [file for file in files if suffixes is None or file.suffix.lower() in suffixes]


def _sample(count: int) -> NDArray[np.int64]:
    """At most `_SAMPLE` of so many places, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).round().astype(np.int64))


def _sample_values(masks: Masks) -> set[int]:
    return {value for place in _sample(len(masks)).tolist() for value in torch.unique(masks.original(place)).tolist()}


def _read_names(path: Path, drawn: Path) -> tuple[str, ...]:
    for folder in dict.fromkeys((path, path.parent, drawn.parent, drawn.parent.parent)):
        for name in _NAMES:
            if (folder / name).is_file():
                lines = (folder / name).read_text("utf-8-sig").splitlines()
                return tuple(line.strip() for line in lines if line.strip())
    return ()
