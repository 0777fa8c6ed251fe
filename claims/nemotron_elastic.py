"""Nemotron Elastic (Taghibakhshi et al.): several sizes in one training, on small Llamas of Brown."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from claims._lab import language
from claims._lab.calling import prune, prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur._utils.rundir import read_tensors
from secateur.methods import elastic
from secateur.vocabulary import Result

STEPS = scaled(240, 4)
"""Of the one training of all sizes."""
BUDGETS = ("params=80%", "params=60%")
OPTIONS: dict[str, Any] = {
    "length": language.LENGTH,
    "train_batch": language.BATCH,
    "lr": 2e-3,
    "samples": scaled(64, 8),
    "depth_samples": scaled(16, 4),
}
SETUP = (
    "Llamas of 4 layers, width 64, trained on Brown from weights of their own; 80 and 60 % of the parameters; loss on "
    "held-out Brown, the mean of both sizes"
)
SEEDS = range(3)


def train(seed: int, *, folder: Path | None = None) -> list[Result]:
    """The recipe's two sizes of the seed's own model, of one training."""
    parent, how = language.narrow(seed), {**OPTIONS, "steps": STEPS, "seed": seed}
    return prune_all("nemotron_elastic", parent, language.training(), BUDGETS, folder=folder, **how)


def means(losses: Mapping[str, Sequence[float]]) -> Figures:
    """Arm -> the mean over its sizes."""
    return {name: sum(values) / len(values) for name, values in losses.items()}


@claim(
    question="Do both sizes of one training lose less than the same sizes sliced without any?",
    setup=f"{SETUP}; 240 steps for both sizes and the whole model; sliced: what the router chose, cut out of the "
    "sorted original; by chance: of the original sorted at random",
    measure="loss",
    unit="nats",
    better="lower",
    ours="elastic",
    baselines=["sliced", "sliced by chance"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    parent, losses = language.narrow(seed), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as place:
        found = train(seed, folder=Path(place))
        model = elastic.read(Path(place) / "elastic")
        scores = read_tensors(Path(place) / "work" / "scores.safetensors")
    draw = torch.Generator().manual_seed(seed)
    chance = {site: torch.rand(len(score), generator=draw) for site, score in scores.items()}
    rivals = {
        name: elastic.make(parent, ranking, model.axes, model.measure, model.shares)
        for name, ranking in (("sliced", scores), ("sliced by chance", chance))
    }
    for result, share in zip(found, model.shares[1:], strict=True):
        losses.setdefault("elastic", []).append(language.held_out(result.subject))
        for name, rival in rivals.items():
            losses.setdefault(name, []).append(language.held_out(rival.cut(model.choose(share))[0]))
    return means(losses)


@claim(
    question="Are both sizes of one training within 0.05 nats of two Minitrons, each trained for half as many tokens?",
    setup=f"{SETUP}; 240 steps for both sizes and the whole model; separate: 120 steps for each size, the search of "
    "its shape not counted",
    measure="loss",
    unit="nats",
    better="lower",
    ours="elastic",
    baselines=["separate"],
    margin=0.05,
    seeds=SEEDS,
)
def separate(seed: int) -> Figures:
    losses = {"elastic": [language.held_out(result.subject) for result in train(seed)], "separate": []}
    how = {name: OPTIONS[name] for name in ("length", "train_batch", "lr")}
    for budget in BUDGETS:
        student = prune(
            "minitron", language.narrow(seed), language.training(), budget, steps=STEPS // 2, seed=seed,
            calibration=OPTIONS["samples"], candidates=scaled(4, 1), short_steps=scaled(10, 0), tolerance=0.1, **how,
        ).subject  # fmt: skip
        losses["separate"].append(language.held_out(student))
    return means(losses)


@claim(
    question="Without training, does the iterative order of layers lose less than an order by chance, at every depth?",
    setup="Llamas of 4 layers, width 64, trained on Brown from weights of their own; 3 and 2 layers, nothing else cut; "
    "loss on held-out Brown, the mean of both; random: another order for each seed; last: the deepest layers go",
    measure="loss",
    unit="nats",
    better="lower",
    ours="iterative",
    baselines=["random", "last"],
    seeds=range(5),
)
def depth(seed: int) -> Figures:
    parent, data = language.narrow(seed), language.training()
    losses = dict[str, list[float]]()
    for layers in (3, 2):
        shape: dict[str, Any] = {
            "axes": ("layers",),
            "choices": f"layers={layers}",
            "dry_run": True,
            "seed": seed,
            **OPTIONS,
        }
        budget = f"params={parent.units().cost({'layers': np.arange(4) < layers})['params']:.0f}"
        for name, how in (("iterative", "activations"), ("random", "random")):
            student = prune("nemotron_elastic", parent, data, budget, ranking=how, **shape).subject
            losses.setdefault(name, []).append(language.held_out(student))
        last = prune("shortgpt", parent, data, budget, rule="deepest", samples=8, length=language.LENGTH).subject
        losses.setdefault("last", []).append(language.held_out(last))
    return means(losses)
