"""Data sets of Python whose examples have boxes or masks in place of one class: (image, target) by their place.

Boxes are as torchvision's detectors take them, {"boxes": [n, 4] (x1, y1, x2, y2) in pixels, "labels": [n]}, masks are
[H, W] numbers of classes. Images are read when they are asked for, and masks too; of boxes all are known at once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data as loading

from secateur._utils.bars import show_bar
from secateur.data import image_sources, transforms
from secateur.data.image_sources import Items
from secateur.data.images import Images
from secateur.data.masks import BINARY, Masks
from secateur.errors import DataError

__all__ = ["ItemMasks", "Targeted", "read"]

Target: TypeAlias = Mapping[str, Tensor]
_VOID, _DEEP_VOID = 255, 65535
"""What counts nowhere in a mask, and in one of 16 bits."""


@dataclass(frozen=True)
class Targeted:
    """Images with boxes or masks, and names and numbers of their classes; see `examples.Examples`."""

    images: Images
    targets: tuple[Target, ...] = ()
    masks: Masks | None = None
    classes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read(source: image_sources.Data, name: str) -> Targeted | None:
    """The examples of a data set with places, or of a loader over one, if the first of them has boxes or a mask.

    Of a loader they are those that its sampler draws, if its `collate_fn` gives the same boxes or masks. None for
    anything else. Raises `DataError` for a target of another form than the first, for a data set that draws another
    example each time it is asked, and for labels and names that don't fit each other.
    """
    data: image_sources.Data = source.dataset if isinstance(source, loading.DataLoader) else source
    if not image_sources.has_places(data) or isinstance(data, str | bytes) or not len(data):
        return None
    items, notes = _Sized(data, name), tuple[str, ...]()
    try:
        image, target = items.pair(0)
    except DataError:
        return None  # as `image_sources.read_pairs` will say, or a loader's own code may mend
    boxed = _has_boxes(target)
    if not boxed and (image_sources.is_batch(image, target) or not _is_mask(target)):
        return None
    if isinstance(source, loading.DataLoader):
        if not _passes_on(source, items):
            return None
        data, notes = image_sources.restrict(source, name)
        items = _Sized(data, name)
    _check_steady(items)
    names, _, _ = image_sources.whole_of(data)
    if not boxed:
        masks = ItemMasks(items)
        if masks.look_binary():
            masks, notes = ItemMasks(items, binary=True), (*notes, f"masks of {name} hold 0 and 255 alone: {BINARY}")
        return Targeted(Images(items), masks=masks, classes=names, notes=notes)
    places = show_bar(range(len(items)), f"boxes of {name}")
    targets, classes, ids = _number([_read_boxes(items, place) for place in places], names, name)
    return Targeted(Images(items), targets, classes=classes, ids=ids, notes=notes)


def _has_boxes(target: image_sources.Data) -> bool:
    return isinstance(target, Mapping) and {"boxes", "labels"} <= target.keys()


def _passes_on(loader: loading.DataLoader[image_sources.Data], items: Items) -> bool:
    """Whether what a loader makes of its first examples has their own boxes or masks, and nothing else."""
    count = min(2, len(items))
    with transforms.seed_generators([0]):
        try:
            made = loader.collate_fn([items.item(place) for place in range(count)])
            images, targets = made
        except Exception:  # a user's own code, or what is no pair
            return False
    if isinstance(targets, Mapping) or not hasattr(targets, "__len__") or len(images) != len(targets) != count:
        return False
    own = [items.pair(place)[1] for place in range(count)]
    return len(targets) == count and all(_are_equal(*pair) for pair in zip(targets, own, strict=True))


def _are_equal(one: image_sources.Data, other: image_sources.Data) -> bool:
    """Whether two targets, or images, hold the same numbers."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_are_equal(one.get(key), other[key]) for key in ("boxes", "labels") if key in other)
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except (TypeError, ValueError):
        return False


_LOOKS = 8
"""Examples that are asked for twice, for one that is another each time."""


def _check_steady(items: Items) -> None:
    """Raise `DataError` for a data set that draws by a generator of its own: boxes and masks would not fit images."""
    for place in range(min(_LOOKS, len(items))):
        first, again = items.pair(place), items.pair(place)
        if not all(_are_equal(*pair) for pair in zip(first, again, strict=True)):
            raise DataError(
                f"{items.name(place)} is another each time it is asked for, by a random generator of the data set's "
                "own: give it without augmentation, and say transform= for ours"
            )


class _Sized(Items):
    """Items whose sizes are known once they were opened."""

    def __init__(self, items: image_sources.Data, name: str) -> None:
        super().__init__(items, name)
        self._sizes = dict[int, tuple[int, int]]()

    def pair(self, place: int) -> tuple[image_sources.Data, image_sources.Data]:
        image, target = super().pair(place)
        if place not in self._sizes:
            picture = image_sources.picture_of(image, self.name(place))
            self._sizes[place] = (picture.shape[-1], picture.shape[-2]) if isinstance(picture, Tensor) else picture.size
        return image, target

    def size(self, place: int) -> tuple[int, int]:
        """(width, height)."""
        if place not in self._sizes:
            self.pair(place)
        return self._sizes[place]


def _is_mask(target: image_sources.Data) -> bool:
    """Whether it is [H, W] or [1, H, W], or an image."""
    shape = list(getattr(target, "shape", ()))
    flat = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    return isinstance(target, Image.Image) or (flat and math.prod(shape) > 1)


def _read_boxes(items: Items, place: int) -> dict[str, Tensor]:
    """{"boxes" [n, 4], "labels" [n]} of an example, and its crowds, where there are some, apart."""
    target, where = items.pair(place)[1], items.name(place)
    if not _has_boxes(target):
        raise DataError(f'{where} has no boxes, as the first has: give {{"boxes": [n, 4], "labels": [n]}}')
    given = target["boxes"]
    if type(given).__name__ == "BoundingBoxes":  # of torchvision, which is there then
        from torchvision.transforms.v2.functional import convert_bounding_box_format

        given = convert_bounding_box_format(given, new_format="XYXY")
    boxes = torch.as_tensor(given, dtype=torch.float32).as_subclass(Tensor).detach().cpu().reshape(-1, 4)
    labels = torch.as_tensor(target["labels"]).as_subclass(Tensor).detach().cpu().flatten()
    if labels.is_floating_point() and not torch.equal(labels, labels.floor()):
        raise DataError(f"{where} has the label {labels.tolist()[0]}: labels are whole numbers")
    if len(labels) != len(boxes):
        raise DataError(f"{where} has {len(boxes)} boxes and {len(labels)} labels: give one each")
    found = {"boxes": boxes, "labels": labels.long()}
    crowd = torch.as_tensor(target.get("iscrowd", torch.zeros(len(boxes)))).flatten().bool()
    if len(crowd) != len(boxes) or not crowd.any():
        return found
    single = {key: value[~crowd] for key, value in found.items()}
    return single | {"crowds": found["boxes"][crowd], "crowd_labels": found["labels"][crowd]}


def _number(
    targets: Sequence[dict[str, Tensor]], names: tuple[str, ...], name: str
) -> tuple[tuple[Target, ...], tuple[str, ...], tuple[int, ...]]:
    """(the targets with labels from 0, names of the classes, the numbers that these have in the data set).

    Detectors of torchvision count from 1, for 0 is the background: so do names that begin with it, and labels without a
    0. Raises `DataError` for names that leave open which of the two it is, and for labels without a name.
    """
    labels = torch.cat([target[key] for target in targets for key in ("labels", "crowd_labels") if key in target])
    least, most = (int(labels.min()), int(labels.max())) if len(labels) else (1, len(names))
    ground = bool(names) and re.sub(r"\W|_", "", names[0]).lower() in ("background", "bg")
    first = int(ground or least > 0)
    if names and not ground and least > 0 and most < len(names):
        raise DataError(
            f"{name} names {len(names)} classes and has the labels {least} to {most}, which leaves open whether they "
            "count from 0 or 1: let `classes` begin with '__background__' where they count from 1, and else name no "
            "classes that no box has"
        )
    classes = names[first:] if ground else names or ("",) * (most + 1 - first)
    if most - first >= len(classes) or least < first:
        wrong = least if least < first else most
        raise DataError(f"{name} has the label {wrong}, and names {len(classes)} classes from {first} on: name each")
    moved = tuple(
        {key: value - first if key.endswith("labels") else value for key, value in target.items()} for target in targets
    )
    return moved, classes, tuple(range(first, first + len(classes)))


class ItemMasks(Masks):
    """The masks of a data set of Python's, each read with its image."""

    files: Items

    @cached_property
    def _stamps(self) -> NDArray[np.void]:
        found = list[bytes]()
        for place in show_bar(range(len(self.files)), "masks"):
            values, _ = self._decode(place)
            text = str(tuple(values.shape)).encode()
            found.append(hashlib.sha256(text + values.numpy().tobytes()).digest())
        return np.array(found, "V32")

    def _decode(self, place: int) -> tuple[Tensor, int]:
        target, where = self.files.pair(place)[1], self.files.name(place)
        if not _is_mask(target):
            raise DataError(f"{where} has no mask, as the first has: give numbers of classes [H, W]")
        given = np.array(target) if isinstance(target, Image.Image) else target
        values = torch.as_tensor(given).as_subclass(Tensor).detach().cpu()
        values = values[0] if values.dim() == 3 and len(values) == 1 else values
        if values.dim() != 2 or (values.is_floating_point() and not torch.equal(values, values.floor())):
            raise DataError(f"{where} has a mask of {values.dtype}, {list(values.shape)}: give whole numbers [H, W]")
        deep = values.dtype == torch.uint16 or (isinstance(target, Image.Image) and target.mode.startswith("I"))
        void = _DEEP_VOID if deep else _VOID
        bits = values.dtype == torch.bool and self.binary
        return values.to(torch.int32, copy=True) * (void if bits else 1), void
