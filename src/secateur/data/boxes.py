"""Boxes of objects in images: what annotations say of them, letterboxing to one size, augmentation that moves boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from secateur.data.images import Files, Images, decode
from secateur.data.transforms import PRESETS, Picture, Transform
from secateur.errors import DataError, InputError, MissingExtraError

__all__ = [
    "AUGMENTATIONS",
    "Annotated",
    "Annotation",
    "Augmentation",
    "augmentation",
    "clean",
    "collect",
    "fit_boxes",
    "fit_images",
    "letterbox",
    "place_in",
    "renumber",
]

GREY = 114
"""Of the bars of a letterbox, out of 255: as Ultralytics fills them."""

_ORIENTATION = 0x0112
_READERS = 8
_CLIPPED = 0.1
"""Share of boxes that may reach beyond their images by more than a pixel: of more, the numbers mean something else."""
_EMPTY, _OUTSIDE = "without an area, left out", "outside of their images, left out"
_FORMS = (
    "COCO's are x, y, width, height in pixels, YOLO's x, y of the middle, width, height in shares, VOC's and Python's "
    "corners"
)
"""What four numbers are, for those who gave others."""


@dataclass(slots=True)
class Annotation:
    """One image and its boxes, as a file of annotations says them."""

    file: Path
    size: tuple[int, int] | None = None
    """(width, height), where the annotations say it."""
    boxes: list[list[float]] = field(default_factory=list)
    """x1, y1, x2, y2 in pixels, or in shares of width and height where `relative`."""
    labels: list[int] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    """Of each box whether it stands for several objects, or one too hard to judge."""
    relative: bool = False
    said_in: Path | None = None
    """The file that says this, for messages."""


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images with boxes that were checked; of the images only their headers were read.

    sizes: (width, height) of each as its boxes were drawn on it. upright: whether it is turned as its EXIF says.
    targets: per image {"boxes" [n, 4] float32, "labels" [n] int64 from 0}, and where there are crowds {"crowds" [m, 4],
    "crowd_labels" [m]}. classes: names; ids: their numbers in the annotations. notes: what was left out or changed.
    """

    name: str
    files: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    upright: tuple[bool, ...]
    targets: tuple[Mapping[str, Tensor], ...]
    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> Images:
        """The images as they lie there, each as its boxes were drawn on it."""
        return Images(_Files(self.files, self.sizes, self.upright))


class _Files(Files):
    """Images in files whose sizes are known, and some of which are not to be turned."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int]], upright: Sequence[bool]) -> None:
        super().__init__(paths)
        self.sizes, self.upright = sizes, upright

    def size(self, place: int) -> tuple[int, int]:
        """(width, height), as its boxes were drawn on it."""
        return self.sizes[place]

    def open(self, place: int) -> Picture:
        """The image as its boxes were drawn on it."""
        return decode(self.fetch(place, 0, self.length(place)), self.name(place), turn=self.upright[place])


# --------------------------------------------------------------------------------------------------------- checking


def collect(
    rows: Sequence[Annotation], classes: Sequence[str], source: Path, *, ids: Sequence[int] = (), name: str = ""
) -> Annotated:
    """Annotations as images and boxes that can be learned from.

    Left out, and counted in the notes: boxes without an area, and outside of their image. Boxes that reach beyond it
    are clipped. Crowds are kept apart. Images without boxes stay: they show what is no object.

    Raises:
        DataError: an image that is missing, damaged, or of another size than the annotations say; numbers that are
            none; two classes of one name; no image or no box at all; boxes many of which can't be of these images.
    """
    if not rows:
        raise DataError(f"{source} names no image: give at least one")
    double = [one for one, count in Counter(classes).items() if count > 1]
    if double:
        raise DataError(f"{source} has two classes called {double[0]!r}: give each a name of its own")
    missing = [row.file for row in rows if not row.file.is_file()]
    if missing:
        raise DataError(f"{source} names {len(missing)} of {len(rows)} images that are not there, such as {missing[0]}")
    with ThreadPoolExecutor(_READERS) as pool:
        shapes = list(pool.map(_shape, rows))
    targets, notes = clean(rows, [size for size, _ in shapes], source)
    return Annotated(
        name or source.name,
        tuple(row.file for row in rows),
        tuple(size for size, _ in shapes),
        tuple(turned for _, turned in shapes),
        targets,
        tuple(classes),
        tuple(ids),
        notes,
    )


def clean(
    rows: Sequence[Annotation], sizes: Sequence[tuple[int, int]], source: Path
) -> tuple[tuple[dict[str, Tensor], ...], tuple[str, ...]]:
    """(the boxes of images of these sizes that can be learned from, as `Annotated.targets`; notes): see `collect`."""
    tally = _Tally()
    targets = tuple(_clean(row, size, tally) for row, size in zip(rows, sizes, strict=True))
    notes = tally.notes(source)
    if not any(len(target["boxes"]) for target in targets):
        lost = [f"{tally.counts[what]} of {tally.boxes} {what}" for what in (_EMPTY, _OUTSIDE) if tally.counts[what]]
        why = f" ({'; '.join(lost)}): {_FORMS}" if lost else ": a detector needs some"
        raise DataError(f"{source} has no box that can be learned from{why}")
    return targets, notes


def renumber(targets: Sequence[Mapping[str, Tensor]], numbers: Tensor) -> tuple[dict[str, Tensor], ...]:
    """Targets with label i as `numbers[i]`, of boxes and of crowds."""
    return tuple(
        {name: numbers[value] if name.endswith("labels") else value for name, value in target.items()}
        for target in targets
    )


def _shape(row: Annotation) -> tuple[tuple[int, int], bool]:
    """((width, height) of the image as its boxes were drawn on it, whether it is turned as its EXIF says)."""
    try:
        with Image.open(row.file) as image:
            stored, swapped = image.size, image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{row.file} is no image that can be read ({error}): remove it") from error
    turned = (stored[1], stored[0]) if swapped else stored
    if row.size in (None, turned):
        return turned, True
    if row.size == stored:
        return stored, False
    assert row.size is not None
    said, found = ("x".join(map(str, size)) for size in (row.size, turned))
    raise DataError(
        f"{row.said_in} says that {row.file} is {said}, and it is {found}: its boxes are of another image; mend one of "
        "the two"
    )


class _Tally:
    """How many boxes were changed or left out, and where the first was."""

    def __init__(self) -> None:
        self.boxes = 0
        self.counts = Counter[str]()
        self.first = dict[str, str]()

    def add(self, what: str, row: Annotation) -> None:
        self.counts[what] += 1
        self.first.setdefault(what, row.file.name)

    def notes(self, source: Path) -> tuple[str, ...]:
        beyond = self.counts["clipped to their images"] + self.counts[_OUTSIDE]
        if beyond > max(1, _CLIPPED * self.boxes):
            first = next(self.first[what] for what in self.first if "their images" in what)
            raise DataError(
                f"{source} has {beyond} of {self.boxes} boxes that reach beyond their images, first on {first}: "
                f"{_FORMS}"
            )
        return tuple(
            f"{source.name}: {count} of {self.boxes} boxes {what} (first on {self.first[what]})"
            for what, count in self.counts.items()
        )


def _clean(row: Annotation, size: tuple[int, int], tally: _Tally) -> dict[str, Tensor]:
    """The boxes of one image that can be learned from, and its crowds."""
    boxes = np.asarray(row.boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise DataError(f"{row.said_in} has a box of {row.file.name} that is no four finite numbers: mend it")
    if row.relative:
        boxes = boxes * np.tile(size, 2)
    tally.boxes += len(boxes)
    inside = boxes.clip(0, np.tile(size, 2))
    stays = np.ones(len(boxes), bool)
    for place, (given, clipped) in enumerate(zip(boxes, inside, strict=True)):
        if (given[2:] <= given[:2]).any():
            tally.add(_EMPTY, row)
            stays[place] = False
        elif (clipped[2:] <= clipped[:2]).any():
            tally.add(_OUTSIDE, row)
            stays[place] = False
        elif np.abs(given - clipped).max() > 1:
            tally.add("clipped to their images", row)
    crowds = np.asarray(row.crowds or [False] * len(boxes), bool)
    for _ in range(int((crowds & stays).sum())):
        tally.add("of crowds or objects too hard to judge, not learned from", row)
    found, labels = torch.from_numpy(inside.astype(np.float32)), torch.tensor(row.labels, dtype=torch.long)
    # What is left of a box may be less than float32 can tell from nothing.
    seen = torch.from_numpy(stays) & (found[:, 2:] > found[:, :2]).all(1)
    single, crowd = seen & torch.from_numpy(~crowds), seen & torch.from_numpy(crowds)
    target = {"boxes": found[single], "labels": labels[single]}
    if bool(crowd.any()):
        target |= {"crowds": found[crowd], "crowd_labels": labels[crowd]}
    return target


# -------------------------------------------------------------------------------------------------------- letterbox


def place_in(given: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width), (left, top)) of an image of `given` (width, height) within `size` (height, width).

    >>> place_in((200, 100), (64, 64))
    ((32, 64), (0, 16))
    """
    scale = min(size[1] / given[0], size[0] / given[1])
    height, width = max(1, round(given[1] * scale)), max(1, round(given[0] * scale))
    return (height, width), ((size[1] - width) // 2, (size[0] - height) // 2)


def letterbox(picture: Picture, size: tuple[int, int]) -> Picture:
    """The whole picture in the middle of `size` (height, width), in proportion, between grey bars."""
    try:
        from torchvision.transforms.v2 import functional as v2
    except ImportError as error:
        raise MissingExtraError("images are resized with torchvision: pip install 'secateur[detect]'") from error
    high, wide = v2.get_size(picture)
    (height, width), (left, top) = place_in((wide, high), size)
    fill = GREY if isinstance(picture, Image.Image) or not picture.is_floating_point() else GREY / 255
    small = v2.resize(picture, [height, width], antialias=True)
    result: Picture = v2.pad(small, [left, top, size[1] - width - left, size[0] - height - top], fill=fill)
    return result


def fit_images(
    images: Images, targets: Sequence[Mapping[str, Tensor]], size: tuple[int, int] | None
) -> tuple[Images, tuple[Mapping[str, Tensor], ...]]:
    """Images letterboxed to `size` (height, width) when they are read, and their boxes; as they are without a size.

    Raises `DataError` where they have several sizes, and are to stay as they are.
    """
    given = [images.source.size(int(place)) for place in images.places]
    if size is None or all(one == (size[1], size[0]) for one in given):
        other = next((place for place, one in enumerate(given) if one != given[0]), None)
        if other is not None:
            ours, first = ("x".join(map(str, given[place])) for place in (other, 0))
            raise DataError(
                f"{images.name(other)} is {ours}, {Path(images.name(0)).name} is {first}: give a size to which images "
                "are letterboxed, such as --size 640"
            )
        return images.with_transform(PRESETS["none"]), tuple(targets)
    step = partial(letterbox, size=size)
    said = f"letterbox {size[0]}x{size[1]}"
    fitted = images.with_transform(Transform(said, size, steps=(step, step), source=said))
    return fitted, tuple(fit_boxes(target, one, size) for target, one in zip(targets, given, strict=True))


def fit_boxes(target: Mapping[str, Tensor], given: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
    """The boxes of an image of `given` (width, height) where they are once it is letterboxed to `size`."""
    (height, width), (left, top) = place_in(given, size)
    scale = torch.tensor([width / given[0], height / given[1]] * 2)
    offset = torch.tensor([left, top] * 2, dtype=torch.float32)
    return {name: value if name.endswith("labels") else value * scale + offset for name, value in target.items()}


# ----------------------------------------------------------------------------------------------------- augmentation


@dataclass(frozen=True)
class Augmentation:
    """What training sees in place of images and boxes, drawn anew for each of them and each epoch.

    flip: how often left and right change places. zoom: least and greatest side of the part that is shown, in sides of
    the image, at most 1.5; above 1 there are grey bars around it. mosaic: how often an image is shown among three
    others of its batch. least: share of a box's area that has to be left.
    """

    flip: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    mosaic: float = 0.0
    least: float = 0.2

    def __call__(self, batch: Mapping[str, Any], draw: np.random.Generator) -> dict[str, Any]:
        """A batch of "inputs" [B, C, H, W] and "targets", of which boxes that are cut away go; crowds go, too."""
        inputs, targets = batch["inputs"], batch["targets"]
        shown = [self._show(inputs, targets, place, draw) for place in range(len(inputs))]
        return {**batch, "inputs": torch.stack([one for one, _ in shown]), "targets": [target for _, target in shown]}

    def _show(
        self, inputs: Tensor, targets: Sequence[Mapping[str, Tensor]], place: int, draw: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        size = inputs.shape[-2:]
        if draw.random() < self.mosaic:
            others = [place, *draw.integers(0, len(inputs), 3).tolist()]
            canvas, target = _tile([inputs[one] for one in others], [targets[one] for one in others])
            side = float(draw.uniform(1.0, 1.5))
            # The middle, where four images meet, stays inside.
            corner = [float(draw.uniform(max(0.0, 1.05 - side), min(2 - side, 0.95))) for _ in size]
        else:
            canvas, target = _surround(inputs[place], targets[place])
            side = float(draw.uniform(*self.zoom))
            corner = [float(draw.uniform(min(0.5, 1.5 - side), max(0.5, 1.5 - side))) for _ in size]
        if side != 1.0 or corner != [0.5, 0.5]:
            image, target = _crop(canvas, target, corner, side, size, self.least)
        else:
            image, target = inputs[place], _only_boxes(targets[place])
        if draw.random() < self.flip:
            image, target = _mirror(image, target)
        return image, target


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "flip": Augmentation(flip=0.5),
    "jitter": Augmentation(flip=0.5, zoom=(0.6, 1.5)),
    "mosaic": Augmentation(flip=0.5, zoom=(0.6, 1.5), mosaic=0.5),
}
"""What `--transform` takes by name where the data has boxes; each includes those before it."""


def _only_boxes(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: target[name] for name in ("boxes", "labels")}


def _surround(image: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The image in the middle of a grey canvas of twice its sides."""
    height, width = image.shape[-2:]
    left, top = width // 2, height // 2
    canvas = functional.pad(image, [left, width - left, top, height - top], value=GREY / 255)
    moved = target["boxes"] + torch.tensor([left, top] * 2)
    return canvas, {"boxes": moved, "labels": target["labels"]}


def _tile(inputs: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Four images of one size in two rows."""
    height, width = inputs[0].shape[-2:]
    rows = [torch.cat(list(inputs[first : first + 2]), -1) for first in (0, 2)]
    boxes = [
        target["boxes"] + torch.tensor([place % 2 * width, place // 2 * height] * 2)
        for place, target in enumerate(targets)
    ]
    labels = torch.cat([target["labels"] for target in targets])
    return torch.cat(rows, -2), {"boxes": torch.cat(boxes), "labels": labels}


def _crop(
    canvas: Tensor,
    target: Mapping[str, Tensor],
    corner: Sequence[float],
    side: float,
    size: Sequence[int],
    least: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A part of the canvas, brought to `size`; its corner (y, x) and side are in sides of `size`."""
    top, left = (round(at * length) for at, length in zip(corner, size, strict=True))
    height, width = (max(1, round(side * length)) for length in size)
    part = canvas[:, top : top + height, left : left + width]
    height, width = part.shape[-2:]
    image = functional.interpolate(part[None], tuple(size), mode="bilinear", antialias=True, align_corners=False)[0]
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    moved = (target["boxes"] - torch.tensor([left, top] * 2)) * scale
    inside = torch.minimum(moved.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
    sides, whole = (inside[:, 2:] - inside[:, :2]).clamp(min=0), moved[:, 2:] - moved[:, :2]
    stays = (sides.prod(1) >= least * whole.prod(1)) & (sides >= 1).all(1)
    return image, {"boxes": inside[stays], "labels": target["labels"][stays]}


def _mirror(image: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    boxes, width = target["boxes"], image.shape[-1]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image.flip(-1), {**target, "boxes": mirrored}


def augmentation(name: str | None) -> Augmentation | None:
    """The augmentation of that name; None for None or "none". Raises `InputError` for another."""
    if name in (None, "none"):
        return None
    found = AUGMENTATIONS.get(str(name))
    if found is None:
        raise InputError(
            f"transform={name}: images with boxes are letterboxed to --size, and take none, {', '.join(AUGMENTATIONS)}"
        )
    return found
