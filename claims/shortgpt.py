"""ShortGPT (Men et al.) and the angular rule (Gromov et al.): whole layers, on small Llamas of Brown."""

from __future__ import annotations

import numpy as np

from claims._lab import language, timing
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.subjects import Transformer
from secateur.vocabulary import Selection

OPTIONS = {"samples": scaled(128, 16), "length": language.LENGTH, "train_length": language.LENGTH}
SETUP = "Llama of 4 layers, width 64, trained on Brown from weights of its own"
BUDGET = "flops=85%"


def pruned(subject: Transformer, seed: int, budget: str = BUDGET, **options: object) -> Transformer:
    """The recipe's student."""
    return prune("shortgpt", subject, language.training(), budget, **{**OPTIONS, "seed": seed, **options}).subject


def at_random(subject: Transformer, left: int, seed: int) -> Transformer:
    """A copy with `left` layers, any of them."""
    kept = np.random.default_rng(seed).permutation(len(subject.layers()))[:left]
    return subject.cut(Selection({"layers": np.isin(np.arange(len(subject.layers())), kept)}))[0]


@claim(
    question="Without training, does block influence lose less than the deepest layers but the last, and than chance?",
    setup=f"{SETUP}; {BUDGET}; loss on held-out Brown",
    measure="loss",
    unit="nats",
    better="lower",
    ours="influence",
    baselines=["deepest", "random"],
    seeds=range(5),
)
def headline(seed: int) -> Figures:
    subject = language.narrow(seed)
    ours = pruned(subject, seed)
    return {
        "influence": language.held_out(ours),
        "deepest": language.held_out(pruned(subject, seed, rule="deepest")),
        "random": language.held_out(at_random(subject, len(ours.layers()), seed)),
    }


@claim(
    question="Healed for 100 steps, does the angular rule lose less than the deepest layers but the last?",
    setup=f"{SETUP}; {BUDGET}; 100 steps of 8 x 64 tokens; loss on held-out Brown",
    measure="loss",
    unit="nats",
    better="lower",
    ours="angular",
    baselines=["deepest"],
    seeds=range(5),
)
def healed(seed: int) -> Figures:
    subject = language.narrow(seed)
    how = {"steps": scaled(100, 4), "train_batch": language.BATCH, "lr": 2e-3}
    rules = ("angular", "deepest")
    return {rule: language.held_out(pruned(subject, seed, rule=rule, **how)) for rule in rules}


@claim(
    question="Is a model without a third of its layers 1.25 times as fast?",
    setup="Llama of 6 layers, width 128, trained on Brown; 4 layers left; batch 16, 64 tokens, one thread",
    measure="speedup",
    unit="x",
    better="higher",
    ours="4 of 6 layers",
    baselines=["1.25 times"],
    seeds=range(3),
)
def latency(seed: int) -> Figures:
    teacher = language.llama()
    whole = teacher.units(length=language.LENGTH).cost()["flops"]
    layer = whole - teacher.units(length=language.LENGTH).cost({"layers": np.arange(6) < 5})["flops"]
    short = pruned(teacher, seed, f"flops={1 - 2 * layer / whole + 1e-3:.4%}")
    assert len(short.layers()) == 4
    example = teacher.example(16, language.LENGTH)
    faster = timing.speedup(lambda: teacher.forward(example), lambda: short.forward(example))
    return {"4 of 6 layers": faster, "1.25 times": 1.25}
