"""Scenes of MNIST digits, a small YOLO that is trained on them once and kept, and average precision."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from assets.scenes import scenes
from claims._lab import settings, sources
from claims._lab.settings import scaled
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.measure import detection
from secateur.recover.training import detecting, loop
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced
from yolo import Yolo

__all__ = ["BATCH", "SETUP", "average_precision", "data", "trained"]

BATCH = 32
SIDES = (16.0, 24.0)
"""Sides of the squares that tell small from medium from large here: a quarter of the digits each, and half."""
SETUP = "a YOLO of 0.31 M parameters (C2f, SPPF, neck, three scales), scenes of 1 to 4 MNIST digits on 64 x 64 pixels"


@functools.cache
def data(train: int = 2000) -> tuple[Examples, Examples]:
    """(train, held out): 1 to 4 digits of 12 to 32 pixels on 64 x 64; held-out scenes show other digits.

    Scenes of a pilot show digits that judged ones do not.
    """
    how: dict[str, Any] = {"size": 64, "objects": (1, 4), "sides": (12, 32), "clutter": 3}
    held = {"start": scaled(8000, 7000), "stop": scaled(10_000, 8000), "seed": 1}
    return scenes(scaled(train, 96), stop=scaled(8000, 7000), **how), scenes(scaled(400, 32), **held, **how)


@functools.cache
def trained(steps: int = 1250, many: int = 2000) -> Traced:
    """The small YOLO, trained on so `many` scenes; kept by the code that trains it."""
    train, steps = data(many)[0], scaled(steps, 4)
    torch.manual_seed(0)
    network: Any = Yolo()
    made = repr((str(network), train.digest, steps, sources.digest(__name__)))
    file = settings.CACHE / "models" / f"yolo-{hashlib.sha256(made.encode()).hexdigest()[:12]}.safetensors"
    if file.exists():
        network.load_state_dict(load_file(file))
    else:
        loop.train(
            network, examples.batches(train, batch=BATCH, seed=0), detecting.press(network.loss), steps=steps, lr=6e-3,
            seed=0, count=examples.count, clip=None, weight_decay=5e-4, progress=False, every=10**9,
        )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return detectors.open_detector(network.eval(), train.inputs[:1])


def average_precision(detector: Any) -> dict[str, float]:
    """ "mAP", also of small, medium and large boxes, and "AP50", on held-out scenes, by pycocotools."""
    part = data()[1]
    batches: list[Mapping[str, Any]] = [
        {"inputs": part.inputs[i : i + 100], "targets": part.targets[i : i + 100]} for i in range(0, len(part), 100)
    ]
    found = detection.average_precision(detector.eval().detect, batches, sizes=SIDES)
    return {name: float(figure.value) for name, figure in found.items()}
