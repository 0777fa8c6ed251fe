"""What a report shows of a result beside its figures: each class before and after, and sample images with answers."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from secateur._utils.disk import atomic_write

__all__ = [
    "PICTURE",
    "ClassRow",
    "Details",
    "Pixels",
    "Sample",
    "draw_boxes",
    "encode",
    "overlay_mask",
    "read",
    "write",
]

Pixels: TypeAlias = NDArray[np.uint8]
"""[H, W, 3]."""

PICTURE = "data:image/jpeg;base64,"
"""How a picture begins."""
_FORMAT = 1
_SIDE = 240
"""Longer side of a picture in a report, in pixels."""
_MOST_BYTES = 24_000
"""Of one picture; a report of six samples of three stays below half a megabyte."""

_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Of classes, told apart by the colour-blind too (Okabe and Ito)."""


@dataclass(frozen=True)
class ClassRow:
    """One class: the measure of the original and of the result, and how many examples, boxes or images have it."""

    name: str
    before: float | None
    after: float | None
    count: int


@dataclass(frozen=True)
class Sample:
    """One image: its name, and pictures of it with a word on each, as data URIs."""

    name: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Details:
    """What is shown of one result.

    measure: of the rows, as `display.measure` knows it; counted: what their counts are of; sides: the two compared.
    """

    measure: str = ""
    counted: str = "examples"
    sides: tuple[str, str] = ("before", "after")
    classes: tuple[ClassRow, ...] = ()
    samples: tuple[Sample, ...] = ()


def write(path: Path, results: Mapping[str, Details]) -> None:
    """Write the details of results by their targets, whole or not at all."""
    rows = {target: asdict(details) for target, details in results.items()}
    atomic_write(path, json.dumps({"format": _FORMAT, "results": rows}, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Details]:
    """What `write` wrote; nothing where there is no such file, or one that can't be read: a report does without."""
    try:
        rows = json.loads(path.read_text("utf-8"))["results"]
        return {target: _from_dict(row) for target, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
        return {}


def _from_dict(row: Mapping[str, object]) -> Details:
    classes, samples, sides = row["classes"], row["samples"], row["sides"]
    assert isinstance(classes, list)
    assert isinstance(samples, list)
    assert isinstance(sides, list)
    return Details(
        str(row["measure"]),
        str(row["counted"]),
        (str(sides[0]), str(sides[1])),
        tuple(ClassRow(**one) for one in classes),
        tuple(Sample(one["name"], tuple((label, uri) for label, uri in one["pictures"])) for one in samples),
    )


# ----------------------------------------------------------------------------------------------------------- drawing


def encode(pixels: Pixels) -> str:
    """A picture as a data URI: JPEG, at most 240 pixels a side, and of few bytes."""
    image = Image.fromarray(pixels)
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE))
    elif max(image.size) < _SIDE // 2:  # digits and their like
        scale = _SIDE // (2 * max(image.size)) + 1
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _MOST_BYTES:
            break
    return PICTURE + base64.b64encode(buffer.getvalue()).decode("ascii")


def draw_boxes(pixels: Pixels, boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Pixels:
    """The picture with a frame around each box (x1, y1, x2, y2), in the colour of its class."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 120))
    for box, label in zip(boxes, labels, strict=True):
        corners = [float(number) for number in box]
        if all(map(math.isfinite, corners)) and corners[2] > corners[0] and corners[3] > corners[1]:
            draw.rectangle(corners, outline=_COLOURS[label % len(_COLOURS)], width=width)
    return np.asarray(image)


def overlay_mask(pixels: Pixels, mask: NDArray[np.int64]) -> Pixels:
    """The picture [H, W, 3] with each class above 0 of a mask in a colour over it; below 0 nothing counts.

    mask: [h, w]; where its sides are others, the nearest of its places is taken.
    """
    rows, columns = (
        (2 * np.arange(side) + 1) * own // (2 * side) for side, own in zip(pixels.shape, mask.shape, strict=False)
    )
    mask = mask[rows[:, None], columns]
    painted = pixels.astype(np.float64)
    for label in np.unique(mask[mask > 0]).tolist():
        there = mask == label
        painted[there] = 0.45 * painted[there] + 0.55 * np.array(_COLOURS[(label - 1) % len(_COLOURS)])
    return painted.round().astype(np.uint8)
