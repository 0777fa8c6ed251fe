"""A column of images that lie on the disk: each is read, decoded and transformed when it is asked for."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from secateur._utils import hashes
from secateur.data import feeding, transforms
from secateur.data.transforms import Picture, Transform
from secateur.errors import DataError, SecateurError

__all__ = [
    "SUFFIXES",
    "Encoded",
    "Files",
    "Images",
    "Places",
    "Source",
    "convert",
    "declare",
    "decode",
    "is_image",
    "is_unread",
    "naming",
    "read_size",
]

SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif",
        ".tiff", ".webp",
    }
)  # fmt: skip
_UNREAD = frozenset({".arw", ".cr2", ".dng", ".heic", ".heif", ".nef", ".psd", ".svg"})
"""Of files of images that Pillow does not read by itself."""
Places: TypeAlias = "Sequence[int] | NDArray[np.int64] | Tensor"

_HEAD = 16384
"""Bytes of a file that tell it from another of the same size."""
_TAIL = 4096
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
"""How files of JPEG and PNG begin, and what stands at their end."""
_READERS, _AT_ONCE = 8, 1024
_ORIENTATION = 274
"""The tag of EXIF that says how an image is turned."""


class Source(Protocol):
    """Images in order, each of which can be opened at any time, in any process."""

    def __len__(self) -> int: ...

    def open(self, place: int) -> Picture:
        """The image, decoded. Raises `DataError` for one that can't be read."""
        ...

    def name(self, place: int) -> str:
        """What messages call it."""
        ...

    def size(self, place: int) -> tuple[int, int]:
        """(width, height) of the image upright, of which no more is read than need be."""
        ...

    def stamp(self, place: int) -> bytes:
        """Bytes that are equal for equal images, and different for others."""
        ...


class Images:
    """[N, C, H, W] float32 images, of which only those that are asked for are in memory.

    It is in the place of a tensor in `Examples.inputs`: `len`, `shape`, `dtype`, and an index, a slice or a list of
    places that gives a tensor. `take` gives others of the same source, and reads none.

    source: where they lie. transform: what each becomes; `Transform("")` or None until the model's own is known.
    places: which of the source these are, in order; all unless given. workers: processes that read ahead where batches
    are asked for one after the other; by the machine's cores if None.
    """

    dtype = torch.float32

    def __init__(
        self,
        source: Source,
        transform: Transform | None = None,
        places: Places | None = None,
        workers: int | None = None,
    ) -> None:
        self.source, self.transform, self.workers = source, transform, workers
        self.places = np.arange(len(source)) if places is None else np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def shape(self) -> torch.Size:
        """[N, C, H, W]; the first image is read to know it."""
        return torch.Size((len(self), *self.read([0]).shape[1:]))

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def draws_anew(self) -> bool:
        """Whether training sees other inputs in each epoch."""
        return self.transform is not None and self.transform.random

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) by which pixels of 0 to 1 become inputs, empty for none; None for a user's own functions."""
        transform = self.transform or transforms.PRESETS["none"]
        return None if transform.steps is not None else (tuple(transform.mean), tuple(transform.std))

    def dim(self) -> int:
        """4."""
        return 4

    def is_floating_point(self) -> bool:
        """True."""
        return True

    def element_size(self) -> int:
        """Bytes of a number."""
        return 4

    def count_bytes(self, count: int) -> int:
        """Bytes of the inputs of so many."""
        return count * math.prod(self.shape[1:]) * self.element_size()

    @cached_property
    def file_bytes(self) -> NDArray[np.float64] | None:
        """[N], the bytes of each image's file; None where they lie in no files."""
        source = self.source
        if not isinstance(source, Encoded):
            return None
        return np.array([source.length(place) for place in self.places.tolist()], np.float64)

    def count_workers(self) -> int:
        """Processes that read ahead."""
        return feeding.count_workers() if self.workers is None else self.workers

    def __getitem__(self, index: int | slice | Places | tuple[int | slice, ...]) -> Tensor:
        """Those in a slice or at a list of places, [n, C, H, W], or the one at a place, read now, not augmented."""
        if isinstance(index, tuple):
            first, *rest = index
            return self[first][(slice(None), *rest) if isinstance(first, slice) else tuple(rest)]
        if isinstance(index, int):
            return self.read([index])[0]
        return self.read(range(*index.indices(len(self))) if isinstance(index, slice) else index)

    def take(self, indices: Places) -> Images:
        """The images at `indices`, in that order; none is read."""
        chosen = np.asarray(indices, np.int64)
        found = Images(self.source, self.transform, self.places[chosen], self.workers)
        if "_stamps" in self.__dict__:
            found.__dict__["_stamps"] = self._stamps[chosen]
        return found

    def with_transform(self, transform: Transform | None, workers: int | None = None) -> Images:
        """The same images, which become other inputs, read by other workers if they are given."""
        found = Images(self.source, transform, self.places, self.workers if workers is None else workers)
        if "_stamps" in self.__dict__:
            found.__dict__["_stamps"] = self._stamps
        return found

    def name(self, index: int) -> str:
        """What messages call the image at `index`."""
        return self.source.name(int(self.places[index]))

    def original(self, index: int) -> Picture:
        """The image at `index` as it lies there: upright, in its own size, see `transforms.Picture`."""
        return self.source.open(int(self.places[index]))

    def read(self, indices: Places, draw: Sequence[int] | None = None) -> Tensor:
        """The inputs at `indices`, [n, C, H, W].

        draw: for the part of the transform that is for training, whole numbers such as seed and epoch; what an image
        becomes is a function of these and of its place in the source.

        Raises `DataError` for an image that can't be read, or of another size than the first.
        """
        found: list[Tensor] = []
        transform = self.transform or transforms.PRESETS["none"]
        for index in np.asarray(indices, np.int64):
            place = int(self.places[index])
            picture = self.source.open(place)
            try:
                if draw is None:
                    value = transform(picture)
                else:
                    with transforms.seed_generators([*draw, place]):
                        value = transform(picture, training=True)
            except SecateurError:
                raise
            except Exception as error:  # of a user's own function, or of torchvision
                said = " ".join(str(error).split())[:200]
                raise DataError(
                    f"transform={transform.name} failed on {self.source.name(place)} ({type(error).__name__}: {said})"
                ) from error
            if found and value.shape != found[0].shape:
                first = self.source.name(int(self.places[int(np.asarray(indices)[0])]))
                raise DataError(_describe_difference((self.source.name(place), value), (first, found[0])))
            found.append(value)
        return torch.stack(found) if found else torch.zeros(0, *self.shape[1:])

    @cached_property
    def _stamps(self) -> NDArray[np.void]:
        damaged: list[str] = []

        def digest(place: int) -> bytes:
            """Of the image's stamp: heads of a thousand files are not held at once."""
            try:
                return hashes.digests([self.source.stamp(place)]).tobytes()
            except DataError as error:
                damaged.append(str(error))
                return bytes(hashes.SIZE)

        found = np.empty(len(self), np.dtype((np.void, hashes.SIZE)))
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(self), _AT_ONCE):
                part = self.places[start : start + _AT_ONCE].tolist()
                found[start : start + _AT_ONCE] = np.frombuffer(b"".join(pool.map(digest, part)), found.dtype)
        if damaged:
            more = f"; so are {len(damaged) - 1} more of {len(self)}" if len(damaged) > 1 else ""
            raise DataError(min(damaged) + more)
        return found

    def keys(self) -> NDArray[np.void]:
        """[N] digests of 16 bytes, equal for files of equal bytes; told by their size and their first 16 KiB.

        Raises `DataError` for files that are no images, or were cut short; the whole of them is not read.
        """
        return self._stamps

    def whole_keys(self) -> NDArray[np.void]:
        """[N] digests of 16 bytes, of all bytes of the files: equal for equal files alone; each is read."""
        source = self.source
        if not isinstance(source, Encoded):
            return self._stamps
        files = ((place, source.length(place)) for place in self.places.tolist())
        return hashes.digests(source.fetch(place, 0, length) for place, length in files)

    @property
    def digest(self) -> bytes:
        """sha256 of what lies there, and of the transform that is measured with."""
        found = hashlib.sha256(self._stamps.tobytes())
        found.update((self.transform or transforms.PRESETS["none"]).key.encode())
        return found.digest()


def declare(images: Images, model: object, sides: Sequence[int] | None = None, name: str = "the data") -> Images:
    """The images with a transform: their own, or the model's where nothing was said, or none where all have one size.

    model: what `transforms.of_model` looks at. sides: (C, H, W) of the inputs that the model was given to run on.

    Raises `DataError` for images of unequal sizes, of which nobody says how they become inputs.
    """
    said = images.transform
    if said is not None and said.name:
        return images
    own = transforms.of_model(model, sized=said is not None)
    if said is not None:  # a size alone
        plain = replace(said, name="size")
        return images.with_transform((own or plain).with_size(said.size, said.channels))
    if own is not None:
        if sides is not None and len(sides) == 3 and tuple(sides[1:]) != own.size:
            own = own.with_size((sides[1], sides[2]), own.channels)
        return images.with_transform(own)
    first = images.source.size(int(images.places[0]))
    for place in images.places[1:].tolist():
        other = images.source.size(place)
        if other != first:
            raise DataError(
                f"{name} holds images of unequal sizes ({first[0]}x{first[1]}, {other[0]}x{other[1]}), and the model "
                "does not record how it takes them: say how they become inputs, such as --transform imagenet, "
                "--size 224, or --transform file.py:function"
            )
    return images.with_transform(transforms.PRESETS["none"])


def _describe_difference(one: tuple[str, Tensor], first: tuple[str, Tensor]) -> str:
    """A line on two images, each its name and [C, H, W], that can't stand in one batch."""
    (name, value), (other, beside) = one, first
    if value.shape[-2:] == beside.shape[-2:]:
        counts = [f"{shape[0]} channel{'s' * (shape[0] != 1)}" for shape in (value.shape, beside.shape)]
        return f"{name} has {counts[0]}, {other} has {counts[1]}: give all images the same channels"
    return (
        f"{name} is {_size(value)}, {other} is {_size(beside)}: bring all images to one size, such as with --size 224 "
        "or --transform imagenet"
    )


def _size(value: Tensor) -> str:
    return f"{value.shape[-1]}x{value.shape[-2]}"


# ----------------------------------------------------------------------------------------------------------- reading


class Encoded(Source, ABC):
    """Images as the bytes of files, wherever these lie."""

    @abstractmethod
    def length(self, place: int) -> int:
        """Bytes of the image's file."""

    @abstractmethod
    def fetch(self, place: int, start: int, stop: int) -> bytes:
        """Some of them."""

    def open(self, place: int) -> Picture:
        """The image, decoded."""
        return decode(self.fetch(place, 0, self.length(place)), self.name(place))

    def size(self, place: int) -> tuple[int, int]:
        """From the head of the file; from all of it where the head does not say."""
        head = self.fetch(place, 0, _HEAD)
        try:
            return read_size(head, self.name(place))
        except DataError:  # of a .tif, whose directory may stand at the end
            return read_size(self.fetch(place, 0, self.length(place)), self.name(place))

    def stamp(self, place: int) -> bytes:
        """Length and head of the file. Raises `DataError` for one that is no image, or was cut short."""
        length = self.length(place)
        head = self.fetch(place, 0, _HEAD)
        end = next((mark for start, mark in _ENDS.items() if head.startswith(start)), None)
        if end is None:
            self.size(place)
        elif end not in (head if length <= _HEAD else self.fetch(place, length - _TAIL, length)):
            self.open(place)  # some cameras write more behind the end
        return length.to_bytes(8, "little") + head


class Files(Encoded):
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, place: int) -> str:
        """Its path."""
        return self.paths[place]

    def length(self, place: int) -> int:
        """Bytes of the file."""
        with naming(self.paths[place]):
            return os.stat(self.paths[place]).st_size

    def fetch(self, place: int, start: int, stop: int) -> bytes:
        """Some of them."""
        with naming(self.paths[place]), Path(self.paths[place]).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


def decode(file: bytes, name: str, *, turn: bool = True) -> Picture:
    """An image in the bytes of a file: upright as its EXIF says, in RGB; of 16 bits or floats as a tensor.

    turn: False leaves it as it is stored, whatever its EXIF says.

    Transparency is left out, as `convert("RGB")` does. 16-bit values are shares of 65,535; floats are taken as they
    are, and must lie between 0 and 1.

    Raises `DataError` for a file that is none, or is damaged.
    """
    with naming(name), Image.open(BytesIO(file)) as image:
        return convert(ImageOps.exif_transpose(image) if turn else image, name)


def convert(image: Image.Image, name: str) -> Picture:
    """An opened image as `decode` gives it, turned as it is."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(image, name)
    # Palettes with transparency warn unless they are unfolded first.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def read_size(file: bytes, name: str) -> tuple[int, int]:
    """(width, height) of an image in the bytes of a file, or in their head, upright. Raises `DataError` for none."""
    with naming(name), Image.open(BytesIO(file)) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn what goes wrong when an image is read into a `DataError` that names it."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        said = (
            "its bytes are those of no image"
            if isinstance(error, UnidentifiedImageError)
            else " ".join(str(error).split())[:200]
        )
        raise DataError(f"{name} is no image that can be read ({said}): remove it") from error


def _deep(image: Image.Image, name: str) -> Tensor:
    """float32 [3, H, W] of an image of more than 8 bits."""
    values = torch.from_numpy(np.asarray(image).astype(np.float32))
    if image.mode != "F":
        values = values / 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise DataError(f"{name} has values from {low:g} to {high:g}: give 8 or 16 bits, or floats between 0 and 1")
    return values.expand(3, -1, -1).contiguous()


def is_unread(path: Path) -> bool:
    """Whether a file is called as an image of a kind that Pillow does not read by itself, and is not hidden."""
    return path.suffix.lower() in _UNREAD and not path.name.startswith(".")


def is_image(path: Path) -> bool:
    """Whether a file is called as an image, and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
