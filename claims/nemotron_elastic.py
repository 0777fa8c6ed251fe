"""Nemotron Elastic (Taghibakhshi et al.): several sizes in one training, on small Llamas of Brown."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


def train(seed: int, *, folder: Path | None = None, **options: Any) -> list[Result]:
    """The recipe's two sizes of the seed's own model, of one training."""
    how = {**OPTIONS, "steps": STEPS, "seed": seed, **options}
    return prune_all("nemotron_elastic", language.narrow(seed), language.training(), BUDGETS, folder=folder, **how)


def lose(results: Sequence[Result]) -> list[float]:
    """Loss of each size on text that no recipe sees."""
    return [language.held_out(result.subject) for result in results]


def slice_sizes(seed: int, folder: Path) -> list[float]:
    """Loss of the sizes that the router in a run's folder chooses, cut out of the sorted original."""
    model = elastic.read(folder / "elastic")
    scores = read_tensors(folder / "work" / "scores.safetensors")
    rival = elastic.make(language.narrow(seed), scores, model.axes, model.measure, model.shares)
    return [language.held_out(rival.cut(model.choose(share))[0]) for share in model.shares[1:]]


def train_apart(seed: int) -> list[float]:
    """Loss of each size by a Minitron of its own, which gets an equal part of the steps."""
    how = {name: OPTIONS[name] for name in ("length", "train_batch", "lr")}
    found = [
        prune(
            "minitron", language.narrow(seed), language.training(), budget, steps=STEPS // len(BUDGETS), seed=seed,
            calibration=OPTIONS["samples"], candidates=scaled(4, 1), short_steps=scaled(10, 0), tolerance=0.1, **how,
        )
        for budget in BUDGETS
    ]  # fmt: skip
    return lose(found)


def means(losses: Mapping[str, Sequence[float]]) -> Figures:
    """Arm -> the mean over its sizes."""
    return {name: sum(values) / len(values) for name, values in losses.items()}


@claim(
    question="Do both sizes of one training lose less than unsorted, untrained or separate ones at as many tokens?",
    setup=f"{SETUP}; 240 steps for both sizes and the whole model; random ranking: the same training of an original "
    "whose units and layers are sorted at random; sliced: what the router chose, cut out of the sorted original; "
    "separate: a Minitron of 120 steps for each size, the search of its shape not counted",
    measure="loss",
    unit="nats",
    better="lower",
    ours="elastic",
    baselines=["random ranking", "sliced", "separate"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as place:
        losses = {"elastic": lose(train(seed, folder=Path(place))), "sliced": slice_sizes(seed, Path(place))}
    losses["random ranking"] = lose(train(seed, ranking="random"))
    return means({**losses, "separate": train_apart(seed)})


@claim(
    question="Do both sizes lose less by the frozen original's predictions than by the next token alone?",
    setup=f"{SETUP}; 240 steps for both sizes and the whole model; next token: task=1, logit=0",
    measure="loss",
    unit="nats",
    better="lower",
    ours="distilled",
    baselines=["next token"],
    seeds=SEEDS,
)
def distillation(seed: int) -> Figures:
    return means({"distilled": lose(train(seed)), "next token": lose(train(seed, task=1.0, logit=0.0))})


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
