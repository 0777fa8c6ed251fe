"""What a report shows of networks on images: each class before and after the cut, and samples with both answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur._utils import devices
from secateur.data.examples import Examples, Ordered
from secateur.data.images import Images
from secateur.measure import detection, segmentation
from secateur.recover.training.objectives import logits as logits_of
from secateur.reports import details
from secateur.reports.details import ClassRow, Details, Pixels, Sample
from secateur.runs.backends import AnyBackend
from secateur.subjects.network.detectors import Detector
from secateur.vocabulary import Subject

__all__ = ["describe"]

_LOOKED_AT = 2000
"""Held-out examples by which classes are told apart: the whole of most data."""
_BOXED = 500
_SAMPLES = 6
_SURE = 0.3
"""Score from which a detected box is drawn."""


def describe(
    backend: AnyBackend,
    pair: tuple[Subject, Subject],
    held_out: object,
    batch: int,
    sides: tuple[str, str] = ("before", "after"),
) -> Details | None:
    """The details of two networks that were measured on examples with classes; None for what has none.

    A report does without them where they can't be had, whatever fails: figures never wait for pictures. sides: what the
    two are called.
    """
    if not isinstance(held_out, Examples) or not (held_out.has_classes or held_out.targets):
        return None
    most = _BOXED if held_out.targets else _LOOKED_AT
    places = np.unique(np.linspace(0, len(held_out) - 1, min(most, len(held_out))).round().astype(np.int64))
    data = held_out.take(places)
    try:
        if data.targets:
            return _describe_boxes(pair, data, batch, sides)
        if data.per_pixel:
            return _describe_masks(backend, pair, data, batch, sides)
        return _describe_classes(backend, pair, data, batch, sides)
    except Exception:
        return None


def _name(data: Examples, label: int) -> str:
    named = data.classes[label] if label < len(data.classes) else ""
    return named or f"class {label}"


def _choose(differ: NDArray[np.bool_]) -> list[int]:
    """Places of the samples: half of them where the two differ, if there are so many, the others where they don't."""
    changed, same = np.flatnonzero(differ), np.flatnonzero(~differ)
    few = _space_evenly(changed, max(_SAMPLES // 2, _SAMPLES - len(same)))
    return [*few, *_space_evenly(same, _SAMPLES - len(few))]


def _space_evenly(places: NDArray[np.int64], most: int) -> list[int]:
    if not len(places) or not most:
        return []
    chosen: list[int] = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), most)).astype(int))].tolist()
    return chosen


# ----------------------------------------------------------------------------------------------- classes of examples


def _describe_classes(
    backend: AnyBackend, pair: Sequence[Subject], data: Examples, batch: int, sides: tuple[str, str]
) -> Details:
    labels = cast(Tensor, data.labels)
    said = []
    with torch.inference_mode():
        for subject in pair:
            parts = [logits_of(backend.forward(subject, part)).argmax(-1).cpu() for part in Ordered(data, batch)]
            said.append(torch.cat(parts))
    rows = []
    for label in torch.unique(labels).tolist():
        own = labels == label
        hits = [float((one[own] == label).float().mean()) for one in said]
        rows.append(ClassRow(_name(data, label), hits[0], hits[1], int(own.sum())))

    def picture(place: int, pixels: Pixels) -> list[tuple[str, str]]:
        words = [_name(data, int(one[place])) for one in said]
        uri = details.encode(pixels)
        answers = "; ".join(f"{side}: {word}" for side, word in zip(sides, words, strict=True))
        return [(f"{_name(data, int(labels[place]))}; {answers}", uri)]

    return Details("accuracy", "examples", sides, tuple(rows), _draw(data, (said[0] != said[1]).numpy(), picture))


# -------------------------------------------------------------------------------------------------- classes of pixels


def _describe_masks(
    backend: AnyBackend, pair: Sequence[Subject], data: Examples, batch: int, sides: tuple[str, str]
) -> Details:
    totals: list[Tensor | None] = [None, None]
    differ, shown = list[bool](), dict[int, list[Tensor]]()
    with torch.inference_mode():
        for part in Ordered(data, batch):
            labels = part["labels"].cpu()
            logits = [logits_of(backend.forward(subject, part)).cpu() for subject in pair]
            said = [segmentation.resize(one, labels.shape[1:]).argmax(1) for one in logits]
            for number, one in enumerate(logits):
                counted, before = segmentation.confusion(one, labels), totals[number]
                totals[number] = counted if before is None else before + counted
            share = (said[0] != said[1]).flatten(1).float().mean(1)
            for row in range(len(labels)):
                if len(shown) < _SAMPLES * 4:
                    shown[len(differ)] = [labels[row], said[0][row], said[1][row]]
                differ.append(bool(share[row] > 0.02))
    before, after = (segmentation.class_ious(cast(Tensor, total)) for total in totals)
    pixels = cast(Tensor, totals[0]).sum(1).tolist()
    rows = [
        ClassRow(_name(data, label), _float_or_none(before[label]), _float_or_none(after[label]), int(pixels[label]))
        for label in range(len(before))
        if not (before[label].isnan() and after[label].isnan())
    ]

    def picture(place: int, image: Pixels) -> list[tuple[str, str]]:
        names = ("labelled", *sides)
        return [
            (name, details.encode(details.overlay_mask(image, mask.numpy())))
            for name, mask in zip(names, shown[place], strict=True)
        ]

    return Details("IoU", "pixels", sides, tuple(rows), _draw(data, np.array(differ)[: len(shown)], picture))


def _float_or_none(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


# -------------------------------------------------------------------------------------------------------------- boxes


def _describe_boxes(pair: Sequence[Subject], data: Examples, batch: int, sides: tuple[str, str]) -> Details:
    true = list[Mapping[str, Tensor]]()
    said = list[dict[str, Tensor]](), list[dict[str, Tensor]]()
    for part in Ordered(data, batch):
        true += part["targets"]
        for found, subject in zip(said, pair, strict=True):
            model = cast(Any, subject).model.eval()
            boxes = cast(Detector, model).detect(devices.move(part["inputs"], model))
            found += [{name: tensor.detach().cpu() for name, tensor in one.items()} for one in boxes]
    before, after = (detection.class_precisions(found, true) for found in said)
    counts = torch.bincount(torch.cat([target["labels"] for target in true])).tolist()
    rows = [ClassRow(_name(data, label), before.get(label), after.get(label), counts[label]) for label in before]
    differ = np.array([_count_sure(one) != _count_sure(other) for one, other in zip(*said, strict=True)])

    def picture(place: int, image: Pixels) -> list[tuple[str, str]]:
        drawn = []
        for name, boxes in zip(("labelled", *sides), (true[place], said[0][place], said[1][place]), strict=True):
            sure = boxes["scores"] >= _SURE if "scores" in boxes else torch.ones(len(boxes["labels"]), dtype=torch.bool)
            framed = details.draw_boxes(image, boxes["boxes"][sure].tolist(), boxes["labels"][sure].tolist())
            drawn.append((name, details.encode(framed)))
        return drawn

    return Details("mAP", "boxes", sides, tuple(rows), _draw(data, differ, picture))


def _count_sure(boxes: Mapping[str, Tensor]) -> int:
    return int((boxes["scores"] >= _SURE).sum())


# ------------------------------------------------------------------------------------------------------------ samples


def _draw(
    data: Examples, differ: NDArray[np.bool_], picture: Callable[[int, Pixels], list[tuple[str, str]]]
) -> tuple[Sample, ...]:
    samples = []
    for place in _choose(differ):
        image = _pixels(data, place)
        if image is None:
            return ()
        name = data.inputs.name(place) if isinstance(data.inputs, Images) else f"example {place}"
        samples.append(Sample(name, tuple(picture(place, image))))
    return tuple(samples)


def _pixels(data: Examples, place: int) -> Pixels | None:
    """The input as the network sees it, as a picture; None for what is none."""
    values = data.inputs[place : place + 1].float()
    if values.dim() != 4 or values.shape[1] not in (1, 3) or max(values.shape[2:]) < 4:
        return None
    values = values[0]
    transform = data.inputs.transform if isinstance(data.inputs, Images) else None
    if transform is not None and len(transform.mean) == len(values):
        mean, std = (torch.tensor(row)[:, None, None] for row in (transform.mean, transform.std))
        values = values * std + mean
    if transform is not None and transform.bgr:
        values = values.flip(0)
    low, high = float(values.min()), float(values.max())
    if low < -0.01 or high > 1.01:  # normalised by whoever made the array
        values = (values - low) / max(high - low, 1e-12)
    pixels = (values.clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())
