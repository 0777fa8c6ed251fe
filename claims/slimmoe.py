"""SlimMoE (Li et al.): thinner experts in a few prune-distil stages, on a Mixtral of 1.5M parameters of Brown."""

from __future__ import annotations

from typing import Any

from claims._lab import language, timing
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.subjects import Moe

OPTIONS = {"steps": scaled(300, 4), "train_batch": language.BATCH, "length": language.LENGTH, "divisor": 4}
SETUP = (
    "Mixtrals of 4 layers, width 96, 8 experts of 128, two per token, 8 query and 4 KV heads, each trained on Brown "
    "from weights of its own; 300 steps of 8 x 64 tokens, all stages together; loss on held-out Brown"
)
SEEDS = range(3)


def pruned(seed: int, stages: str, **options: Any) -> Moe:
    """The recipe's student, its experts shrunk to these shares of their width."""
    how = {**OPTIONS, "seed": seed, "stages": stages, **options}
    student = prune("slimmoe", language.mixtral(seed), language.training(), "params=95%", **how).subject
    assert isinstance(student, Moe)
    return student


@claim(
    question="Do two stages, to 50 and then 20 % of the experts' width, beat one step at equal tokens?",
    setup=f"{SETUP}; a fifth of the steps in the first stage",
    measure="loss",
    unit="nats",
    better="lower",
    ours="two stages",
    baselines=["one stage"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {
        "two stages": language.held_out(pruned(seed, "50%,20%", tokens="20%,80%")),
        "one stage": language.held_out(pruned(seed, "20%")),
    }


@claim(
    question="After the same distillation, are thin experts better than fewer experts of as many parameters?",
    setup=f"{SETUP}; a quarter of the width of 8 experts, or 2 of 8 experts",
    measure="loss",
    unit="nats",
    better="lower",
    ours="thin experts",
    baselines=["fewer experts"],
    seeds=SEEDS,
)
def experts(seed: int) -> Figures:
    return {
        "thin experts": language.held_out(pruned(seed, "25%")),
        "fewer experts": language.held_out(pruned(seed, "25%", slim="experts")),
    }


@claim(
    question="Is a forward pass faster with a quarter of the experts' width?",
    setup="Mixtral of 4 layers, width 96, 8 experts of 128, two per token; 16 x 64 tokens on one thread",
    measure="speedup",
    unit="x",
    better="higher",
    ours="slim",
    baselines=["original"],
    seeds=SEEDS,
)
def latency(seed: int) -> Figures:
    teacher, slim = language.mixtral(seed), pruned(seed, "25%", dry_run=True)
    example = teacher.example(16, language.LENGTH)
    faster = timing.speedup(lambda: teacher.forward(example), lambda: slim.forward(example))
    return {"slim": faster, "original": 1.0}
