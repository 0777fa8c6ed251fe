"""Examples for networks: arrays with classes or boxes, read from files, folders of images or a user's own function."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from secateur._utils import disk, hashes, plugins
from secateur._utils.computed import Computed
from secateur.data import labels
from secateur.errors import DataError, InputError

__all__ = ["Augment", "Batches", "Examples", "batches", "count", "read", "sides"]

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs in order, and what each of them should give.

    inputs:  [N, ...]; images are float32 [N, C, H, W] between 0 and 1
    labels:  [N] int64 classes, or None
    targets: per input {"boxes": [n, 4] float32 (x1, y1, x2, y2) in pixels, "labels": [n] int64 from 0}, or nothing
    classes: their names, where the data has them
    sizes:   for reports, sides of the squares that part small from medium from large boxes (see `sides`), or nothing
    """

    inputs: Tensor
    labels: Tensor | None = None
    targets: tuple[Mapping[str, Tensor], ...] = ()
    classes: tuple[str, ...] = ()
    name: str = "examples"
    sizes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.sizes:
            object.__setattr__(self, "sizes", sides(self.sizes))
        count = len(self.inputs)
        if not count:
            raise DataError(f"{self.name} holds no example: give at least one")
        if self.labels is not None and self.labels.shape != (count,):
            raise DataError(f"{self.name} has {count} inputs and labels of shape {tuple(self.labels.shape)}: one each")
        if self.targets and len(self.targets) != count:
            raise DataError(f"{self.name} has {count} inputs and boxes for {len(self.targets)}: give them for each")
        self._check_boxes()
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

    @cached_property
    def digest(self) -> str:
        """sha256 of inputs, classes and boxes, and of the sizes by which these are told apart."""
        digest = hashlib.sha256(str((tuple(self.inputs.shape), self.inputs.dtype)).encode())
        parts = [self.inputs, *([] if self.labels is None else [self.labels])]
        parts += [target[key] for target in self.targets for key in ("boxes", "labels")]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        if self.sizes:
            digest.update(repr(self.sizes).encode())
        return digest.hexdigest()

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N], what each example takes: the bytes of its input."""
        one = self.inputs[0].numel() * self.inputs.element_size()
        return {"bytes": np.full(len(self), float(one))}

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests of 16 bytes, equal for equal inputs whatever their classes; arrays have no looser equality."""
        if normalised:
            raise DataError(f"{self.name} holds arrays, which only repeat exactly: ask for exact duplicates")
        rows = (row.contiguous().flatten().view(torch.uint8).numpy().data for row in self.inputs)
        return hashes.digests(rows)

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Examples:
        """The examples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            inputs=self.inputs[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            targets=tuple(self.targets[index] for index in chosen.tolist()) if self.targets else (),
        )

    def batch(self) -> dict[str, Any]:
        """All of them as one batch: "inputs", and "labels" or "targets" where there are any."""
        found: dict[str, Any] = {"inputs": self.inputs}
        if self.labels is not None:
            found["labels"] = self.labels
        if self.targets:
            found["targets"] = [dict(target) for target in self.targets]
        return found

    def in_order(self, batch: int) -> Iterator[dict[str, Any]]:
        """All of them once, in batches of `batch` in their order; the last may be smaller."""
        for start in range(0, len(self), batch):
            yield self.take(range(start, min(start + batch, len(self)))).batch()

    def split(self, held_out: float = 0.1, *, seed: int = 0) -> tuple[Examples, Examples]:
        """(train, held out): the examples at `parts`."""
        train, held = self.parts(held_out, seed=seed)
        return self.take(train), self.take(held)

    def parts(self, held_out: float = 0.1, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of (train, held out): a random share, at least one example, is held out; both in the original order.

        Raises:
            DataError: fewer than two examples.
        """
        if len(self) < 2:
            raise DataError(f"{self.name} holds {len(self)} example, too few to hold any out: give at least 2")
        amount = min(max(1, round(len(self) * held_out)), len(self) - 1)
        order = np.random.default_rng([seed, len(self)]).permutation(len(self))
        return np.sort(order[amount:]), np.sort(order[:amount])

    def storable(self) -> None:
        """Raise `DataError` for what `save` could not write so that it is read as it is."""
        boxes = [target["boxes"].dtype for target in self.targets]
        kinds = [target["labels"].dtype for target in self.targets]
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

        Raises:
            DataError: numbers that would be read as others (see `storable`).
            RunError: the disk is full, or `path` can't be written.
        """
        self.storable()
        arrays: dict[str, Any] = {"inputs": self.inputs.numpy()}
        if self.labels is not None:
            arrays["labels"] = self.labels.numpy()
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


def read(source: str | Path | Examples, *, label: str = labels.DEFAULT) -> Examples:
    """Read examples.

    - an `.npz` file: arrays `inputs` [N, ...] and, if there are classes, `labels` [N]; for boxes `boxes` [M, 4]
      (x1, y1, x2, y2), `box_labels` [M] and `box_image` [M], the index of the input each belongs to; and where the
      classes have names, `classes`, an array of strings; where boxes are not of COCO's sizes, `sizes`, two numbers;
    - a folder with one folder of images per class, or a folder in COCO's form: images and a .json of annotations;
    - `file.py:function` or `package.module:function`, which gives `Examples` or (inputs, labels).

    label: another array of an .npz file that holds the classes; "" for none. Bytes become float32 between 0 and 1.

    Raises `DataError` for what is missing, empty, damaged, or of another form, and for a `label` that is not there.
    """
    if isinstance(source, Examples):
        return source
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return _arrays(path, label)
    made = ":" in str(source) and path.suffix != ".npz"
    if path.is_dir() or made:
        found = _folder(path) if path.is_dir() else _from_function(str(source))
        labels.unnamed(f"{found.name} has no array of classes to be named", label=label)
        return found if label else replace(found, labels=None)
    raise DataError(
        f"data {source} is no .npz file, no folder of images and no function: give one of them"
        if path.exists()
        else f"there is no data at {source}: give an .npz file, a folder of images, or file.py:function"
    )


def _from_function(source: str) -> Examples:
    found = plugins.function(source)()
    if isinstance(found, Examples):
        return found if found.labels is None else replace(found, labels=_whole(found.labels, found.name))
    if not isinstance(found, tuple) or len(found) != 2:
        raise DataError(f"{source} gave {type(found).__name__}: expected Examples, or a tuple (inputs, labels)")
    inputs, kinds = found
    return Examples(_number(inputs, source), _whole(kinds, source), name=source)


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
    inputs = _number(found["inputs"], path.name)
    labels.check(label, found, str(path), what="array")
    column = "labels" if label == labels.DEFAULT else label
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
    for file in sorted(path.glob("*.json")) + sorted(path.glob("annotations/*.json")):
        try:
            found = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is no JSON that can be read ({error}): mend or remove it") from error
        if isinstance(found, dict) and not found.keys().isdisjoint(("images", "annotations")):
            return _coco(path, file, found)
    kinds = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    files = [(file, number) for number, kind in enumerate(kinds) for file in sorted(kind.iterdir()) if _is_image(file)]
    if not files:
        raise DataError(f"{path} holds no images in folders named by class: give path/class/image.png")
    inputs = _images([file for file, _ in files])
    return Examples(inputs, torch.tensor([n for _, n in files]), (), tuple(kind.name for kind in kinds), path.name)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _IMAGES and not file.name.startswith(".")


def _images(files: Sequence[Path]) -> Tensor:
    """[N, 3, H, W]; all of one size."""
    found, size = [], None
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} is no image that can be read ({error}): remove it") from error
        size = size or pixels.shape
        if pixels.shape != size:
            raise DataError(
                f"{file} is {pixels.shape[1]}x{pixels.shape[0]}, {files[0].name} is {size[1]}x{size[0]}: "
                "bring all images to one size"
            )
        found.append(pixels)
    return _number(np.stack(found), files[0].parent.name).permute(0, 3, 1, 2).contiguous()


def _coco(path: Path, annotations: Path, data: Mapping[str, Any]) -> Examples:
    """Annotations in COCO's form: images, annotations with bbox (x, y, width, height), categories.

    Crowds, and boxes without an area, of which COCO itself has some, are left out.
    """
    try:
        kinds = {int(one["id"]): str(one["name"]) for one in data["categories"]}
        pictures = {int(one["id"]): str(one["file_name"]) for one in data["images"]}
        rows: dict[int, list[tuple[list[float], int]]] = {one: [] for one in pictures}
        for one in data["annotations"]:
            if not one.get("iscrowd"):
                x, y, w, h = map(float, one["bbox"])
                if min(w, h) <= 0:
                    continue
                rows[int(one["image_id"])].append(([x, y, x + w, y + h], int(one["category_id"])))
        number = {kind: index for index, kind in enumerate(sorted(kinds))}
        targets = tuple(
            {
                "boxes": torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([number[kind] for _, kind in found], dtype=torch.long),
            }
            for found in rows.values()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{annotations} is not in COCO's form ({type(error).__name__}: {error}): "
            "it needs images, annotations and categories"
        ) from error
    if not pictures:
        raise DataError(f"{annotations} names no image: give at least one")
    root = path.resolve()
    files = []
    for name in pictures.values():
        places = [path / name, path / "images" / name]
        file = next((place for place in places if place.is_file()), places[0])
        if root not in file.resolve().parents:
            raise DataError(f"{annotations} names the image {name!r}, which is outside of {path}: not read")
        files.append(file)
    return Examples(_images(files), None, targets, tuple(kinds[one] for one in sorted(kinds)), path.name)


# ----------------------------------------------------------------------------------------------------- batches


Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""(inputs [B, ...], generator) -> inputs: drawn anew for each batch and epoch."""


class Batches(Computed["dict[str, Any]"]):
    """Endless, repeatable batches: `batches[i]` for any i >= 0 is a pure function of the examples, the seed and i.

    `len` is the number of batches of one epoch; each epoch has an order of its own; iteration is one epoch. What is
    left of an epoch after its last whole batch is passed over, unless it is all there is.
    """

    def __init__(self, data: Examples, *, batch: int, seed: int, augment: Augment | None = None) -> None:
        self.data, self.batch, self.seed, self.augment = data, min(batch, len(data)), seed, augment
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.data) // self.batch

    def make(self, index: int) -> dict[str, Any]:
        """One batch: "inputs" [B, ...], and "labels" [B] or "targets" (a list of B) where the examples have them."""
        part = self.data.take(self.places(index))
        inputs = part.inputs
        if self.augment is not None:
            inputs = self.augment(inputs, np.random.default_rng([self.seed, *divmod(index, len(self))]))
        return part.batch() | {"inputs": inputs}

    def places(self, index: int) -> NDArray[np.int64]:
        """[B]: which examples of the data stand in batch `index`, in its order; for what is known of each of them."""
        if index < 0:
            raise IndexError(f"batch {index}: batches are counted from 0 without end")
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
            self._epoch = epoch
        return self._order[place * self.batch : (place + 1) * self.batch]


def batches(data: Examples, *, batch: int, seed: int = 0, augment: Augment | None = None) -> Batches:
    """Batches of `batch` examples each, or of all where there are fewer.

    augment: (inputs [B, ...], generator) -> inputs, drawn anew for each batch and epoch; boxes are not moved by it.
    """
    if augment is not None and data.targets:
        raise DataError(f"{data.name} has boxes, which an augmentation of inputs would leave behind: give none")
    return Batches(data, batch=batch, seed=seed, augment=augment)


def count(batch: Mapping[str, Any]) -> dict[str, int]:
    """What a batch holds, for the divisors of losses."""
    return {"examples": len(batch["inputs"])}
