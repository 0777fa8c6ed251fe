"""Rethinking the value of pruning (Liu et al.): fresh against inherited weights, on a narrow VGG of noisy MNIST."""

from __future__ import annotations

import functools
from typing import Any

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


@functools.cache
def data() -> tuple[Examples, Examples]:
    """Noisy MNIST, with wrong labels in the part that is learnt from."""
    return networks.mnist(2000, 2000, noise=0.5, flip=0.1, size=14)


@functools.cache
def large(seed: int) -> Traced:
    """The large network, trained on as many examples as the recipe sees, which holds a tenth out."""
    network, _ = initialise.fresh(small_vision.vgg((16, "M", 32, 32, "M", 32, 32)), seed=100 + seed)
    seen = data()[0].split(seed=seed)[0]
    small_vision.fit(network, seen, epochs=EPOCHS, lr=LR, seed=seed, weight_decay=DECAY)
    return open_traced(network.eval(), data()[0].inputs[:2], prove=False)


@functools.cache
def arms(seed: int, budget: str, method: str, scratch: str, finetune: str = "classic") -> dict[str, float]:
    """Arm -> accuracy on rightly labelled digits, in percent, of what the recipe trains in the cut shape."""
    how: dict[str, Any] = {"epochs": EPOCHS, "lr": LR, "weight_decay": DECAY, "seed": seed}
    how |= {"method": method, "scratch": scratch, "finetune": finetune}
    result = prune("rethinking_pruning_value", large(seed), data()[0], budget, **how)
    found = {"fine-tuned": result.subject, **result.beside}
    return {name: networks.accuracy(subject.model, data()[1]) for name, subject in found.items()}


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
    note="all arms are those that the recipe trains",
)
def headline(seed: int) -> Figures:
    classic = arms(seed, "channels=50%", "l1", "both")
    return {
        "Scratch-B": classic["scratch-B"],
        "Scratch-E": classic["scratch-E"],
        "fine-tuned, classic": classic["fine-tuned"],
        "fine-tuned, rewound": arms(seed, "channels=50%", "l1", "none", "rewind")["fine-tuned"],
        "large network": networks.accuracy(large(seed).model, data()[1]),
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
    note="all arms are those that the recipe trains",
)
def weights(seed: int) -> Figures:
    classic = arms(seed, "weights=10%", "unstructured", "E")
    return {
        "fine-tuned, classic": classic["fine-tuned"],
        "Scratch-E": classic["scratch-E"],
        "fine-tuned, rewound": arms(seed, "weights=10%", "unstructured", "none", "rewind")["fine-tuned"],
    }


@claim(
    question="Trained from scratch, is the shape that slimming finds better than equal shares of as many parameters?",
    setup=f"{SETUP}; params=50%; Scratch-E of both shapes",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="slimming's shape",
    baselines=["equal shares"],
    seeds=range(5),
    note="in the place of a claim on training FLOPs, which could not fail: Scratch-B is given no more than there are",
)
def architecture(seed: int) -> Figures:
    return {
        "slimming's shape": arms(seed, "params=50%", "slimming", "E")["scratch-E"],
        "equal shares": arms(seed, "params=50%", "l1", "E")["scratch-E"],
    }
