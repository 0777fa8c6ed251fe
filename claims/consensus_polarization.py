"""Consensus polarization: gates that agree on one sub-network, on small residual networks; one training each."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import small_vision
from claims._lab import networks, timing
from claims._lab.calling import prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.recipes.vision import consensus_polarization as recipe
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Result

EPOCHS = scaled(20, 1)
SETUP = "ResNet of 3 stages x 3 blocks, 1,000 MNIST digits of 10 x 10 with noise 0.5, 20 epochs for each arm"
SEEDS = range(3)


@functools.cache
def data() -> tuple[Examples, Examples]:
    """Noisy MNIST, to train on and to judge on."""
    return networks.mnist(1000, 3000, size=10, noise=0.5)


def network(seed: int) -> nn.Module:
    """With fresh weights."""
    return small_vision.resnet((8, 16, 32), blocks=3, seed=seed)


@functools.cache
def gated(seed: int, **options: float) -> tuple[Result, dict[str, Any]]:
    """(The static network of half of the FLOPs, what the recipe says of its gates)."""
    torch.set_num_threads(1)
    subject = open_traced(network(seed), data()[1].inputs[:1])
    with tempfile.TemporaryDirectory() as folder:
        how = {"epochs": EPOCHS, "seed": seed, **options}
        results = prune_all("consensus_polarization", subject, data()[0], ["flops=50%"], folder=Path(folder), **how)
        (file,) = Path(folder).rglob("gates-*.json")
        return results[0], json.loads(file.read_text("utf-8"))


def dense(seed: int, epochs: float = EPOCHS, l1: float = 0.0, start: nn.Module | None = None) -> nn.Module:
    """Plain training on as many examples as the recipe sees, which holds a tenth out. l1: on the norms' scales."""
    torch.set_num_threads(1)
    model = network(seed) if start is None else start
    scales = [module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    penalty = (lambda: l1 * sum(scale.abs().sum() for scale in scales)) if l1 else None
    small_vision.fit(model, data()[0].split(seed=seed)[0], epochs=epochs, seed=seed, penalty=penalty)
    return model.eval()


def cut(model: nn.Module, by: str, share: float, seed: int) -> nn.Module:
    """`model` without its lowest channels, the same share of each block, at a share of the FLOPs."""
    subject = open_traced(model, data()[1].inputs[:1])
    units = recipe.gate(subject, "channel").units
    modules, draw = dict(subject.model.named_modules()), np.random.default_rng(seed)
    scores = {}
    for site in units.free():
        if by == "norms":
            weight = modules[site.name.removesuffix(".channels")].weight
            scores[site.name] = magnitude.norm(weight, dim=0).numpy()
        elif by == "scales":
            norm = modules[site.name.removesuffix("conv1.channels") + "bn1"]
            scores[site.name] = norm.weight.detach().abs().numpy()
        else:
            scores[site.name] = draw.random(site.count)
    selection = ranking.by_budget(units, scores, f"flops={share:.4%}", scope="local", normalise="l2")
    return subject.cut(selection)[0].model


@claim(
    question="At half of the FLOPs, is one gated training more accurate than a dense one cut afterwards?",
    setup=f"{SETUP}; rivals have the FLOPs that the gates left, and a half point more",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="consensus",
    baselines=["magnitude", "random", "L1 on scales", "magnitude, half of the epochs after"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    result, _ = gated(seed)
    share = result.subject.flops() / open_traced(network(seed), data()[1].inputs[:1]).flops() + 0.005
    half = cut(dense(seed, EPOCHS / 2), "norms", share, seed)
    students = {
        "consensus": result.subject.model,
        "magnitude": cut(dense(seed), "norms", share, seed),
        "random": cut(dense(seed), "chance", share, seed),
        "L1 on scales": cut(dense(seed, l1=1e-3), "scales", share, seed),
        "magnitude, half of the epochs after": dense(seed + 10, EPOCHS / 2, start=half),
        "small from scratch": dense(seed, start=cut(network(seed), "chance", share, seed)),
    }
    return {name: networks.accuracy(student, data()[1]) for name, student in students.items()}


@claim(
    question="Do more gates agree on all inputs with polarization than without?",
    setup=f"{SETUP}; flops=50%",
    measure="unanimous gates",
    better="higher",
    ours="polarized",
    baselines=["not polarized"],
    seeds=SEEDS,
)
def agreement(seed: int) -> Figures:
    return {
        "polarized": float(gated(seed)[1]["unanimous"]),
        "not polarized": float(gated(seed, polarization=0.0)[1]["unanimous"]),
    }


@claim(
    question="Is the static network of half of the FLOPs faster than the dense one?",
    setup="ResNet of 3 stages x 5 blocks, 1,000 digits of 8 x 8, whole branches; batch 64, one thread",
    measure="speedup",
    unit="x",
    better="higher",
    ours="static",
    baselines=["dense"],
    seeds=SEEDS,
)
def latency(seed: int) -> Figures:
    train, judged = networks.digits()
    subject = open_traced(small_vision.resnet((8, 16, 32), blocks=5, seed=seed), judged.inputs[:1])
    how: dict[str, Any] = {"mode": "layer", "epochs": EPOCHS, "seed": seed}
    static = prune_all("consensus_polarization", subject, train, ["flops=50%"], **how)[0].subject.model.eval()
    whole, images = subject.model.eval(), judged.inputs[:64]
    return {"static": timing.speedup(lambda: whole(images), lambda: static(images)), "dense": 1.0}
