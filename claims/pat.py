"""PAT (Liu et al.): pruning while tuning, on small Llamas of Brown that learn to end sentences."""

from __future__ import annotations

import functools
from dataclasses import replace
from statistics import median

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.recover.training import objectives
from secateur.subjects import Transformer
from secateur.subjects.transformer.rotated import fold_norms
from secateur.vocabulary import Result

KEPT, BUDGET = 48, "flops=85%"
"""Of 64 channels, and what that is within."""
STEPS = scaled(450, 12)
OPTIONS = {
    "length": language.LENGTH,
    "train_batch": language.BATCH,
    "steps": STEPS,
    "lr": 3e-3,
    "rank": 4,
    "identity": 0.1,
    "settled": 0.2,
    "lora_rank": 8,
    "alpha": 8.0,
    "channels": KEPT,
}
LLAMAS = "Llamas of 4 layers, width 64, trained on Brown from weights of their own"
TASK = "the second half of a Brown sentence is the answer to its first, and answers alone are learned"
SETUP = (
    f"{LLAMAS}; {TASK}; 450 steps of 8; 16 of 64 channels go, the mask settles at a fifth of the steps, the identity "
    "loss weighs 0.1; loss on answers of held-out Brown"
)
SEEDS = range(3)


@functools.cache
def halves(held: bool) -> Corpus:
    """Brown sentences as questions and answers."""
    rows = []
    for text in language.split()[held].texts:
        words = text.split(" ")
        half = len(words) // 2
        rows.append({"prompt": " ".join(words[:half]), "completion": " " + " ".join(words[half:])})
    return replace(texts.read(rows), completion_only=True).render(language.tokenizer())


def tuned(seed: int, **options: object) -> Result:
    """What the recipe gives for the seed's own model."""
    return prune("pat", language.narrow(seed), halves(False), BUDGET, **{**OPTIONS, "seed": seed, **options})


def sliced(seed: int, trained: int) -> Transformer:
    """SliceGPT to as many channels, then LoRA of as many parameters, to the last rank."""
    start = language.narrow(seed)
    folded = fold_norms(start)
    flops = folded.price([KEPT] * len(folded.stream), length=language.LENGTH)["flops"]
    # Of rank 1 a linear has inputs and outputs; those on the residual connections are among them.
    layer = (KEPT + 64) + 2 * (KEPT + 32) + (64 + KEPT) + 3 * (KEPT + 192) + 2 * (KEPT + KEPT)
    how = {key: OPTIONS[key] for key in ("length", "train_batch", "steps", "lr")}
    how |= {"train_length": language.LENGTH, "seed": seed, "task": 1.0, "logit": 0.0}
    settings = f"lora={trained // (4 * layer)},clip=0.3,weight_decay=0,warmup=0.05,schedule=cosine"
    return prune("slicegpt", start, halves(False), f"flops={flops:.0f}", training=settings, **how).subject


def loss(student: Transformer) -> float:
    """Nats per token of the answers in held-out Brown."""
    items = texts.batches(
        halves(True), student.tokenizer, packed=True, batch=language.BATCH, length=language.LENGTH, seed=0
    ).take(scaled(24, 4))
    return objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=items)


@claim(
    question="At equal trained parameters and steps, is PAT better than pruning before LoRA, and than after it?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="PAT",
    baselines=["channels by norm, then LoRA", "SliceGPT, then LoRA", "LoRA, then channels by norm"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    ours = tuned(seed)
    assert ours.recovery is not None
    trained = int(ours.recovery.settings["trained_parameters"])
    return {
        "PAT": loss(ours.subject),
        "channels by norm, then LoRA": loss(tuned(seed, order="prune-first").subject),
        "SliceGPT, then LoRA": loss(sliced(seed, trained)),
        "LoRA, then channels by norm": loss(tuned(seed, order="tune-first").subject),
    }


@claim(
    question="Is a mask that is trained better than a fixed one, and is the identity loss worth having?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="trained",
    baselines=["fixed", "no identity loss"],
    seeds=SEEDS,
)
def mask(seed: int) -> Figures:
    return {
        "trained": loss(tuned(seed).subject),
        "fixed": loss(tuned(seed, mask="last").subject),
        "no identity loss": loss(tuned(seed, identity=0.0).subject),
    }


@claim(
    question="Does a step take less than 1.5 times as long as one of LoRA with as many trained parameters?",
    setup=f"{LLAMAS}; 40 steps of 8 x 64 tokens in turns, five times, one thread; the median of the five ratios",
    measure="times LoRA's step",
    unit="x",
    better="lower",
    ours="PAT",
    baselines=["1.5 times"],
    seeds=SEEDS,
)
def cost(seed: int) -> Figures:
    ratios = []
    for _ in range(5):
        ours, theirs = (tuned(seed, steps=scaled(40, 4), order=order) for order in ("joint", "tune-first"))
        assert ours.recovery is not None
        assert theirs.recovery is not None
        ratios.append(ours.recovery.seconds / theirs.recovery.seconds)
    return {"PAT": median(ratios), "1.5 times": 1.5}
