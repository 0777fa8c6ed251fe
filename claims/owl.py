"""OWL (Yin et al.): a share of weights per layer by its outliers, on small Llamas trained on Brown."""

from __future__ import annotations

import functools

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled

SETUP = (
    "five Llamas of 4 layers, width 64, trained on Brown from weights of their own; 128 windows of 64 tokens; loss on "
    "held-out Brown"
)
SEEDS = range(5)


@functools.cache
def loss(recipe: str, budget: str, seed: int, **options: str) -> float:
    """Held-out loss after pruning."""
    how = {"samples": scaled(128, 8), "length": language.LENGTH, "seed": seed, **options}
    return language.held_out(prune(recipe, language.narrow(seed), language.training(), budget, **how).subject)


@claim(
    question="With 30 % of the weights left, does Wanda lose less with shares by outliers than with one share for all?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="OWL",
    baselines=["one share"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {"OWL": loss("owl", "weights=30%", seed), "one share": loss("wanda", "weights=30%", seed)}


@claim(
    question="Do shares by outliers help SparseGPT as well?",
    setup=f"{SETUP}; weights=30%",
    measure="loss",
    unit="nats",
    better="lower",
    ours="OWL",
    baselines=["one share"],
    seeds=SEEDS,
)
def sparsegpt(seed: int) -> Figures:
    return {
        "OWL": loss("owl", "weights=30%", seed, method="sparsegpt"),
        "one share": loss("sparsegpt", "weights=30%", seed),
    }


@claim(
    question="Do mixed patterns n:8 by outliers lose less than 3:8 in every layer?",
    setup=f"{SETUP}; pattern=3:8, Wanda",
    measure="loss",
    unit="nats",
    better="lower",
    ours="OWL",
    baselines=["one pattern"],
    seeds=SEEDS,
)
def pattern(seed: int) -> Figures:
    return {"OWL": loss("owl", "pattern=3:8", seed), "one pattern": loss("wanda", "pattern=3:8", seed)}
