"""ND loss (Wang et al.): norm and direction of features, on a convolutional teacher of digits and a small student."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

import small_vision
from claims._lab import networks
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.subjects import open_traced
from secateur.subjects.network.traced import Traced

TRAIN, BATCH, STEPS, LR = 400, 64, scaled(400, 6), 0.1
ND = {"labels": 2.0, "KD": 0.5}
"""Weights of ND, and of what stands in its place, on each host: tuned on other seeds, as the paper tunes each pair."""
ARMS: dict[str, dict[str, Any]] = {
    "labels": {"host": "none", "nd": 0.0},
    "labels + cosine": {"host": "none", "variant": "direction", "nd": ND["labels"]},
    "labels + ND": {"host": "none", "nd": ND["labels"]},
    "KD": {"nd": 0.0},
    "KD + cosine": {"variant": "direction", "nd": ND["KD"]},
    "KD + ND": {"nd": ND["KD"]},
}
SETUP = (
    "400 of scikit-learn's digits to train, 1,397 to test, split anew for each seed; teacher of convolutions of 16, 32 "
    "and 64 channels; student of 2 inner channels whose feature is as wide, from scratch, 400 steps of 64"
)
SEEDS = range(6)


@functools.cache
def data(seed: int) -> tuple[Examples, Examples]:
    """Digits, split anew."""
    return networks.digits(TRAIN, seed)


@functools.cache
def teacher(seed: int) -> Traced:
    """Trained for 30 epochs."""
    network = small_vision.vgg((16, "M", 32, "M", 64), seed=seed)
    networks.trained("nd", network, data(seed)[0], epochs=30, batch=BATCH, lr=0.1, seed=seed)
    return open_traced(network, data(seed)[0].inputs[:2], prove=False)


@functools.cache
def student(seed: int, arm: str) -> nn.Module:
    """The student of one arm, by the recipe."""
    epochs = STEPS / (TRAIN // BATCH)
    how = {"batch": BATCH, "epochs": epochs, "warmup": epochs / 12, "lr": LR, "seed": seed, **ARMS[arm]}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "student.py")
        built = f"small_vision.vgg((2, 'M', 64), seed={seed})"
        file.write_text(f"import small_vision\n\n\ndef build():\n    return {built}\n", "utf-8")
        made = prune("nd_loss", teacher(seed), data(seed)[0], "params=500K", student=f"{file}:build", **how)
    return made.subject.model.eval()


def accuracies(seed: int, *arms: str) -> dict[str, float]:
    """On held-out digits, in percent."""
    return {arm: networks.accuracy(student(seed, arm), data(seed)[1]) for arm in arms}


@claim(
    question="Is KD with ND more accurate than KD, and KD than labels alone?",
    setup=SETUP,
    measure="accuracy",
    unit="%",
    better="higher",
    pairs=[("KD + ND", "KD"), ("KD", "labels")],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return accuracies(seed, "KD + ND", "KD", "KD + cosine", "labels")


@claim(
    question="On labels alone, does the cosine improve accuracy, and ND at least as much?",
    setup=SETUP,
    measure="accuracy",
    unit="%",
    better="higher",
    pairs=[("labels + cosine", "labels"), ("labels + ND", "labels + cosine")],
    seeds=SEEDS,
)
def labels(seed: int) -> Figures:
    return accuracies(seed, "labels + ND", "labels + cosine", "labels")


@claim(
    question="Are features of held-out digits longer with ND than without, on KD?",
    setup=SETUP,
    measure="norm",
    better="higher",
    ours="KD + ND",
    baselines=["KD", "KD + cosine"],
    seeds=SEEDS,
)
def norms(seed: int) -> Figures:
    figures = {}
    for arm in ("KD + ND", "KD + cosine", "KD"):
        network = student(seed, arm)
        assert isinstance(network, nn.Sequential)
        figures[arm] = float(network[:-1](data(seed)[1].inputs).detach().norm(dim=1).mean())
    return figures
