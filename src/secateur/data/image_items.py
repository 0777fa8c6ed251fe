"""Examples of Python: image and label in whatever form, sequences of them, and those that are passed over once.

What can be passed over once only goes to a file without a name in the temporary folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from secateur._utils.disk import guard
from secateur._utils.noting import note
from secateur._utils.plugins import line
from secateur.data import transforms
from secateur.data.images import Encoded, Images, Source, convert, decode, naming, read_size
from secateur.data.labels import Labels
from secateur.data.transforms import Picture
from secateur.errors import DataError

__all__ = [
    "CHANNEL_COUNTS", "IMAGE_COLUMNS", "LABEL_COLUMNS", "LABEL_KEYS", "MASK_COLUMNS", "Classified", "Given",
    "Items", "has_boxes", "is_held", "is_mask", "label_of", "may_be_image", "name_classes", "pair_of", "picture_of",
    "spool", "tensor_of",
]  # fmt: skip

Given: TypeAlias = Any
"""What a user gives, of whatever library it is."""
IMAGE_COLUMNS = ("image", "img", "images", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
LABEL_KEYS = (*LABEL_COLUMNS, "targets")
MASK_COLUMNS = ("mask", "masks")
CHANNEL_COUNTS = (1, 3, 4)
_TEXTS = "; texts, in a list, are for recipes on language models (secateur list)"
_ARRAY = b"\x93secateur-array\n"
"""How an image begins that is kept as numbers: then kind and shape as a line of JSON."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_LOOKS = 8
"""Items of a data set that are asked what it has beside its images."""


@dataclass(frozen=True)
class Classified:
    """Images, the class of each if they have any, the names of the classes, and notes for the run's evidence."""

    images: Images
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    notes: tuple[str, ...] = ()


def is_held(items: Given) -> bool:
    """Whether they lie in memory as they are."""
    return type(items) in (list, tuple)


class Items(Source):
    """Images in a sequence of Python's: of arrays, tensors or PIL images, of (image, label), or of dicts of both.

    Each is read under a seed of its own, so that a data set that augments gives the same image again.
    """

    def __init__(self, items: Given, name: str) -> None:
        self.items, self.title = items, name
        self._sizes = dict[int, tuple[int, int]]()

    def __len__(self) -> int:
        return len(self.items)

    def open(self, place: int) -> Picture:
        """The image."""
        return picture_of(self.pair(place)[0], self.name(place))

    def pair(self, place: int) -> tuple[Given, Given]:
        """(image, its label or None)."""
        image, label = pair_of(self.item(place), self.name(place))
        if isinstance(image, Image.Image):
            self._sizes[place] = image.size
        elif isinstance(image, Tensor | np.ndarray) and image.ndim in (2, 3):
            height, width = image.shape[:2] if _has_channels_last(image) else image.shape[-2:]
            self._sizes[place] = (width, height)
        elif (file := _read_file(image, self.name(place))) is not None:
            self._sizes[place] = read_size(file, self.name(place))
        return image, label

    def item(self, place: int) -> Given:
        """What the sequence holds."""
        if is_held(self.items):
            return self.items[place]
        with transforms.seed_generators([place]):
            try:
                return self.items[place]
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{self.name(place)} can't be read: {line(error)}") from error

    def ask(self) -> Sequence[int]:
        """Places that show what stands beside images: all, if no image has to be read for it."""
        return range(len(self)) if is_held(self.items) else self.look()

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


def pair_of(item: object, where: str) -> tuple[Given, Given]:
    """(image, label) of an item, or (images, labels) of a batch; None for a label that is not there.

    Of an item with boxes the label is what it holds beside its image, and a mask stands in for a label.
    """
    if isinstance(item, Mapping):
        image = next((name for name in IMAGE_COLUMNS if name in item), None)
        if image is None:
            raise DataError(f"{where} has {', '.join(map(str, item))} and no image: call it `image`, its class `label`")
        if has_boxes(item):
            return item[image], {name: value for name, value in item.items() if name != image}
        return item[image], next((item[name] for name in (*LABEL_KEYS, *MASK_COLUMNS) if name in item), None)
    if isinstance(item, np.ndarray) and item.ndim == 1 and item.dtype.hasobject:  # as `to_numpy` of pandas has a row
        item = tuple(item)
    if isinstance(item, Image.Image | Tensor | np.ndarray):
        return item, None
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return item[0], item[1] if len(item) == 2 else None
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
    raise DataError(f"{where} is {what}: expected a pair (image, label){_TEXTS if isinstance(item, str) else ''}")


def has_boxes(target: Given) -> bool:
    """Whether it is {"boxes", "labels"}, with whatever else."""
    return isinstance(target, Mapping) and {"boxes", "labels"} <= target.keys()


def may_be_image(value: Given) -> bool:
    """Whether it may be an image: an opened one, a file's bytes, or an array with or without channels."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim in (2, 3)
    undecoded = isinstance(value, Mapping) and bool(value.keys() & {"bytes", "path"})
    return undecoded or isinstance(value, Image.Image | bytes)


def is_mask(target: Given) -> bool:
    """Whether it is [H, W], [1, H, W] or [H, W, 1], or an image."""
    shape = list(getattr(target, "shape", ()))
    flat = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[-1]))
    return isinstance(target, Image.Image) or (flat and math.prod(shape) > 1)


def label_of(value: object) -> object:
    """The label in Python's own numbers; of an array of one element, that element; None for what pandas has of none."""
    if type(value).__name__ == "NAType":
        return None
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
            if isinstance(error, AssertionError) or "closed" in str(error):
                raise DataError(f"{name} is an image that was closed: load() it before, and leave it open") from error
            raise DataError(f"{name} can't be read: {line(error)}") from error
    file = _read_file(value, name)
    if file is not None:
        return decode(file, name)
    if isinstance(value, np.ndarray):
        tensor = tensor_of(value, name)
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
    if values.dtype in (torch.uint8, torch.uint16):
        return values.float() / torch.iinfo(values.dtype).max
    values = values.float().contiguous()
    if not torch.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity: give numbers for every pixel")
    return values


def tensor_of(array: NDArray[np.generic], name: str) -> Tensor:
    """The numbers of an array, whatever their byte order. Raises `DataError` for what torch has no numbers for."""
    try:
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise DataError(f"{name} is an array of {array.dtype}: give numbers such as uint8 or float32") from error


def _read_file(value: object, name: str) -> bytes | None:
    """The file of an image that is given as its bytes, or undecoded as by `datasets`, {"bytes", "path"}; else None."""
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        with naming(name):
            return value.get("bytes") or Path(value["path"]).read_bytes()
    return value if isinstance(value, bytes) else None


def _has_channels_last(image: Tensor | NDArray[np.generic]) -> bool:
    """Whether it is [H, W, C]: an array of whole numbers, or of floats where nothing but colours can stand last."""
    if isinstance(image, Tensor) or image.ndim != 3:
        return False
    if image.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return image.shape[-1] in CHANNEL_COUNTS
    return image.shape[-1] == 3 and image.shape[0] not in CHANNEL_COUNTS


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
        data = _read_file(value, self.name(len(self)))
        if data is None:
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


def spool(
    pairs: Iterable[tuple[object, object]], name: str, names: tuple[str, ...] = (), called: tuple[str, ...] = ()
) -> Classified:
    """Pass over (image, label) once, and keep them. names, called: see `name_classes`."""
    source, kinds = _Spooled(name), Labels()
    for image, label in pairs:
        if has_boxes(label) or is_mask(label):
            what = "boxes" if has_boxes(label) else "a mask"
            raise DataError(
                f"{source.name(len(source))} has {what}, which {name} gives in batches or as it is passed over: give a "
                "list, or a data set with a length, of single examples that are had by their places"
            )
        source.add(image)
        kinds.add(label_of(label))
    if not len(source):
        raise DataError(f"{name} holds no example: give at least one")
    source.end()
    images = Images(source)
    images.keys()
    return name_classes(images, kinds, name, "the second of each pair", names, called)


def name_classes(
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
        most = int(found.classes.max())
        if names and most >= len(names):
            note(f"{name} names {len(names)} classes and has the label {most}: the names are left out")
            names = ()
        return Classified(images, found.classes, names, name)
    names = names or called
    digits = not names and all(map(_NUMBER.fullmatch, found.names))
    if digits and [*map(float, found.names)] != [*range(len(found.names))]:
        few = ", ".join(map(repr, found.names[:3]))
        note(
            f"{name} has labels that are strings of digits, {few}: they are taken as names in alphabetical order; give "
            "numbers, as by int(label), to have classes by their numbers"
        )
    other = [one for one in found.names if one not in names]
    if other and names:
        note(f"{name} has the label {other[0]!r}, which is none of its classes: they are numbered by the alphabet")
    if other:
        return Classified(images, found.classes, found.names, name)
    return Classified(images, np.array([names.index(one) for one in found.names])[found.classes], names, name)
