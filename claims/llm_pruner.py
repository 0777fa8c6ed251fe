"""LLM-Pruner (Ma, Fang and Wang): coupled groups by the gradient of the loss, on a small Llama of Brown."""

from __future__ import annotations

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled

OPTIONS = {"length": language.LENGTH, "train_length": language.LENGTH, "train_batch": language.BATCH}
SETUP = "Llamas of 4 layers, width 64, trained on Brown from weights of their own; params=80%"
SEEDS = range(5)


def loss(seed: int, *, steps: int = 0, **options: object) -> float:
    """Held-out loss of the recipe's student."""
    how = {**OPTIONS, "steps": steps, "seed": seed, **options}
    return language.held_out(
        prune("llm_pruner", language.narrow(seed), language.training(), "params=80%", **how).subject
    )


@claim(
    question="Before recovery, do groups by first-order Taylor lose less than by L2 norm, and than random groups?",
    setup=f"{SETUP}; gradients of 10 windows; loss on held-out Brown",
    measure="loss",
    unit="nats",
    better="lower",
    ours="taylor",
    baselines=["l2", "random"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {score: loss(seed, score=score) for score in ("taylor", "l2", "random")}


@claim(
    question="Before recovery, is it better to keep the first and the last layer whole?",
    setup=f"{SETUP}; first=1, last=1 or first=0, last=0; loss on held-out Brown",
    measure="loss",
    unit="nats",
    better="lower",
    ours="ends whole",
    baselines=["all alike"],
    seeds=SEEDS,
)
def ends(seed: int) -> Figures:
    return {"ends whole": loss(seed, first=1, last=1), "all alike": loss(seed, first=0, last=0)}


@claim(
    question="After recovery in 100 steps, are groups by Taylor still better than random ones?",
    setup=f"{SETUP}; 100 steps of 8 x 64 tokens; loss on held-out Brown",
    measure="loss",
    unit="nats",
    better="lower",
    ours="taylor",
    baselines=["random"],
    seeds=SEEDS,
)
def recovered(seed: int) -> Figures:
    steps = scaled(100, 4)
    return {score: loss(seed, steps=steps, lr=2e-3, score=score) for score in ("taylor", "random")}
