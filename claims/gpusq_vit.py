"""GPUSQ-ViT (Yu et al.): 2:4 and 8 or 4 bits with mixed distillation, on a small vision transformer of MNIST."""

from __future__ import annotations

import functools
from typing import Any

from claims._lab import networks
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from recipes.vision import nets
from secateur.data.examples import Examples
from secateur.subjects import open_traced
from secateur.subjects.network.traced import Traced

BATCH = 64
EPOCHS, QUANTISE_EPOCHS = scaled((100 / 78, 60 / 78), (1.0, 1.0))
"""100 and 60 steps of 64 of the 5,000 digits."""
SETUP = (
    "ViT of width 64, depth 4, patches of 4 x 4, on 5,000 MNIST digits of 16 x 16, 5,000 others to test; each seed has "
    "a dense network of its own; 100 steps of retraining at 5e-4, 60 of quantisation-aware training at 2e-4"
)
SEEDS = range(3)


@functools.cache
def data() -> tuple[Examples, Examples]:
    """MNIST at 16 x 16."""
    return networks.mnist(5000, 5000, size=16)


@functools.cache
def dense(seed: int) -> Traced:
    """The network after 12 epochs of AdamW."""
    network = nets.vit(seed, size=16, patch=4, dim=64, depth=4, heads=4, classes=10)
    how = {"optimizer": "adamw", "lr": 2e-3, "warmup": 0.1, "weight_decay": 0.05}
    networks.trained("vit", network, data()[0], epochs=12, batch=BATCH, seed=seed, **how)
    return open_traced(network, data()[0].inputs[:2], prove=False)


@functools.cache
def accuracy(seed: int, bits: int, **options: Any) -> float:
    """Of the network at 2:4 and `bits`."""
    how = {"batch": BATCH, "lr": 5e-4, "quantise_lr": 2e-4, "seed": seed, "bits": bits}
    epochs = {"epochs": EPOCHS, "quantise_epochs": QUANTISE_EPOCHS}
    student = prune("gpusq_vit", dense(seed), data()[0], "pattern=2:4", **how, **epochs, **options)
    return networks.accuracy(student.subject.model, data()[1])


LABELS_ALONE = (1.0, 0.0, 0.0)


@claim(
    question="Is the network at 2:4 and 8 bits within one point of the dense one?",
    setup=SETUP,
    measure="accuracy",
    unit="%",
    better="higher",
    margin=1.0,
    ours="2:4 and 8 bits",
    baselines=["dense"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {"2:4 and 8 bits": accuracy(seed, 8), "dense": networks.accuracy(dense(seed).model, data()[1])}


@claim(
    question="At 2:4 and 4 bits, is mixed distillation more accurate than labels alone?",
    setup=SETUP,
    measure="accuracy",
    unit="%",
    better="higher",
    ours="mixed distillation",
    baselines=["labels alone"],
    seeds=SEEDS,
)
def distillation(seed: int) -> Figures:
    return {"mixed distillation": accuracy(seed, 4), "labels alone": accuracy(seed, 4, factors=LABELS_ALONE)}


@claim(
    question="At 2:4 and 8 bits, are images without labels enough, to 2 points?",
    setup=SETUP,
    measure="accuracy",
    unit="%",
    better="higher",
    margin=2.0,
    ours="images alone",
    baselines=["with labels"],
    seeds=SEEDS,
)
def unlabelled(seed: int) -> Figures:
    return {"images alone": accuracy(seed, 8, labels="none"), "with labels": accuracy(seed, 8)}
