"""Bring data and a detector to the same numbers of classes: by names where both have them, else by a stated rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from secateur.data import boxes
from secateur.data.examples import Examples
from secateur.errors import DataError
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Classes
from secateur.subjects.network.traced import Traced

__all__ = ["match_classes", "need_boxes", "open_with_boxes"]

_VOC_NAMES = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "diningtable": "dining table",
    "pottedplant": "potted plant", "tvmonitor": "tv",
}  # fmt: skip
"""What Pascal VOC calls six of COCO's classes."""

_SHOWN = 5


def need_boxes(data: Examples) -> None:
    """Raise `DataError` for data without boxes, from which no detector can learn."""
    if not data.targets:
        raise DataError(
            f"{data.name} has no boxes, and a detector learns from boxes: give images with annotations of COCO, YOLO "
            "or Pascal VOC, or an .npz file with boxes, box_labels and box_image"
        )


def open_with_boxes(subject: Traced, data: Examples) -> tuple[Traced, Examples]:
    """The detector as `detectors.open_detector` gives it, and the data with its labels, see `match_classes`."""
    need_boxes(data)
    subject = detectors.open_detector(subject)
    return subject, match_classes(data, subject.model)


def match_classes(data: Examples, model: nn.Module) -> Examples:
    """The data with the labels that the detector `model` has for its classes; what changed is in its notes.

    - Where the detector's classes have names (see `detectors.classes_of`) and the data's have, by name. Case, spaces,
      underscores and hyphens do not count, and Pascal VOC's names stand for COCO's.
    - Else, where the detector has as many classes as the data, in the order of the data's ids.
    - Else, where the largest id of the data is the detector's largest number, or classes that have no names have ids
      which are all numbers of the detector's, by these ids as they are.
    - Else in the order of the ids.

    Matching a second time changes nothing. Raises `DataError` for a class with boxes that the detector does not know,
    and for boxes that are missing altogether.
    """
    need_boxes(data)
    known = detectors.classes_of(model)
    numbers = _match_names(data, known)
    if numbers is not None:
        names = [known.names.get(label, "") for label in range(known.count or max(known.names) + 1)]
        return _renumber(data, numbers, known, names, "by name")
    top = max(data.ids, default=-1) - known.first
    if not data.ids or not known.count or len(data.classes) == known.count:
        return data
    nameless = not any(data.classes)  # as labels are of a data set of Python's, which are what its detector learned
    if min(data.ids) >= known.first and (top < known.count if nameless else top == known.count - 1):
        numbers = [one - known.first for one in data.ids]
        names = [""] * known.count
        for label, name in zip(numbers, data.classes, strict=True):
            names[label] = name
        how = "which are its labels" if nameless else "of which the largest is the detector's"
        return _renumber(data, numbers, known, names, f"by their ids, {how}")
    if len(data.classes) > known.count:
        return data  # refused where labels are checked, and only if such classes have boxes
    listed = list(zip(data.ids, data.classes, strict=True))[:_SHOWN]
    pairs = ", ".join(f"{name} (id {one})" if name else f"id {one}" for one, name in listed)
    note = (
        f"the detector has {known.count} classes, {data.name} {len(data.classes)}, and not both have names: they are "
        f"numbered in the order of their ids: {pairs}{', ...' if len(data.ids) > _SHOWN else ''}"
    )
    return data if note in data.notes else replace(data, notes=(*data.notes, note))


def _match_names(data: Examples, known: Classes) -> list[int] | None:
    """For each class of the data the detector's label of that name, -1 for one not known; None without names."""
    if not known.names or not any(data.classes):
        return None
    labels = dict[str, int]()
    for label, name in known.names.items():
        labels.setdefault(_plain(name), label)
    numbers = [labels.get(_plain(name), labels.get(_plain(_VOC_NAMES.get(name, name)), -1)) for name in data.classes]
    used = sorted({label for target in data.targets for label in target["labels"].tolist()})
    strange = [data.classes[label] for label in used if label < len(numbers) and numbers[label] < 0]
    if not strange:
        return numbers
    if not known.stated and len(strange) == len(used):
        return None  # another detector of as many classes as COCO's
    listed = ", ".join(map(repr, strange[:_SHOWN])) + (", ..." if len(strange) > _SHOWN else "")
    some = ", ".join(list(known.names.values())[:_SHOWN])
    source = (
        f"the detector knows {len(known.names)} others ({some}, ...): leave such boxes out, or give a detector of these"
        if known.stated
        else "a detector of torchvision with 91 classes is taken to know COCO's: leave such boxes out, or say its own "
        "in the attribute `categories`, a list with the background"
    )
    raise DataError(f"{data.name} has boxes of {listed}, and {source}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _renumber(data: Examples, numbers: Sequence[int], known: Classes, names: Sequence[str], how: str) -> Examples:
    """`data` with label i as `numbers[i]`, and classes called `names`."""
    found = zip(data.classes, numbers, strict=True)
    pairs = [f"{name} {number + known.first}".strip() for name, number in found if number >= 0]
    if all(number in (-1, label) for label, number in enumerate(numbers)):
        return replace(data, ids=())
    table = torch.tensor(numbers, dtype=torch.long)
    targets = boxes.renumber(data.targets, table)
    shown = ", ".join(pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    note = f"classes of {data.name} have the detector's own numbers, {how}: {shown}{more}"
    return replace(data, targets=targets, classes=tuple(names), ids=(), notes=(*data.notes, note))
