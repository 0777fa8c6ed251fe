"""Group channel pruning with spatial attention distilling, at small scale: a small YOLO on scenes of MNIST digits."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from claims._lab import detection
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from claims._lab.small_detectors import compare_precision
from secateur.subjects.network.traced import Traced

SPARSE, LAST = scaled((3.0, 5.5), (1.0, 0.5))
"""Epochs of sparsity training, and of distillation or, alone, of fine-tuning."""
SETUP = f"{detection.SETUP}; one trained detector, a seed draws batches; flops=50%; same batches and rates"
SEEDS = range(3)


@functools.cache
def student(seed: int, **options: Any) -> Traced:
    """The recipe's detector at half of the FLOPs."""
    how = {"sparse_epochs": SPARSE, "finetune_epochs": 0.0, "distil_epochs": LAST, "batch": detection.BATCH, "lr": 3e-3}
    how |= {"rate": 1e-2, "least": 4, "feeders": True, "seed": seed, **options}
    return prune("yolov4_group_sad", detection.trained(), detection.data()[0], "flops=50%", **how).subject


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
def headline(seed: int) -> Figures:
    return compare_precision(student(seed))


@claim(
    question="Is spatial attention distilling better than as many epochs of fine-tuning alone?",
    setup=f"{SETUP}; the same cut",
    measure="AP50",
    better="higher",
    ours="distilled",
    baselines=["fine-tuned alone"],
    seeds=SEEDS,
)
def distillation(seed: int) -> Figures:
    alone = student(seed, finetune_epochs=LAST, distil_epochs=0.0)
    return {
        "distilled": detection.average_precision(student(seed).model),
        "fine-tuned alone": detection.average_precision(alone.model),
    }


@claim(
    question="Does a threshold for each group of layers lose less than one threshold for all?",
    setup=f"{SETUP}; shares of groups by the recipe's scan of four batches",
    measure="AP50",
    better="higher",
    ours="groups",
    baselines=["one threshold"],
    seeds=SEEDS,
    note="in the place of a claim on speed, which claims/yolov8_cwd.py asks of the same detector and budget",
)
def groups(seed: int) -> Figures:
    named = detection.trained().model.named_modules()
    first = next(name for name, module in named if isinstance(module, nn.BatchNorm2d))
    return {
        "groups": detection.average_precision(student(seed).model),
        "one threshold": detection.average_precision(student(seed, groups=(first,)).model),
    }
