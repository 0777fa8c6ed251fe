"""AST (Huang et al.): masks to 2:4 that move while the model is distilled, on small Llamas trained on Brown."""

from __future__ import annotations

import functools
import math

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled

TRAINING = {"steps": scaled(400, 4), "train_batch": scaled(16, 2), "lr": 1e-3, "min_lr": 1e-4}
OPTIONS = {**TRAINING, "calibration": scaled(128, 8), "decay": 1e-2, "length": language.LENGTH}
"""The decay by how masks settle, on a seed of its own (7): against these gradients the published 1e-4 moves little."""
SETUP = (
    "Llamas of 4 layers, width 64, each trained on Brown from weights of its own; pattern=2:4; 400 steps of 16 x 64 "
    "tokens for every trained arm"
)
SEEDS = range(3)


@functools.cache
def perplexity(seed: int, **changes: float | str) -> float:
    """Of AST on held-out Brown. refresh=0 keeps the first mask, which magnitude chose; kd=0 learns from texts alone."""
    how = {**OPTIONS, "seed": seed, **changes}
    student = prune("ast", language.narrow(seed), language.training(), "pattern=2:4", **how)
    return math.exp(language.held_out(student.subject))


def one_shot(recipe: str, seed: int) -> float:
    """Perplexity of a recipe that trains nothing."""
    how = {} if recipe == "magnitude" else {"samples": OPTIONS["calibration"], "length": language.LENGTH, "seed": seed}
    student = prune(recipe, language.narrow(seed), language.training(), "pattern=2:4", **how)
    return math.exp(language.held_out(student.subject))


@claim(
    question="Is a mask that moves better than a fixed one, distilled or trained on the next token, and than one shot?",
    setup=SETUP,
    measure="perplexity",
    better="lower",
    ours="AST",
    baselines=["fixed mask and KD", "fixed mask", "magnitude"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {
        "AST": perplexity(seed),
        "fixed mask and KD": perplexity(seed, refresh=0),
        "fixed mask": perplexity(seed, refresh=0, kd=0.0),
        "magnitude": one_shot("magnitude", seed),
    }


@claim(
    question="Is AST better with distillation than without, at equal steps?",
    setup=SETUP,
    measure="perplexity",
    better="lower",
    ours="with KD",
    baselines=["without KD"],
    seeds=SEEDS,
)
def distillation(seed: int) -> Figures:
    return {"with KD": perplexity(seed), "without KD": perplexity(seed, kd=0.0)}


@claim(
    question="With the published decay, is half of the gap closed that one-shot SparseGPT leaves at 2:4?",
    setup=f"{SETUP}; decay 1e-4, second moment of updates; the baseline is midway between the original and SparseGPT",
    measure="perplexity",
    better="lower",
    ours="AST, published",
    baselines=["midway"],
    seeds=SEEDS,
)
def published(seed: int) -> Figures:
    sparse, dense = one_shot("sparsegpt", seed), math.exp(language.held_out(language.narrow(seed)))
    return {
        "AST, published": perplexity(seed, decay=1e-4, moment="update"),
        "midway": (sparse + dense) / 2,
        "SparseGPT": sparse,
        "dense": dense,
    }
