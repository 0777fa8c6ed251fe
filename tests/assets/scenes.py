"""Scenes for detectors, composed of handwritten digits: several per image, at several sizes, with clutter between."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from assets import packages
from secateur.data.examples import Examples
from secateur.errors import InputError

__all__ = ["scenes"]


def scenes(
    count: int,
    *,
    size: int = 96,
    objects: tuple[int, int] = (1, 4),
    sides: tuple[int, int] = (14, 40),
    channels: int = 3,
    clutter: int = 6,
    seed: int = 0,
    start: int = 0,
    stop: int = 10_000,
) -> Examples:
    """`count` images [channels, size, size] with `objects` digits of MNIST, and the box and class (0 to 9) of each.

    sides: least and largest height of a digit in pixels, drawn evenly on a logarithmic scale; clutter: pieces of
    digits, without a box, per image; start, stop: which of the shuffled 10,000 digits may appear, so that held-out
    scenes show digits never seen. Aerial-like scenes: objects=(10, 24), sides=(8, 20).

    Boxes overlap by a tenth of the smaller at most; where no room is left, an image has fewer objects.
    """
    if not 0 < objects[0] <= objects[1] or not 4 <= sides[0] <= sides[1] < size or not 0 <= start < stop:
        raise InputError(
            f"objects={objects}, sides={sides}, digits {start} to {stop}: give rising pairs, sides below size={size}"
        )
    images, classes = packages.mnist()
    shuffled = np.random.default_rng(0).permutation(len(images))[start:stop]
    draw = np.random.default_rng([seed, count, size])
    inputs = torch.empty(count, channels, size, size)
    targets = []
    for number in range(count):
        canvas, boxes, labels = _scene(draw, images, classes, shuffled, size, objects, sides, clutter)
        tints = torch.from_numpy(draw.uniform(0.6, 1.0, channels).astype(np.float32))
        inputs[number] = canvas * tints[:, None, None]
        targets.append({"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)})
    inputs += 0.05 * torch.from_numpy(draw.standard_normal(inputs.shape, np.float32))
    return Examples(inputs.clamp_(0, 1), None, tuple(targets), tuple(map(str, range(10))), "scenes")


def _scene(
    draw: np.random.Generator,
    images: NDArray[np.uint8],
    classes: NDArray[np.int64],
    allowed: NDArray[np.int64],
    size: int,
    objects: tuple[int, int],
    sides: tuple[int, int],
    clutter: int,
) -> tuple[Tensor, list[list[float]], list[int]]:
    slope = torch.linspace(0, float(draw.uniform(0, 0.3)), size)
    canvas = slope.expand(size, size).clone() if draw.random() < 0.5 else slope[:, None].expand(size, size).clone()
    for _ in range(clutter):
        digit = _digit(images[draw.choice(allowed)], int(draw.integers(10, 24)))
        h, w = (max(2, side // 3) for side in digit.shape)
        y, x = int(draw.integers(0, size - h)), int(draw.integers(0, size - w))
        part = canvas[y : y + h, x : x + w]
        top = int(draw.integers(0, digit.shape[0] - h + 1))
        part.copy_(torch.maximum(part, 0.7 * digit[top : top + h, :w]))
    boxes: list[list[float]] = []
    labels: list[int] = []
    for _ in range(int(draw.integers(objects[0], objects[1] + 1))):
        chosen = draw.choice(allowed)
        digit = _digit(images[chosen], round(float(np.exp(draw.uniform(*np.log(sides))))))
        h, w = digit.shape
        if max(h, w) >= size:
            continue
        for _ in range(20):
            y, x = int(draw.integers(0, size - h + 1)), int(draw.integers(0, size - w + 1))
            box = [float(x), float(y), float(x + w), float(y + h)]
            if all(_shared(box, other) <= 0.1 for other in boxes):
                part = canvas[y : y + h, x : x + w]
                part.copy_(torch.maximum(part, digit))
                boxes.append(box)
                labels.append(int(classes[chosen]))
                break
    return canvas, boxes, labels


def _digit(image: NDArray[np.uint8], side: int) -> Tensor:
    """The digit without its empty margin, [side, w]: scaled to that height."""
    rows, columns = np.flatnonzero(image.max(1) > 50), np.flatnonzero(image.max(0) > 50)
    tight = torch.from_numpy(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).float() / 255
    width = max(2, round(side * tight.shape[1] / tight.shape[0]))
    return functional.interpolate(tight[None, None], (side, width), mode="bilinear", antialias=True)[0, 0]


def _shared(one: list[float], other: list[float]) -> float:
    """Overlap as a share of the smaller box."""
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return max(0.0, w) * max(0.0, h) / smaller
