"""PAT (Liu et al.): pruning while tuning, on small Llamas of Brown that learn to end sentences."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.batches import Numbered
from secateur.data.texts import Corpus
from secateur.recipes.language import pat
from secateur.recover.training import objectives
from secateur.subjects import Transformer
from secateur.subjects.transformer.rotated import fold_norms
from secateur.vocabulary import Budget, Result, Training

KEPT, BUDGET = 48, "flops=85%"
"""Of 64 channels, and what that is within."""
STEPS, RATE = scaled(450, 12), 3e-3
ADAPTERS = pat.Adapters(lora_rank=8, alpha=8.0)
OPTIONS = {
    "length": language.LENGTH,
    "train_batch": language.BATCH,
    "steps": STEPS,
    "lr": RATE,
    "rank": 4,
    "settled": 0.2,
    "lora_rank": ADAPTERS.lora_rank,
    "alpha": ADAPTERS.alpha,
    "channels": KEPT,
}
LLAMAS = "Llamas of 4 layers, width 64, trained on Brown from weights of their own"
TASK = "the second half of a Brown sentence is the answer to its first, and answers alone are learned"
SETUP = (
    f"{LLAMAS}; {TASK}; 450 steps of 8; 16 of 64 channels go, the mask settles at a fifth of the steps; adapters of "
    "every arm have the same scale and dropout; loss on answers of held-out Brown"
)
SEEDS = range(3)
NOTE = "no arm was tuned after the wells of the mask were mended: all have the rate and steps that PAT had before"


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


def sliced(seed: int, trained: int, rate: float = RATE) -> Transformer:
    """SliceGPT to as many channels, then LoRA of as many parameters, to the last rank, by the code that trains ours."""
    start = language.narrow(seed)
    folded = fold_norms(start)
    flops = folded.price([KEPT] * len(folded.stream), length=language.LENGTH)["flops"]
    how = {"length": language.LENGTH, "train_length": language.LENGTH, "seed": seed}
    student: Transformer = prune("slicegpt", start, halves(False), f"flops={flops:.0f}", **how).subject
    adapters = ADAPTERS.widen(trained // pat.count_adapters(student))
    make = functools.partial(texts.batches, tokenizer=student.tokenizer, packed=True, length=language.LENGTH)
    train, held = halves(False).split(seed=seed)
    stream = Numbered(make(train, batch=language.BATCH, seed=seed + 1), STEPS, 1)
    course = Training(steps=STEPS, batch=language.BATCH, lr=rate, warmup=0.05, weight_decay=0.0, clip=0.3)
    with tempfile.TemporaryDirectory() as place, Run.open(Path(place, "run"), {}) as run:
        pat.tune(
            student, None, stream, course, adapters, pat.Weights(), run, Budget.parse(BUDGET),
            held=make(held, batch=1, seed=seed), length=language.LENGTH, seed=seed,
        )  # fmt: skip
    return student


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
    note=NOTE,
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
    question="Is a trained mask better than a fixed one, also by norm, and is the identity loss worth having?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="trained",
    baselines=["fixed last", "fixed by norm", "no identity loss"],
    seeds=SEEDS,
    note=NOTE,
)
def mask(seed: int) -> Figures:
    return {
        "trained": loss(tuned(seed).subject),
        "fixed last": loss(tuned(seed, mask="last").subject),
        "fixed by norm": loss(tuned(seed, mask="norm").subject),
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
