"""Data sets of Python whose examples have boxes or masks in place of one class: (image, target) by their place.

Boxes are as torchvision's detectors take them, {"boxes": [n, 4] (x1, y1, x2, y2) in pixels, "labels": [n]}, masks are
[H, W] numbers of classes. Images are read when they are asked for, and masks too; of boxes all are known at once.
"""

from __future__ import annotations

import hashlib
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
from secateur.data import image_sources
from secateur.data.image_sources import Items
from secateur.data.images import Images
from secateur.data.masks import BINARY, Masks
from secateur.errors import DataError

__all__ = ["ItemMasks", "Targeted", "read"]

Target: TypeAlias = Mapping[str, Tensor]
_VOID = 255
"""What counts nowhere in a mask."""


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

    A loader's examples are those that its sampler draws, whatever its `collate_fn` makes of them. None for anything
    else. Raises `DataError` for a target of another form than the first.
    """
    data: image_sources.Data = source.dataset if isinstance(source, loading.DataLoader) else source
    if not image_sources.has_places(data) or isinstance(data, str | bytes) or not len(data):
        return None
    image, target = Items(data, name).pair(0)
    boxed = isinstance(target, Mapping) and {"boxes", "labels"} <= target.keys()
    if not boxed and (image_sources.is_batch(image, target) or not _is_mask(target)):
        return None
    notes: tuple[str, ...] = ()
    if isinstance(source, loading.DataLoader):
        data, notes = image_sources.restrict(source, name)
    names, _, _ = image_sources.whole_of(data)
    items = _Sized(data, name)
    if not boxed:
        masks = ItemMasks(items)
        if masks.look_binary():
            masks, notes = ItemMasks(items, binary=True), (*notes, f"masks of {name} hold 0 and 255 alone: {BINARY}")
        return Targeted(Images(items), masks=masks, classes=names, notes=notes)
    places = show_bar(range(len(items)), f"boxes of {name}")
    targets, ids = _number([_read_boxes(items, place) for place in places])
    names = names[1:] if ids and len(names) == len(ids) + 1 else names  # the first stands for the background
    return Targeted(Images(items), targets, classes=names or ("",) * len(ids), ids=ids, notes=notes)


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
    return isinstance(target, Image.Image) or len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)


def _read_boxes(items: Items, place: int) -> dict[str, Tensor]:
    """{"boxes" [n, 4], "labels" [n]} of an example, and its crowds, where there are some, apart."""
    target, where = items.pair(place)[1], items.name(place)
    if not (isinstance(target, Mapping) and {"boxes", "labels"} <= target.keys()):
        raise DataError(f'{where} has no boxes, as the first has: give {{"boxes": [n, 4], "labels": [n]}}')
    boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).as_subclass(Tensor).detach().cpu().reshape(-1, 4)
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


def _number(targets: Sequence[dict[str, Tensor]]) -> tuple[tuple[Target, ...], tuple[int, ...]]:
    """(the targets with labels from 0, the numbers that these stand for).

    Detectors of torchvision count from 1, for 0 is the background: labels without a 0 are taken to be such.
    """
    labels = torch.cat([target[key] for target in targets for key in ("labels", "crowd_labels") if key in target])
    if not len(labels) or int(labels.min()) < 1:
        return tuple(targets), ()
    moved = tuple(
        {key: value - 1 if key.endswith("labels") else value for key, value in target.items()} for target in targets
    )
    return moved, tuple(range(1, int(labels.max()) + 1))


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
        bits = values.dtype == torch.bool and self.binary
        return values.to(torch.int32, copy=True) * (_VOID if bits else 1), _VOID
