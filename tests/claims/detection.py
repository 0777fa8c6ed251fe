"""What the claims about detectors share: scenes, a small YOLO trained on them, short trainings, average precision."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import vision_models
from assets.scenes import scenes
from claims.lab import CACHE
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.measure import detection
from secateur.recover.training import detecting, loop
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced
from yolo import Yolo

SIZE, BATCH = 64, 32
SIDES = (16.0, 24.0)
"""Sides of the squares that tell small from medium from large here: a quarter of the digits each, and half."""


@functools.cache
def data(train: int = 2000, test: int = 400) -> tuple[Examples, Examples]:
    """(train, held out): 1 to 4 digits of 12 to 32 pixels on 64 x 64; held-out scenes show other digits."""
    how: dict[str, Any] = {"size": SIZE, "objects": (1, 4), "sides": (12, 32), "clutter": 3}
    return scenes(train, stop=8000, **how), scenes(test, start=8000, seed=1, **how)


def fit(
    model: Any, steps: int, *, lr: float, seed: int = 0, objective: Any = None, batches: Any = None, **how: Any
) -> None:
    """Train a detector in place on the scenes."""
    feed = examples.batches(data()[0], batch=BATCH, seed=seed) if batches is None else batches
    loop.train(
        model, feed, objective or detecting.press(model.loss), steps=steps, lr=lr, seed=seed, count=examples.count,
        clip=None, weight_decay=5e-4, progress=False, every=10**9, **how,
    )  # fmt: skip


@functools.cache
def taught(steps: int = 1250, lr: float = 6e-3, seed: int = 0, many: int = 2000) -> Traced:
    """The small YOLO, trained on so `many` scenes; kept in the cache of the claims."""
    torch.manual_seed(seed)
    return _kept("yolo", Yolo(), steps, lr, seed, many, BATCH)


@functools.cache
def staged(steps: int = 1500, lr: float = 5e-3, seed: int = 0, many: int = 2000) -> Traced:
    """A Faster R-CNN over a pyramid of 32 channels, trained on so `many` scenes; kept likewise."""
    return _kept("rcnn", detectors.adapt(vision_models.rcnn(32, seed=seed)), steps, lr, seed, many, 16)


def _kept(name: str, net: Any, steps: int, lr: float, seed: int, many: int, batch: int) -> Traced:
    train = data(many)[0]
    made = repr((str(net), train.digest, steps, lr, seed, batch))
    file = CACHE / f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.safetensors"
    if file.exists():
        net.load_state_dict(load_file(file))
    else:
        fit(net, steps, lr=lr, seed=seed, batches=examples.batches(train, batch=batch, seed=seed))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, file)
    return detectors.opened(net.eval(), train.inputs[:1])


def held_out() -> list[Mapping[str, Any]]:
    """The held-out scenes, in batches."""
    part = data()[1]
    return [
        {"inputs": part.inputs[i : i + 100], "targets": part.targets[i : i + 100]} for i in range(0, len(part), 100)
    ]


def ap50(detector: Any) -> float:
    """AP50 on held-out scenes, all points."""
    return detection.all_point(detector.eval().detect, held_out()).value


def sizes(detector: Any) -> dict[str, float]:
    """mAP of small, medium and large boxes, and AP50, by pycocotools."""
    found = detection.average_precision(detector.eval().detect, held_out(), sizes=SIDES)
    return {name: figure.value for name, figure in found.items()}
