"""Data sets of Python whose examples have boxes or masks in place of one class: (image, target) by their place.

Boxes are as torchvision's detectors take them, {"boxes": [n, 4] (x1, y1, x2, y2) in pixels, "labels": [n]}, masks are
[H, W] numbers of classes. Images are read when they are asked for, and masks too; of boxes all are known at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data as loading

from secateur._utils.bars import show_bar
from secateur._utils.plugins import line
from secateur.data import boxes, image_items, image_pairs, transforms
from secateur.data.boxes import Annotation
from secateur.data.image_items import Items
from secateur.data.images import Images
from secateur.data.masks import BINARY, Masks
from secateur.data.transforms import Picture
from secateur.errors import DataError

__all__ = ["ItemMasks", "Targeted", "read"]

Target: TypeAlias = Mapping[str, Tensor]
Pair: TypeAlias = tuple[image_items.Given, image_items.Given]
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


def read(source: image_items.Given, name: str, *, labelled: bool = True) -> Targeted | None:
    """The examples of a data set with places, or of a loader over one, if the first of them has boxes or a mask.

    Of a loader they are those that its sampler draws. None for anything else, and for a loader whose `collate_fn` makes
    classes of them. labelled: whether masks are asked for; else what stands in their place may be anything.

    Raises `DataError` for a loader that makes other images, boxes or masks, for a target of another form than others,
    for boxes that `boxes.collect` refuses, for a data set that draws another example each time it is asked, and for
    labels and names that don't fit each other.
    """
    data: image_items.Given = source.dataset if isinstance(source, loading.DataLoader) else source
    if not image_pairs.has_places(data) or isinstance(data, str | bytes) or not len(data):
        return None
    items, notes = _Sized(data, name), tuple[str, ...]()
    try:
        image, target = _first_with_target(items, labelled)
    except DataError:
        return None  # as `image_pairs.read_pairs` will say, or a loader's own code may mend
    boxed, bare = (labelled and has(target) for has in (image_items.has_boxes, _has_no_boxes))
    loader = source if isinstance(source, loading.DataLoader) else None
    if not (boxed or bare) and (image_pairs.is_batch(image, target) or not image_items.is_mask(target)):
        if labelled:
            _refuse_annotations(target, name, plain=loader is None or loader.collate_fn is loading.default_collate)
        return None
    if loader is not None:
        if not _passes_on(loader, items, labelled):
            return None
        data, notes = image_pairs.restrict(source, name)
        items = _Sized(data, name)
    if bare:
        raise DataError(f"{name} has no box that can be learned from: a detector needs some")
    _check_steady(items)
    _, whole, places = image_pairs.whole_of(data)
    names = image_pairs.names_of_parts(whole)
    if not boxed:
        if not labelled:
            return Targeted(Images(items), classes=names, notes=notes)
        _check_mask(image, target, name)
        masks = ItemMasks(items)
        if masks.look_binary():
            masks, notes = ItemMasks(items, binary=True), (*notes, f"masks of {name} hold 0 and 255 alone: {BINARY}")
        return Targeted(Images(items), masks=masks, classes=names, notes=notes)
    rows = [_read_boxes(items, place) for place in show_bar(range(len(items)), f"boxes of {name}")]
    if 0 < max((number for row in rows for box in row.boxes for number in box), default=0) <= 1:
        raise DataError(f"{name} has boxes between 0 and 1, which are shares of an image: give them in pixels")
    classes, ids = _number(rows, names, name, _read_rest(whole, places, name))
    for row in rows:
        row.labels = [label - ids[0] for label in row.labels]
    targets, changed = boxes.clean(rows, [items.size(place) for place in range(len(items))], Path(name))
    return Targeted(Images(items), targets, classes=classes, ids=ids, notes=(*notes, *changed))


def _first_with_target(items: Items, labelled: bool) -> Pair:
    """The first example, or, where that has nothing beside its image, the first that has of some of the others.

    Of images with a number alone, as torchvision has those without boxes, all are asked, if labels are.
    """
    first = items.pair(0)
    every = labelled and _has_no_boxes(first[1])
    for place in show_bar(range(len(items)), f"boxes of {items.title}") if every else items.ask():
        image, target = items.pair(place)
        if not (target is None or _has_no_boxes(target) or (isinstance(target, list) and not target)):
            return image, target
    return first


def _has_no_boxes(target: image_items.Given) -> bool:
    """Whether it is of an image without boxes, as torchvision has it of COCO: a number of the image alone."""
    return isinstance(target, Mapping) and target.keys() <= {"image_id"}


def _refuse_annotations(target: image_items.Given, name: str, *, plain: bool) -> None:
    """Raise `DataError` for what is neither class nor mask nor boxes: annotations as COCO or Pascal VOC has them.

    plain: whether no loader makes anything else of what stands in a dict.
    """
    if isinstance(target, Mapping) and plain:
        raise DataError(
            f"{name} gives {', '.join(map(str, target)) or 'nothing'} beside each image: a class is one number, boxes "
            'are {"boxes": [n, 4] (x1, y1, x2, y2), "labels": [n]}, a mask is [H, W], and '
            "torchvision's wrap_dataset_for_transforms_v2 makes boxes of its own data sets"
        )
    if isinstance(target, list) and target and isinstance(target[0], Mapping) and "bbox" in target[0]:
        raise DataError(
            f"{name} gives annotations as COCO's file has them: give the folder of that file, or torchvision's "
            'wrap_dataset_for_transforms_v2 of it, or {"boxes": [n, 4] (x1, y1, x2, y2), "labels": [n]} for each image'
        )


def _check_mask(image: image_items.Given, target: image_items.Given, name: str) -> None:
    """Raise `DataError` for what has two dimensions and is no mask of this image."""
    picture = image_items.picture_of(image, name)
    own = tuple(picture.shape[-2:]) if isinstance(picture, Tensor) else picture.size[::-1]
    given = target.size[::-1] if isinstance(target, Image.Image) else tuple(_plane(target).shape)
    if given != own:
        raise DataError(
            f"{name} has {given[0]} x {given[1]} numbers beside an image of {own[0]} x {own[1]} pixels: a mask is as "
            'large as its image, boxes are {"boxes": [n, 4] (x1, y1, x2, y2), "labels": [n]}, and a class is one number'
        )


def _read_rest(whole: image_items.Given, places: Sequence[int], name: str) -> Iterator[Annotation]:
    """The boxes of a data set at other places than these, of those examples that have some and can be read."""
    items, chosen = _Sized(whole, name), {int(place) for place in places}
    for place in show_bar(range(len(items)), f"boxes of the rest of {name}"):
        if place not in chosen:
            with contextlib.suppress(DataError):
                yield _read_boxes(items, place)


def _plane(mask: image_items.Given) -> image_items.Given:
    """[H, W] of a mask that is so, or [1, H, W], or [H, W, 1]."""
    return mask if len(mask.shape) == 2 else mask[0] if mask.shape[0] == 1 else mask[..., 0]


def _passes_on(loader: loading.DataLoader[image_items.Given], items: Items, labelled: bool) -> bool:
    """Whether a loader's batches hold the images, boxes and masks of its data set; not if they hold classes.

    labelled: whether more than images is asked for. Raises `DataError` where they hold others, if it is.
    """
    if loader.collate_fn is loading.default_collate:
        return True
    alone = loader.batch_sampler is None
    count = 1 if alone else min(loader.batch_size or 2, 2, len(items))
    given = [items.item(place) for place in range(count)]
    try:
        with transforms.seed_generators([0]):
            made = loader.collate_fn(given[0] if alone else given)
    except Exception as error:  # a user's own code
        raise DataError(
            f"the collate_fn of the loader of {items.title} fails on the first of its examples ({line(error)}): give "
            "the data set alone"
        ) from error
    if made is given[0] or (isinstance(made, list | tuple) and all(map(operator.is_, made, given))):
        return True
    images, targets = image_items.pair_of(made, f"a batch of the loader of {items.title}")
    with contextlib.suppress(DataError, TypeError, ValueError):
        pairs = [(images, targets)] if alone else list(zip(images, targets, strict=True))
        forms = (image_items.has_boxes, image_items.is_mask, _has_no_boxes)
        if not any(form(target) for form in forms for _, target in pairs):
            return False
        own = [items.pair(place) for place in range(count)]
        if all(_are_equal(*both) for both in zip(pairs, own, strict=True)):
            return True
    if not labelled:
        return False
    raise DataError(
        f"the collate_fn of the loader of {items.title} makes other images, boxes or masks than its data set has: let "
        "the data set give them so, or give it alone and say transform="
    )


def _are_equal(one: Pair, other: Pair) -> bool:
    """Whether two examples have the same image and the same boxes or mask, in whatever form."""
    kinds = [image.dtype for image, _ in (one, other) if isinstance(image, Tensor) and image.is_floating_point()]
    near = max([1e-6, *(torch.finfo(kind).eps for kind in kinds)])
    parts, others = _arrays(one), _arrays(other)
    return len(parts) == len(others) and all(
        first.shape == second.shape
        and bool(
            np.allclose(first, second, rtol=0, atol=near, equal_nan=True)
            if first.dtype == second.dtype == np.float64
            else np.array_equal(first, second)
        )
        for first, second in zip(parts, others, strict=True)
    )


def _arrays(pair: Pair) -> list[NDArray[np.generic]]:
    """The image of an example as numbers, and its boxes and labels, or its mask, if it has either."""
    image, target = pair
    picture = image_items.picture_of(image, "an image")
    numbers = picture if isinstance(picture, Tensor) else np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1) / 255
    if image_items.has_boxes(target):
        return [_numbers(part) for part in (numbers, target["boxes"], target["labels"])]
    if not image_items.is_mask(target):
        return [_numbers(numbers)]
    mask = _numbers(target)
    return [_numbers(numbers), _plane(mask) if mask.ndim == 3 and not isinstance(target, Image.Image) else mask]


def _numbers(given: image_items.Given) -> NDArray[np.generic]:
    if isinstance(given, Tensor):
        return given.as_subclass(Tensor).detach().cpu().double().numpy()
    try:
        found = np.asarray(given)
    except ValueError:  # of rows of several lengths, which `_read_boxes` refuses by name
        found = np.array(given, dtype=object)
    return found.astype(np.float64) if found.dtype.kind in "biuf" else found


def _check_steady(items: Items) -> None:
    """Raise `DataError` for a data set that draws by a generator of its own: boxes and masks would not fit images."""
    for place in items.look():
        if not _are_equal(items.pair(place), items.pair(place)):
            raise DataError(
                f"{items.name(place)} is another each time it is asked for, by a random generator of the data set's "
                "own: give it without augmentation, and say transform= for ours"
            )


_KEPT = 32
"""Targets that are kept until they are asked for, of images that were."""


class _Sized(Items):
    """Items whose targets are those read with their images."""

    def __init__(self, items: image_items.Given, name: str) -> None:
        super().__init__(items, name)
        self._targets = OrderedDict[int, image_items.Given]()

    def open(self, place: int) -> Picture:
        image, target = self.pair(place)
        self._targets[place] = target
        while len(self._targets) > _KEPT:
            self._targets.popitem(last=False)
        return image_items.picture_of(image, self.name(place))

    def target(self, place: int) -> image_items.Given:
        """What stands beside the image: a batch opens its images first, and no example is asked for twice."""
        found = self._targets.pop(place, None)
        return self.pair(place)[1] if found is None else found


def _read_boxes(items: Items, place: int) -> Annotation:
    """The boxes of an example, with its labels as they are."""
    target, where = items.pair(place)[1], items.name(place)
    if _has_no_boxes(target):
        return Annotation(Path(f"item {place}"), said_in=Path(items.title))
    if not image_items.has_boxes(target):
        raise DataError(f'{where} has no boxes, as others have: give {{"boxes": [n, 4], "labels": [n]}}')
    given = target["boxes"]
    if type(given).__name__ == "BoundingBoxes":  # of torchvision, which is there then
        from torchvision.transforms.v2.functional import convert_bounding_box_format

        given = convert_bounding_box_format(given, new_format="XYXY")
    corners, labels = _numbers(given), _numbers(target["labels"]).flatten()
    whole = labels.dtype == np.float64 and bool(np.equal(np.mod(labels, 1), 0).all())
    if len(labels) and not whole:
        raise DataError(f"{where} has the label {labels.tolist()[0]}: labels are whole numbers")
    if corners.size and corners.dtype != np.float64 and corners.shape[-1:] == (4,):
        raise DataError(f"{where} has the box {corners.reshape(-1, 4)[0].tolist()}: give four numbers for each")
    if corners.size and (corners.dtype != np.float64 or corners.shape[-1:] != (4,)):
        raise DataError(f"{where} has boxes of shape {list(corners.shape)}: give four numbers for each")
    corners = corners.reshape(-1, 4)
    if len(labels) != len(corners):
        raise DataError(f"{where} has {len(corners)} boxes and {len(labels)} labels: give one each")
    crowds = _numbers(target.get("iscrowd", ())).flatten()
    return Annotation(
        Path(f"item {place}"),
        boxes=corners.tolist(),
        labels=labels.astype(np.int64).tolist(),
        crowds=crowds.astype(bool).tolist() if crowds.dtype != object and len(crowds) == len(corners) else [],
        said_in=Path(items.title),
    )


def _number(
    rows: Sequence[Annotation], names: tuple[str, ...], name: str, rest: Iterable[Annotation]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(names of the classes, the numbers that these have in the data set).

    Detectors of torchvision count from 1, for 0 is the background: so do names that begin with it, and labels without a
    0, of the rest of the data set, too, which is asked where that leaves it open. Raises `DataError` for names that
    leave open which of the two it is, and for labels without a name.
    """
    labels = {label for row in rows for label in row.labels}
    ground = bool(names) and re.sub(r"\W|_", "", names[0]).lower() in ("background", "bg")
    told = {0, len(names)}
    if names and not ground and not told & labels:
        labels |= next((told & set(row.labels) for row in rest if told & set(row.labels)), set())
    least, most = (min(labels), max(labels)) if labels else (1, len(names))
    first = int(ground or least > 0)
    if names and not ground and least > 0 and most < len(names):
        raise DataError(
            f"{name} names {len(names)} classes and has the labels {least} to {most}, which leaves open whether they "
            "count from 0 or 1: let `classes` begin with '__background__' where they count from 1, and else name no "
            "classes that no box has"
        )
    classes = names[first:] if ground else names or ("",) * (most + 1 - first)
    if most - first >= len(classes) or least < first:
        if least < 0:
            raise DataError(f"{name} has the label {least}: labels of boxes count from 0, or 1 beside a background")
        wrong = least if least < first else most
        raise DataError(f"{name} has the label {wrong}, and names {len(classes)} classes from {first} on: name each")
    return classes, tuple(range(first, first + len(classes)))


class ItemMasks(Masks):
    """The masks of a data set of Python's, each read with its image."""

    files: _Sized

    @cached_property
    def _stamps(self) -> NDArray[np.void]:
        found = list[bytes]()
        for place in show_bar(range(len(self.files)), "masks"):
            values, _ = self._decode(place)
            text = str(tuple(values.shape)).encode()
            found.append(hashlib.sha256(text + values.numpy().tobytes()).digest())
        return np.array(found, "V32")

    def _decode(self, place: int) -> tuple[Tensor, int]:
        target, where = self.files.target(place), self.files.name(place)
        if not image_items.is_mask(target):
            raise DataError(f"{where} has no mask, as others have: give numbers of classes [H, W]")
        given = np.array(target) if isinstance(target, Image.Image) else target
        values = (
            (image_items.tensor_of(given, where) if isinstance(given, np.ndarray) else torch.as_tensor(given))
            .as_subclass(Tensor)
            .detach()
            .cpu()
        )
        values = _plane(values) if values.dim() == 3 and 1 in (values.shape[0], values.shape[-1]) else values
        if values.dim() != 2 or (values.is_floating_point() and not torch.equal(values, values.floor())):
            raise DataError(f"{where} has a mask of {values.dtype}, {list(values.shape)}: give whole numbers [H, W]")
        deep = values.dtype == torch.uint16 or (isinstance(target, Image.Image) and target.mode.startswith("I"))
        void = _DEEP_VOID if deep else _VOID
        bits = values.dtype == torch.bool and self.binary
        return values.to(torch.int32, copy=True) * (void if bits else 1), void
