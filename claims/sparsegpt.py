"""SparseGPT (Frantar and Alistarh): weights removed one by one with corrections, on small Llamas trained on Brown."""

from __future__ import annotations

import torch

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.score import obs
from secateur.subjects import Transformer
from secateur.subjects.matrices import matrices

SETUP = (
    "five Llamas of 4 layers, width 64, trained on Brown from weights of their own; 128 windows of 64 tokens; loss on "
    "held-out Brown"
)
SEEDS = range(5)
RIVALS = ("Wanda", "magnitude", "random")


def pruned(recipe: str, subject: Transformer, budget: str, seed: int, **options: int) -> Transformer:
    """The model after pruning, calibrated on the training part of Brown."""
    how = {"samples": scaled(128, 8), "length": language.LENGTH, "seed": seed, **options}
    return prune(recipe, subject, language.training(), budget, **({} if recipe == "magnitude" else how)).subject


def against_others(budget: str, seed: int) -> Figures:
    """Held-out loss at one budget, of SparseGPT and of its rivals."""
    subject = language.narrow(seed)
    students = {
        "SparseGPT": pruned("sparsegpt", subject, budget, seed),
        "Wanda": pruned("wanda", subject, budget, seed),
        "magnitude": pruned("magnitude", subject, budget, seed),
        "random": language.masked_at_random(subject, budget, seed),
        "dense": subject,
    }
    return {name: language.held_out(student) for name, student in students.items()}


@claim(
    question="At half of the weights, does SparseGPT lose less than Wanda, magnitude and random weights?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="SparseGPT",
    baselines=RIVALS,
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return against_others("weights=50%", seed)


@claim(
    question="Do half of the weights and 4 bits at once lose less than 4 bits after pruning?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="at once",
    baselines=["pruned, then rounded"],
    seeds=SEEDS,
)
def joint(seed: int) -> Figures:
    subject = language.narrow(seed)
    once = pruned("sparsegpt", subject, "weights=50%", seed, bits=4)
    later = pruned("sparsegpt", subject, "weights=50%", seed)
    for matrix in matrices(later.model, later.layers()).values():
        round_to_grid = obs.grid(matrix.weight, 4)
        matrix.weight.data.copy_(torch.stack([round_to_grid(column) for column in matrix.weight.T], 1))
    return {"at once": language.held_out(once), "pruned, then rounded": language.held_out(later)}


@claim(
    question="At 2:4, which hardware speeds up, does SparseGPT lose less than Wanda, magnitude and random weights?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="SparseGPT",
    baselines=RIVALS,
    seeds=SEEDS,
)
def pattern(seed: int) -> Figures:
    return against_others("pattern=2:4", seed)
