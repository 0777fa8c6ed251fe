"""Examples for networks: arrays with classes or boxes, read from files, folders of images or a user's own function."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secateur._utils import disk, hashes, plugins
from secateur._utils.computed import Computed
from secateur.data import box_files, feeding, image_pairs, image_sources, labels, own_targets, transforms
from secateur.data import boxes as boxes_of
from secateur.data import masks as masks_of
from secateur.data.boxes import Annotated, Augmentation
from secateur.data.image_items import IMAGE_COLUMNS, may_be_image
from secateur.data.image_sources import Data
from secateur.data.images import Images
from secateur.data.masks import Masks
from secateur.errors import DataError, DataWarning, InputError

if TYPE_CHECKING:
    from secateur.data.image_items import Classified

__all__ = [
    "Augment", "Batches", "Examples", "Limited", "Ordered", "batches", "count", "find_held_out", "letterbox", "limit",
    "limit_as", "read", "sides", "validate_plainly", "with_transform",
]  # fmt: skip

Batch: TypeAlias = dict[str, Any]

_FEW = 2
"""Batches that are read without workers."""
_SHOWN = 3
"""Classes that messages name."""


_OF_IMAGES = "of_images"
"""In a file of images that were written as arrays: their digest, and that of the arrays."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs in order, and what each of them should give.

    inputs:  [N, ...], a tensor; or images that lie on the disk, [N, C, H, W], see `images.Images`
    labels:  [N] int64 classes, or [N, H, W], a class for each pixel (-100 and 255 where none counts), or None
    targets: per input {"boxes": [n, 4] float32 (x1, y1, x2, y2) in pixels, "labels": [n] int64 from 0}, or nothing
    classes: their names, where the data has them
    stratified: whether parts of them are drawn class by class, see `parts`
    sizes:   for reports, sides of the squares that part small from medium from large boxes (see `sides`), or nothing
    ids:     numbers of the classes where the data comes from, such as COCO's, or nothing
    notes:   what of the data was left out or renumbered, for the run's evidence
    augment: of images with boxes, what training sees in their place, or nothing
    masks:   in the place of labels, a class for each pixel of images that lie on the disk, or None
    """

    inputs: Tensor | Images
    labels: Tensor | None = None
    targets: tuple[Mapping[str, Tensor], ...] = ()
    classes: tuple[str, ...] = ()
    name: str = "examples"
    sizes: tuple[float, ...] = ()
    stratified: bool = False
    ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    augment: Augmentation | None = None
    masks: Masks | None = None

    def __post_init__(self) -> None:
        if self.sizes:
            object.__setattr__(self, "sizes", sides(self.sizes))
        count = len(self.inputs)
        if not count:
            raise DataError(f"{self.name} holds no example: give at least one")
        masks = self.labels is not None and self.labels.dim() == 3 and len(self.labels) == count
        if self.labels is not None and self.labels.shape != (count,) and not masks:
            raise DataError(f"{self.name} has {count} inputs and labels of shape {tuple(self.labels.shape)}: one each")
        if self.targets and len(self.targets) != count:
            raise DataError(f"{self.name} has {count} inputs and boxes for {len(self.targets)}: give them for each")
        self._check_boxes()
        if isinstance(self.inputs, Images):
            if self.masks is not None and len(self.masks) != len(self.inputs.source):
                raise DataError(f"{self.name} has {len(self.inputs.source)} images and {len(self.masks)} masks")
            return
        if self.masks is not None:
            raise DataError(f"{self.name} has masks in files and inputs in an array: give labels [N, H, W]")
        if self.inputs.is_floating_point() and not bool(torch.isfinite(self.inputs).all()):
            raise DataError(f"{self.name} holds NaN or infinity: clean the inputs")

    def _check_boxes(self) -> None:
        for number, target in enumerate(self.targets):
            if target["boxes"].shape != (len(target["labels"]), 4):
                raise DataError(
                    f"{self.name} has boxes of shape {list(target['boxes'].shape)} and {len(target['labels'])} labels "
                    f"for input {number}: give four numbers and one label each"
                )
        if not self.targets:
            return
        boxes, labels = (torch.cat([target[key] for target in self.targets]) for key in ("boxes", "labels"))
        flat = ~(torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
        for wrong, found, wanted in (
            (flat, boxes, "give x1, y1, x2, y2 in pixels, x1 below x2 and y1 below y2"),
            (labels < 0, labels, "labels count from 0"),
        ):
            if wrong.any():
                first = int(wrong.nonzero()[0])
                ends = np.cumsum([len(target["labels"]) for target in self.targets])
                what = "box" if found is boxes else "label"
                raise DataError(
                    f"{self.name} has the {what} {found[first].tolist()} on input "
                    f"{int(np.searchsorted(ends, first, side='right'))}: {wanted}"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def per_pixel(self) -> bool:
        """Whether there is a class for each pixel."""
        return self.masks is not None or (self.labels is not None and self.labels.dim() == 3)

    @property
    def has_classes(self) -> bool:
        """Whether there are classes, of inputs or of pixels."""
        return self.labels is not None or self.masks is not None

    def read_labels(self) -> Tensor | None:
        """The classes [N], or all masks [N, H, W] as they are measured; None where there are none."""
        if self.masks is None or not isinstance(self.inputs, Images):
            return self.labels
        return self.masks.read(self.inputs, range(len(self)))

    @cached_property
    def digest(self) -> str:
        """sha256 of inputs, classes and boxes, and of the sizes by which these are told apart."""
        parts = [] if self.labels is None else [self.labels]
        if isinstance(self.inputs, Images):
            digest = hashlib.sha256(self.inputs.digest)
            if self.masks is not None:
                digest.update(self.masks.digest(self.inputs))
        else:
            digest = hashlib.sha256(str((tuple(self.inputs.shape), self.inputs.dtype)).encode())
            parts.insert(0, self.inputs)
        keys = ("boxes", "labels", "crowds", "crowd_labels")
        parts += [target[key] for target in self.targets for key in keys if key in target]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        if self.sizes:
            digest.update(repr(self.sizes).encode())
        return digest.hexdigest()

    @cached_property
    def files_digest(self) -> str:
        """sha256 of images as they lie on the disk and of all classes, whatever inputs they become; "" for arrays."""
        if not isinstance(self.inputs, Images):
            return ""
        digest = hashlib.sha256(self.inputs.keys().tobytes())
        if self.masks is not None:
            digest.update(self.masks.digest(self.inputs))
        for part in ([] if self.labels is None else [self.labels]) + [target["labels"] for target in self.targets]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N], what each example takes: the bytes of its file, or of its input where that is in memory."""
        if isinstance(self.inputs, Images) and (files := self.inputs.file_bytes) is not None:
            return {"bytes": files}
        one = math.prod(self.inputs.shape[1:]) * self.inputs.element_size()
        return {"bytes": np.full(len(self), float(one))}

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests of 16 bytes, equal for equal inputs whatever their classes; arrays have no looser equality.

        Of images that lie on the disk, equal for files of one size and one beginning: see `whole_keys`.
        """
        if normalised:
            raise DataError(f"{self.name} holds arrays, which only repeat exactly: ask for exact duplicates")
        if isinstance(self.inputs, Images):
            return self.inputs.keys()
        rows = (row.contiguous().flatten().view(torch.uint8).numpy().data for row in self.inputs)
        return hashes.digests(rows)

    def whole_keys(self) -> NDArray[np.void]:
        """[N] digests as `keys` gives them, but equal for equal files alone; all of each file is read."""
        return self.inputs.whole_keys() if isinstance(self.inputs, Images) else self.keys()

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Examples:
        """The examples at `indices`, in that order; images are not read."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            inputs=self.inputs.take(chosen) if isinstance(self.inputs, Images) else self.inputs[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            targets=tuple(self.targets[index] for index in chosen.tolist()) if self.targets else (),
        )

    def as_measured(self) -> Examples:
        """The same, which training sees as they are measured: no image, and no box, is moved."""
        if not isinstance(self.inputs, Images) or self.inputs.transform is None:
            return replace(self, augment=None)
        return replace(self, augment=None, inputs=self.inputs.with_transform(self.inputs.transform.as_measured()))

    def numbered_as(self, other: Examples) -> Examples:
        """The same with classes numbered as in `other`; as they are where that does not name all of theirs."""
        names = self.classes
        if self.labels is None or other.classes == names or not set(names) <= set(other.classes):
            return self
        if int(self.labels.max()) >= len(names):
            return self
        number = torch.tensor([other.classes.index(name) for name in names])
        return replace(self, labels=number[self.labels], classes=other.classes)

    def check_names(self, other: Examples) -> None:
        """Raise `DataError` where these and `other` both name their classes, and number them differently."""
        if self.classes and other.classes and self.classes != other.classes:
            ours, theirs = (", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                            for names in (self.classes, other.classes))  # fmt: skip
            raise DataError(
                f"{self.name} numbers the classes {ours}, {other.name} {theirs}: give both the same classes"
            )

    def batch(self, draw: Sequence[int] | None = None) -> Batch:
        """All of them as one batch: "inputs", and "labels" or "targets" where there are any.

        draw: for images in training, see `Images.read`.
        """
        inputs = self.inputs.read(range(len(self)), draw) if isinstance(self.inputs, Images) else self.inputs
        found: dict[str, Any] = {"inputs": inputs}
        if self.labels is not None:
            found["labels"] = self.labels
        if self.masks is not None and isinstance(self.inputs, Images):
            found["labels"] = self.masks.read(self.inputs, range(len(self)), draw)
        if self.targets:
            found["targets"] = [dict(target) for target in self.targets]
        return found

    def in_order(self, batch: int) -> Iterator[Batch]:
        """All of them once, in batches of `batch` in their order; the last may be smaller."""

        def read(start: int) -> Batch:
            return self.take(range(start, min(start + batch, len(self)))).batch()

        starts = range(0, len(self), batch)
        if isinstance(self.inputs, Images) and len(starts) > _FEW:
            workers, size = self.inputs.count_workers(), self.inputs.count_bytes(batch)
            return map(dict, feeding.read_in_order(read, starts, workers, size))
        return map(read, starts)

    def split(
        self, held_out: float = 0.1, *, seed: int = 0, stratified: bool | None = None
    ) -> tuple[Examples, Examples]:
        """(train, held out): the examples at `parts`.

        With stratified=True and the seed of a run, these are the parts that the run has learned from and measured on,
        and its indices are of the first.
        """
        train, held = self.parts(held_out, seed=seed, stratified=stratified)
        return self.take(train), self.take(held)

    def parts(
        self, held_out: float = 0.1, *, seed: int = 0, stratified: bool | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of (train, held out), both in the original order: a random share is held out, at least one example.

        stratified: the share is of each class, and at least one of each that has two; as the examples say by default.

        Raises:
            DataError: fewer than two examples.
        """
        if len(self) < 2:
            raise DataError(f"{self.name} holds {len(self)} example, too few to hold any out: give at least 2")
        order = np.random.default_rng([seed, len(self)]).permutation(len(self))
        by_class = self.stratified if stratified is None else stratified
        if by_class and self.labels is not None and self.labels.dim() == 1:
            kinds = self.labels.numpy()[order]
            held = np.zeros(len(self), bool)
            for kind in np.unique(kinds):
                places = order[kinds == kind]
                held[places[: max(1, round(len(places) * held_out)) if len(places) > 1 else 0]] = True
            if held.any():
                return np.flatnonzero(~held), np.flatnonzero(held)
        amount = min(max(1, round(len(self) * held_out)), len(self) - 1)
        return np.sort(order[amount:]), np.sort(order[:amount])

    def storable(self) -> None:
        """Raise `DataError` for what `save` could not write so that it is read as it is."""
        boxes = [target["boxes"].dtype for target in self.targets]
        kinds = [target["labels"].dtype for target in self.targets]
        if any("crowds" in target for target in self.targets):
            raise DataError(f"{self.name} has crowds, which an .npz file does not hold: keep its annotations")
        for what, found, known in (
            ("inputs", [self.inputs.dtype], (torch.float32, torch.int64)),
            ("labels", [] if self.labels is None else [self.labels.dtype], (torch.int64,)),
            ("boxes", boxes, (torch.float32,)),
            ("labels of boxes", kinds, (torch.int64,)),
        ):
            other = next((one for one in found if one not in known), None)
            if other is not None:
                takes = " or ".join(str(one).removeprefix("torch.") for one in known)
                raise DataError(
                    f"{self.name} has {what} of {str(other).removeprefix('torch.')}, which an .npz file is not read "
                    f"as: give {takes}"
                )

    def save(self, path: str | Path) -> None:
        """Write an .npz file that `read` gives back as it is, digest and all; whole, or not at all.

        Images are written as the inputs that they become, all of which are in memory then; beside them two digests in
        `of_images`, of the images and of these arrays.

        Raises:
            DataError: numbers that would be read as others (see `storable`).
            RunError: the disk is full, or `path` can't be written.
        """
        self.storable()
        arrays: dict[str, Any] = {"inputs": self.inputs[:].numpy()}
        classes = self.read_labels()
        if classes is not None:
            arrays["labels"] = classes.numpy()
        if self.classes:
            arrays["classes"] = np.array(self.classes)
        if self.targets:
            arrays["boxes"], arrays["box_labels"] = (
                torch.cat([target[key] for target in self.targets]).numpy() for key in ("boxes", "labels")
            )
            counts = [len(target["labels"]) for target in self.targets]
            arrays["box_image"] = np.repeat(np.arange(len(self)), counts)
        if self.sizes:
            arrays["sizes"] = np.array(self.sizes)
        if isinstance(self.inputs, Images):
            plain = replace(self, inputs=torch.from_numpy(arrays["inputs"]), labels=classes, masks=None)
            arrays[_OF_IMAGES] = np.array([self.digest, plain.digest])
        with disk.writing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def sides(given: str | Sequence[float | str]) -> tuple[float, float]:
    """Two sides of squares, as (32, 96), "32,96" or "5%,15%": below 1 they are shares of an image's longer side.

    Boxes of less area than the first are small, of less than the second medium, else large. Raises `InputError`.
    """
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        found = [float(str(one).strip().removesuffix("%")) / (100 if str(one).strip()[-1:] == "%" else 1)
                 for one in parts]  # fmt: skip
        low, high = found
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low < high < math.inf or (low < 1) != (high < 1):
        said = given if isinstance(given, str) else ",".join(map(str, parts))
        raise InputError(
            f"sizes={said}: give two rising sides of squares, both in pixels or both as shares of the images' longer "
            "side, such as 32,96 or 5%,15%"
        )
    return low, high


# ----------------------------------------------------------------------------------------------------- reading


def read(source: Data, *, label: str = labels.DEFAULT) -> Examples:
    """Read examples.

    - an `.npz` file: arrays `inputs` [N, ...] and, for classes, `labels` [N] (or `label`); for boxes `boxes` [M, 4]
      (x1, y1, x2, y2), `box_labels` [M] and `box_image` [M], the index of the input each belongs to; and where the
      classes have names, `classes`, an array of strings; where boxes are not of COCO's sizes, `sizes`, two numbers;
    - a folder with one folder of images per class, of `train/` and `val/` the first;
    - images with boxes, of COCO, YOLO or Pascal VOC, see `box_files.read`;
    - a folder with `images/` and `masks/`, a class for each pixel, see `masks.find_pair`;
    - WebDataset shards, `data-{000..009}.tar`; a table of `datasets` with a column of images, saved, in parquet, or on
      the Hub as `owner/name`; of files whose names say train, val or test those of train, or with `folder:test` others;
    - `file.py:function` or `package.module:function`, which gives one of the following:
    - `Examples`, (inputs, labels), a table of `datasets`, a data set or a `DataLoader` of torch, or any iterable, of
      (image, label); of what has places also of (image, mask) and (image, {"boxes", "labels"}), see `own_targets`.

    label: another array of an .npz file, or column of a table, that holds the classes; "" for none. Bytes become
    float32 between 0 and 1, and so do images of 16 bits; of either, [N, H, W, C] get their channels first. Images stay
    where they are, see `images.Images`; they become inputs by `with_transform`.

    Raises `DataError` for what is missing, empty, damaged, or of another form, and for a `label` that is not there.
    """
    if isinstance(source, Examples):
        return source
    if not isinstance(source, str | Path):
        return _from_object(source, label)
    path, name = Path(source), str(source)
    if path.suffix == ".npz" and path.is_file():
        return _arrays(path, label)
    annotated = box_files.read(path)
    if annotated is not None:
        labels.unnamed(f"{annotated.name} has boxes, whose classes are not named", label=label)
        return _of_boxes(annotated)
    if image_sources.is_table(source):
        return _of_images(image_sources.read_table(source, label))
    if image_sources.is_shards(source):
        return _of_images(image_sources.read_shards(source, label))
    masked = masks_of.read(path)
    if masked is not None:
        labels.unnamed(f"{masked.name} has masks, whose classes are not named", label=label or labels.DEFAULT)
        return Examples(
            masked.images, classes=masked.classes, name=masked.name, notes=masked.notes,
            masks=masked.masks if label else None,
        )  # fmt: skip
    if path.is_dir():
        found = _folder(path)
        labels.unnamed(f"{found.name} has no array of classes to be named", label=label)
        return found if label else replace(found, labels=None)
    if _HUB.fullmatch(name) and not path.exists() and not path.parent.is_dir():
        return _of_images(image_sources.read_hub(name, label))
    if ":" in name and path.suffix != ".npz":
        found = _from_object(plugins.function(name)(), label, name)
        return found if label else replace(found, labels=None)
    texts = ", or texts to a recipe on language models (secateur list)" if path.suffix in (".txt", ".jsonl") else ""
    raise DataError(
        f"data {source} is no .npz file, no folder of images and no function: give one of them{texts}"
        if path.exists()
        else f"there is no data at {source}: give an .npz file, a folder of images, or file.py:function"
    )


_HUB = re.compile(r"(hub:)?[\w-][\w.-]*/(?!.*\.py:)[\w.-]+(:[\w.-]*){0,2}")


def _of_images(found: Classified) -> Examples:
    kinds = None if found.labels is None else torch.from_numpy(found.labels)
    return Examples(found.images, kinds, (), found.classes, found.name, notes=found.notes)


def _from_object(found: Data, label: str, source: str = "") -> Examples:
    """What a user's function gave, or what was given in Python."""
    if isinstance(found, Examples):
        return found if found.labels is None else replace(found, labels=_whole(found.labels, found.name))
    name = source or "the data"
    if getattr(found, "ndim", 1) == 0:
        raise DataError(f"{name} is a single value, {found}: give an array with a row for each example")
    if image_sources.is_table(found):
        rows = image_sources.show_rows(found, label)
        if rows is None:
            return _of_images(image_sources.read_table(found, label))
        found = rows
    elif image_sources.is_splits(found):
        part = image_sources.choose_split(found, name)
        data = read(part, label=label) if isinstance(part, str | Path) else _from_object(part, label, source)
        if not source or image_sources.find_held_out(found) is None:
            return data
        # A function is called when its data is read, and its other splits can't be told before.
        told = f"{source} gives {', '.join(map(str, found))}, of which train is read: give held-out data by itself"
        return replace(data, notes=(*data.notes, told))
    else:
        labels.unnamed(f"{name} has no array of classes to be named", label=label)
    if isinstance(found, tuple) and len(found) == 2 and not _are_pairs(*found):
        inputs, kinds = found
        if _is_part(inputs) and _is_part(kinds):
            raise DataError(f"{name} is two parts: give {{'train': ..., 'validation': ...}}, or the second by itself")
        boxed = isinstance(kinds, list | tuple) and any(isinstance(one, Mapping) for one in kinds)
        listed = list(inputs) if boxed else _rows_of(inputs)
        if listed is not None and (boxed or all(map(_is_picture, listed))):
            return _from_object(_pair_up(listed, kinds if label else None, name), label, source)
        inputs, kinds = _stack(inputs), _stack(kinds)
        if isinstance(inputs, list | tuple) and all(map(may_be_image, inputs)):
            return _from_object(_pair_up(inputs, kinds if label else None, name), label, source)
        whole = None if kinds is None or not label else _whole(kinds, name)
        if whole is not None and whole.dim() == 4 and 1 in (whole.shape[1], whole.shape[-1]):  # masks with a channel
            whole = whole.squeeze(1 if whole.shape[1] == 1 else -1)
        void = masks_of.void_note(whole, name)
        return Examples(_number(_shares(inputs), name), whole, name=name, notes=(void,) if void else ())
    if source and not (isinstance(found, Iterable) or hasattr(found, "__getitem__")):
        raise DataError(
            f"{source} gave {type(found).__name__}: expected Examples, a tuple (inputs, labels), or a data set or an "
            "iterable of (image, label)"
        )
    targeted = own_targets.read(found, name, labelled=bool(label))
    if targeted is not None:
        return Examples(
            targeted.images, None, targeted.targets, targeted.classes, name, ids=targeted.ids, notes=targeted.notes,
            masks=targeted.masks if label else None,
        )  # fmt: skip
    return _of_images(image_pairs.read_pairs(found, name, labelled=bool(label)))


def _are_pairs(one: Data, other: Data) -> bool:
    """Whether these are two examples, as ((image, 0), (image, 1)) or two dicts, and no inputs and their labels."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return bool(set(IMAGE_COLUMNS) & one.keys() & other.keys())
    if not (isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2):
        return False
    if all(map(may_be_image, (*one, *other))):
        raise DataError("two tuples of two images may be two examples with masks or images and their masks: give lists")
    alone = not hasattr(other[1], "__len__") or isinstance(other[1], str | Mapping) or getattr(other[1], "ndim", 1) == 0
    return may_be_image(one[0]) and may_be_image(other[0]) and alone


def _is_part(value: Data) -> bool:
    """Whether it is a whole part of a data set: (inputs, labels), or a data set or a loader of torch."""
    if not (isinstance(value, tuple) and len(value) == 2):
        return isinstance(value, Dataset | DataLoader)
    inputs, kinds = value
    if _rows_of(inputs) is None and (getattr(inputs, "ndim", 2) < 2 or getattr(kinds, "ndim", 1) < 1):
        return False  # a vector and its label
    return hasattr(kinds, "__len__") and not isinstance(kinds, str | bytes | Mapping) and not may_be_image(kinds)


def _is_picture(value: Data) -> bool:
    """Whether it can be nothing but an image: of arrays those of bytes or 16 bits, grey or with channels.

    Floats may be so, too, or series, volumes, points, or images that the user has normalised.
    """
    if not isinstance(value, Tensor | np.ndarray):
        return may_be_image(value)
    deep = str(value.dtype).removeprefix("torch.").lstrip("<>") in ("uint8", "uint16", "u2")
    channels = value.ndim == 2 or (value.ndim == 3 and {value.shape[0], value.shape[-1]} & set(image_sources.CHANNELS))
    return deep and bool(channels)


def _rows_of(values: Data) -> Data:
    """The values of a list, or of a column of pandas that holds anything but numbers; None for anything else."""
    listed = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    return list(values) if listed or str(getattr(values, "dtype", "")) == "object" else None


def _native(values: Data) -> Data:
    """An array as torch takes it: in this machine's byte order, and along no axis backwards."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or not values.ndim:
        return values
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _stack(values: Data) -> Data:
    """Arrays or tensors of one shape in a list, or in a column of pandas, as one array; other columns as lists.

    Bytes and 16 bits stand for shares, and are not put beside other numbers. What is no such list is given back.
    """
    rows = _rows_of(values)
    if rows is None:
        return _native(values)
    if any(not isinstance(row, Tensor | np.ndarray) or not row.ndim or row.shape != rows[0].shape for row in rows):
        return rows
    kinds = {str(row.dtype).removeprefix("torch.") for row in rows}
    if len(kinds) > 1 and kinds & {"uint8", "uint16"}:
        return rows
    if rows and all(isinstance(row, Tensor) for row in rows):
        return torch.stack([row.as_subclass(Tensor).detach().cpu() for row in rows])
    return np.stack(rows) if rows and all(isinstance(row, np.ndarray) for row in rows) else rows


def _pair_up(inputs: Sequence[Data], kinds: Data, name: str) -> list[Data]:
    """(image, label) of each; the images alone where there are no labels."""
    if kinds is None:
        return list(inputs)
    if not hasattr(kinds, "__len__") or len(kinds) != len(inputs):
        count = len(kinds) if hasattr(kinds, "__len__") else 1
        raise DataError(f"{name} has {len(inputs)} inputs and {count} labels: one each")
    return list(zip(inputs, kinds, strict=True))


@dataclass(frozen=True, eq=False)
class Limited(Examples):
    """Examples that go through a network `most` at a time, where a pass without gradients would take more.

    plainly: what validates training is drawn from them without regard to classes, stratified or not.
    """

    most: int | None = None
    plainly: bool = False

    def in_order(self, batch: int) -> Iterator[Batch]:
        """As of any examples, in batches of `most` at most."""
        return super().in_order(batch if self.most is None else min(batch, self.most))


def limit(data: Examples, most: int | None) -> Examples:
    """The examples, and whatever is taken of them, with passes of `most` at most; None for passes as they are."""
    return data if most is None else replace(_as_limited(data), most=most)


def validate_plainly(data: Examples) -> Examples:
    """The examples of a run begun before what validates was drawn by class: it goes on with the part it has."""
    return replace(_as_limited(data), plainly=True)


def _as_limited(data: Examples) -> Limited:
    own = {one.name: getattr(data, one.name) for one in fields(Examples)}
    return data if isinstance(data, Limited) else Limited(**own)


def limit_as(data: Examples, other: Examples) -> Examples:
    """The examples with passes as large as those of `other`."""
    return limit(data, other.most if isinstance(other, Limited) else None)


def find_held_out(source: Any) -> Any:
    """The part of `source` that is there to measure on, for `read`; None where there is none.

    Of {"train": ..., "validation": ...} the second, whatever `read` takes they are; `read` reads the first.
    """
    if isinstance(source, str | Path) and box_files.holds_boxes(Path(source)):
        return box_files.find_held_out(Path(source))
    if isinstance(source, str | Path) and masks_of.find_pair(Path(source)) is not None:
        return masks_of.find_held_out(Path(source))
    return image_sources.find_held_out(source)


def _of_boxes(found: Annotated) -> Examples:
    return Examples(found.images, None, found.targets, found.classes, found.name, ids=found.ids, notes=found.notes)


def with_transform(
    data: Examples, transform: object = None, size: object = None, workers: int | None = None
) -> Examples:
    """The examples with their images transformed as declared, see `transforms.read`, and read by so many workers.

    Images with boxes are letterboxed to `size`, and `transform` is a name of `boxes.AUGMENTATIONS`.

    Raises `InputError` for a transform of examples that are no images, or are arrays of one size already.
    """
    feeding.check_workers(workers)
    if data.targets:
        return _with_boxes(data, transform, size, workers)
    declared = transforms.read(transform, size)
    if isinstance(data.inputs, Images):
        return replace(data, inputs=data.inputs.with_transform(declared or data.inputs.transform, workers))
    if declared is not None:
        raise InputError(
            f"{data.name} holds arrays, which are taken as they are: leave transform and size out, or give a list of "
            "(image, label)"
        )
    return data


def _with_boxes(data: Examples, transform: object, size: object, workers: int | None) -> Examples:
    if transform is not None and not isinstance(transform, str):
        raise InputError(f"transform={transform}: images with boxes are augmented by name, such as flip or mosaic")
    augmented = replace(data, augment=boxes_of.augmentation(transform) or data.augment)
    if isinstance(data.inputs, Images):
        augmented = replace(augmented, inputs=data.inputs.with_transform(data.inputs.transform, workers))
    if size is None:
        return augmented
    channels, sides = transforms.parse_size(size)
    if channels != 3 or not isinstance(data.inputs, Images):
        what = "have three channels" if channels != 3 else "in arrays are taken as they are"
        raise InputError(f"size={size}: images with boxes {what}: give files, and 640 or 480x640 (height x width)")
    return letterbox(augmented, sides)


def letterbox(data: Examples, size: tuple[int, int] | None = None) -> Examples:
    """Images with boxes at one size (height, width), each whole between grey bars, and its boxes where they are then.

    Images that were letterboxed stay as they are, and so do all without a size, if they have one size. Raises
    `DataError` where they have several.
    """
    if not isinstance(data.inputs, Images) or data.inputs.transform is not None:
        return data
    inputs, targets = boxes_of.fit_images(data.inputs, data.targets, size)
    return replace(data, inputs=inputs, targets=targets)


def _whole(values: Any, name: str, **how: str) -> Tensor:
    """int64, see `labels.whole`."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return torch.from_numpy(labels.whole(values, name, **how))


def _number(values: Any, name: str) -> Tensor:
    try:
        inputs = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, rows of several lengths
        first = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise DataError(f"{name} has inputs that are no array of numbers ({first}): give one") from error
    if inputs.is_complex() or not inputs.ndim:
        what = str(inputs.dtype).removeprefix("torch.") if inputs.ndim else "a single number"
        raise DataError(f"{name} has inputs of {what}: give an array of real numbers, a row for each example")
    if inputs.dtype == torch.uint8:
        return inputs.float() / 255.0
    return inputs.float() if inputs.is_floating_point() else inputs.long()


def _shares(values: Data) -> Data:
    """Bytes or 16 bits in three dimensions or more as float32, 0 to 1; [N, H, W, C] with the channels first, and told.

    Other values are given back: 16 bits in fewer dimensions may be numbers of tokens.
    """
    kind = str(getattr(values, "dtype", "")).removeprefix("torch.")
    if kind not in ("uint8", "uint16") or values.ndim < 3:
        return values
    images = torch.as_tensor(values)
    channels = image_sources.CHANNELS
    if images.ndim == 4 and images.shape[-1] in channels and images.shape[1] not in channels:
        shape = list(images.shape)
        images = images.permute(0, 3, 1, 2)
        told = f"inputs of shape {shape} are read as [N, H, W, C] and become {list(images.shape)}, [N, C, H, W]"
        warnings.warn(f"{told}: give what is no such image as float32", DataWarning, stacklevel=1)
    return images.float().contiguous() / image_sources.LARGEST[images.dtype]


def _arrays(path: Path, label: str) -> Examples:
    if not zipfile.is_zipfile(path):
        what = "no archive, or one that was cut short" if path.stat().st_size else "empty"
        raise DataError(f"{path} can't be read as .npz, it is {what}: write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} can't be read as .npz without unpickling: write arrays of numbers with numpy.savez"
        ) from error
    if "inputs" not in found:
        raise DataError(f"{path} has no array `inputs` (it has {', '.join(found) or 'none'}): call it that")
    inputs = _number(_shares(found["inputs"]), path.name)
    labels.check(label, found, str(path), what="array")
    column = "labels" if label == labels.DEFAULT and "labels" in found else label
    classes = _whole(found[column], path.name) if column in found else None
    targets: tuple[Mapping[str, Tensor], ...] = ()
    if "boxes" in found:
        try:
            boxes = torch.from_numpy(found["boxes"].astype(np.float32, casting="same_kind")).reshape(-1, 4)
            kinds = _whole(found["box_labels"], path.name, of="box")
            wanted = "box_image counts the inputs from 0"
            owner = _whole(found["box_image"], path.name, what="image", of="box", wanted=wanted)
        except (KeyError, RuntimeError, TypeError) as error:
            raise DataError(f"{path} has boxes that can't be used ({error}): see `examples.read`") from error
        if not len(boxes) == len(kinds) == len(owner):
            raise DataError(f"{path} has {len(boxes)} boxes, {len(kinds)} labels, {len(owner)} images: one each")
        if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(inputs):
            raise DataError(
                f"{path} has boxes on images {owner.min()} to {owner.max()}: there are images 0 to {len(inputs) - 1}"
            )
        targets = tuple({"boxes": boxes[owner == i], "labels": kinds[owner == i]} for i in range(len(inputs)))
    names = found.get("classes", np.empty(0, np.str_))
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path} has an array `classes` that is no list of names: give strings, or leave it out")
    sizes = found.get("sizes", np.empty(0)).reshape(-1).tolist()
    return Examples(inputs, classes, targets, tuple(names.tolist()), path.name, tuple(sizes))


def _folder(path: Path) -> Examples:
    return _of_images(image_sources.read_folder(path))


# ----------------------------------------------------------------------------------------------------- batches


class Ordered:
    """All examples once, in their order, in batches of `batch`; each time that it is iterated over they are read."""

    def __init__(self, data: Examples, batch: int) -> None:
        self.data, self.batch = data, batch

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        return self.data.in_order(self.batch)


Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""(inputs [B, ...], generator) -> inputs: drawn anew for each batch and epoch."""


class Batches(Computed["dict[str, Any]"]):
    """Endless, repeatable batches: `batches[i]` for any i >= 0 is a pure function of the examples, the seed and i.

    `len` is the number of batches of one epoch; each epoch has an order of its own; iteration is one epoch. What is
    left of an epoch after its last whole batch is passed over, unless it is all there is. Without `training` images
    become what they are measured as.
    """

    def __init__(
        self, data: Examples, *, batch: int, seed: int, augment: Augment | None = None, training: bool = True
    ) -> None:
        self.data, self.batch, self.seed, self.augment = data, min(batch, len(data)), seed, augment
        self._drawn = _Drawn(data, self.batch, seed)
        images = data.inputs if isinstance(data.inputs, Images) else None
        workers, size = (0, 0) if images is None else (images.count_workers(), images.count_bytes(self.batch))
        self._ahead = feeding.Ahead(partial(self._drawn.read, training=training), workers, size)

    def __len__(self) -> int:
        return len(self._drawn)

    def make(self, index: int) -> Batch:
        """One batch: "inputs" [B, ...], and "labels" [B] or "targets" (a list of B) where the examples have them."""
        return self._move(index, self._ahead[index])

    def _move(self, index: int, batch: Mapping[str, Tensor]) -> Batch:
        """The batch after `augment`."""
        if self.augment is None:
            return dict(batch)
        draw = np.random.default_rng([self.seed, *divmod(index, len(self))])
        return {**batch, "inputs": self.augment(batch["inputs"], draw)}

    def places(self, index: int) -> NDArray[np.int64]:
        """[B]: which examples of the data stand in batch `index`, in its order; for what is known of each of them."""
        return self._drawn.places(index)

    def take(self, count: int) -> list[Batch]:
        """The first `count` batches, or one epoch if that is fewer: no example twice, and no image augmented."""
        found = (self._drawn.read(index, training=False) for index in range(min(count, len(self))))
        return [self._move(index, batch) for index, batch in enumerate(found)]

    def hold_out(self, share: float) -> tuple[Batches, Batches]:
        """(batches of the other examples, those of a share of the examples, drawn by the seed and not augmented).

        The share is of each class where the examples are `stratified`, as those of runs are, unless `validate_plainly`
        has made them, or one of each class would be more than twice the share.
        """
        others, held = self.places_apart(share)
        rest = Batches(self.data.take(others), batch=self.batch, seed=self.seed, augment=self.augment)
        even = math.ceil(len(held) / math.ceil(len(held) / self.batch))  # few are left after the last whole batch
        return rest, Batches(self.data.take(held), batch=even, seed=self.seed, training=False)

    def places_apart(self, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which examples of the data stand in the two parts of `hold_out`, in their orders."""
        count = len(self.data)
        if count < 2:
            raise DataError(f"{self.data.name} holds {count} example: none can be held out for validation")
        held = min(count - 1, max(1, round(share * count)))
        if self.data.stratified and not (isinstance(self.data, Limited) and self.data.plainly):
            others, of_each = self.data.parts(share, seed=self.seed)
            if len(of_each) <= 2 * held:
                return others, of_each
        order = np.random.default_rng([self.seed, 2**32 - 1]).permutation(count)
        return order[held:], order[:held]


class _Drawn:
    """Which examples stand in a batch, and the batch as it is read: what workers have a copy of."""

    def __init__(self, data: Examples, batch: int, seed: int) -> None:
        self.data, self.batch, self.seed = data, batch, seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.data) // self.batch

    def places(self, index: int) -> NDArray[np.int64]:
        if index < 0:
            raise IndexError(f"batch {index}: batches are counted from 0 without end")
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
            self._epoch = epoch
        return self._order[place * self.batch : (place + 1) * self.batch]

    def read(self, index: int, *, training: bool = True) -> Batch:
        """A batch; in training images by the part of their transform that is for it, and with their boxes moved."""
        part = self.data.take(self.places(index))
        if not training or self.data.augment is None:
            return part.batch([self.seed, index // len(self)] if training else None)
        return self.data.augment(part.batch(), np.random.default_rng([self.seed, *divmod(index, len(self))]))


def batches(data: Examples, *, batch: int, seed: int = 0, augment: Augment | None = None) -> Batches:
    """Batches of `batch` examples each, or of all where there are fewer.

    augment: (inputs [B, ...], generator) -> inputs, drawn anew for each batch and epoch; boxes are not moved by it.
    """
    if augment is not None and data.targets:
        raise DataError(f"{data.name} has boxes, which an augmentation of inputs would leave behind: give none")
    return Batches(data, batch=batch, seed=seed, augment=augment)


def count(batch: Mapping[str, Tensor]) -> dict[str, int]:
    """What a batch holds, for the divisors of losses."""
    return {"examples": len(batch["inputs"])}
