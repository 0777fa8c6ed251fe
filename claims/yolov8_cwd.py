"""YOLOv8 with channel-wise distillation, at small scale: a YOLO of 0.3 million parameters on scenes of MNIST digits."""

from __future__ import annotations

import functools
from typing import Any

from claims._lab import detection
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from claims._lab.small_detectors import compare_precision, compare_speed
from secateur.subjects.network.traced import Traced

EPOCHS = scaled((3.0, 1.5, 4.5), (1.0, 0.5, 0.5))
SETUP = f"{detection.SETUP}; one trained detector, a seed draws batches; flops=50%; same cut, batches and rates"
SEEDS = range(3)


@functools.cache
def student(seed: int, **options: Any) -> Traced:
    """The recipe's detector at half of the FLOPs."""
    how = dict(zip(("sparse_epochs", "finetune_epochs", "distil_epochs"), EPOCHS, strict=True))
    how |= {"batch": detection.BATCH, "lr": 6e-3, "rate": 1e-2, "least": 4, "seed": seed, **options}
    return prune("yolov8_cwd", detection.trained(), detection.data()[0], "flops=50%", **how).subject


@claim(
    question="Is channel-wise distillation better than as many epochs of fine-tuning alone?",
    setup=SETUP,
    measure="mAP",
    better="higher",
    ours="distilled",
    baselines=["fine-tuned alone"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {
        "distilled": detection.average_precision(student(seed).model),
        "fine-tuned alone": detection.average_precision(student(seed, alpha=0.0).model),
    }


@claim(
    question="At half of the FLOPs, is AP50 within 3 points of the original's?",
    setup=SETUP,
    measure="AP50",
    better="higher",
    margin=0.03,
    ours="distilled",
    baselines=["original"],
    seeds=SEEDS,
)
def accuracy(seed: int) -> Figures:
    return compare_precision(student(seed))


@claim(
    question="Is the detector of half of the FLOPs faster?",
    setup=f"{detection.SETUP}; flops=50%; batch 32, one thread, alternating pairs",
    measure="speedup",
    unit="x",
    better="higher",
    ours="pruned",
    baselines=["original"],
    seeds=SEEDS,
)
def latency(seed: int) -> Figures:
    return compare_speed(student(seed, finetune_epochs=0.0, distil_epochs=0.0))
