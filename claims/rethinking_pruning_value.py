"""Rethinking the value of pruning (Liu et al.): fresh against inherited weights, on a narrow VGG of noisy MNIST."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

import small_vision
from claims._lab import networks
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.recover.training import initialise
from secateur.subjects import open_traced
from secateur.subjects.network.traced import Traced

EPOCHS, LR, DECAY = scaled(12, 1), 0.05, 1e-4
SETUP = (
    "VGG 16-M-32-32-M-32-32 with batch norm, 2,000 MNIST digits of 14 x 14 with noise and 10 % wrong labels, 2,000 "
    "rightly labelled to test; 12 epochs of SGD from 0.05; each seed has a large network of its own"
)
NAME = "rethinking_pruning_value"


@functools.cache
def data() -> tuple[Examples, Examples]:
    """Noisy MNIST, with wrong labels in the part that is learnt from."""
    return networks.mnist(2000, 2000, noise=0.5, flip=0.1, size=14)


def fit(model: nn.Module, seed: int, epochs: float = EPOCHS) -> nn.Module:
    """Plain SGD on as many examples as the recipe sees, which holds a tenth out."""
    small_vision.fit(model, data()[0].split(seed=seed)[0], epochs=epochs, lr=LR, seed=seed, weight_decay=DECAY)
    return model.eval()


@functools.cache
def large(seed: int) -> Traced:
    """The large network, trained."""
    network, _ = initialise.fresh(small_vision.vgg((16, "M", 32, 32, "M", 32, 32)), seed=100 + seed)
    return open_traced(fit(network, seed), data()[0].inputs[:2], prove=False)


def inherited(seed: int, budget: str, method: str, finetune: str, **options: Any) -> Traced:
    """The recipe's network: pruned and fine-tuned."""
    how = {"epochs": EPOCHS, "lr": LR, "weight_decay": DECAY, "seed": seed, "scratch": "none", **options}
    return prune(NAME, large(seed), data()[0], budget, method=method, finetune=finetune, **how).subject


def scratch(like: Traced, seed: int, epochs: float = EPOCHS) -> nn.Module:
    """The same shape with fresh weights, trained."""
    return fit(initialise.fresh(like.model, seed=seed)[0], seed, epochs)


def accuracy(model: nn.Module) -> float:
    """On rightly labelled digits, in percent."""
    return networks.accuracy(model, data()[1])


@claim(
    question="Is the cut shape, trained from scratch for as many FLOPs, no worse than fine-tuning, to 0.3 points?",
    setup=f"{SETUP}; channels=50% by L1; fine-tuning 3 epochs at 0.0005 (classic)",
    measure="accuracy",
    unit="%",
    better="higher",
    margin=0.3,
    ours="Scratch-B",
    baselines=["fine-tuned, classic"],
    seeds=range(5),
)
def headline(seed: int) -> Figures:
    tuned = inherited(seed, "channels=50%", "l1", "classic")
    longer = EPOCHS * large(seed).flops() / tuned.flops()
    return {
        "Scratch-B": accuracy(scratch(tuned, seed, longer)),
        "Scratch-E": accuracy(scratch(tuned, seed)),
        "fine-tuned, classic": accuracy(tuned.model),
        "fine-tuned, rewound": accuracy(inherited(seed, "channels=50%", "l1", "rewind").model),
        "large network": accuracy(large(seed).model),
    }


@claim(
    question="With 10 % of single weights left, does fine-tuning beat the same mask on fresh weights (Scratch-E)?",
    setup=f"{SETUP}; global magnitude; fine-tuning 3 epochs at 0.0005",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="fine-tuned, classic",
    baselines=["Scratch-E"],
    seeds=range(3),
)
def weights(seed: int) -> Figures:
    fresh = open_traced(initialise.fresh(large(seed).model, seed=seed)[0], data()[0].inputs[:2], prove=False)
    tuned = inherited(seed, "weights=10%", "unstructured", "classic")
    for name, parameter in fresh.model.named_parameters():
        mask = dict(tuned.model.named_parameters())[name] != 0
        if parameter.dim() == 4:
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            parameter.data.mul_(mask)
    return {
        "fine-tuned, classic": accuracy(tuned.model),
        "Scratch-E": accuracy(fit(fresh.model, seed)),
        "fine-tuned, rewound": accuracy(inherited(seed, "weights=10%", "unstructured", "rewind").model),
    }


@claim(
    question="Does Scratch-B cost no more training FLOPs than training, pruning and fine-tuning the large network?",
    setup=f"{SETUP}; channels=50% by L1",
    measure="training FLOPs",
    better="lower",
    ours="Scratch-B",
    baselines=["large network and fine-tuning"],
    seeds=range(5),
)
def compute(seed: int) -> Figures:
    tuned = inherited(seed, "channels=50%", "l1", "classic", dry_run=True)
    count = 3 * len(data()[0].split(seed=seed)[0])
    whole, small = large(seed).flops(), tuned.flops()
    return {
        "Scratch-B": float(count * small * int(EPOCHS * whole / small)),
        "large network and fine-tuning": float(count * (whole * EPOCHS + small * EPOCHS / 4)),
    }
