"""ZipLM (Kurtic et al.): all-MiniLM-L6-v2 cut to a measured speedup, and a small Llama for the training losses."""

from __future__ import annotations

import functools
from typing import Any

from claims._lab import language, timing
from claims._lab.calling import call, prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.studies import baselines
from secateur.subjects import Transformer

STEPS = scaled(200, 2)
MINILM = "all-MiniLM-L6-v2, Brown sentences, drawn anew for each seed; timed at 32 x 64 tokens"
TARGETS = (1.5, 2.0, 3.0)
SEEDS = range(3)
SMALL = scaled({}, {"calibration": 32, "judged": 16})


def speedup(student: Transformer) -> float:
    """Of a forward pass of 32 x 64 tokens."""
    subject = language.minilm()
    example = subject.example(32, language.LENGTH)
    return timing.speedup(lambda: subject.forward(example), lambda: student.forward(example))


@claim(
    question="At twice the speed, is ZipLM's student nearer to MiniLM than half of its layers, or units by magnitude?",
    setup=f"{MINILM}; 200 steps of distillation for each; Spearman of cosines of 1,000 held-out sentences",
    measure="Spearman",
    better="higher",
    ours="ZipLM",
    baselines=["every second layer", "magnitude"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    subject, data = language.minilm(), language.training()
    how: dict[str, Any] = {"steps": STEPS, "trials": scaled(60, 2), **SMALL}
    recovery = {"recovery": {"steps": STEPS}}
    students = {
        "ZipLM": prune_all("ziplm", subject, data, ["speedup=2x"], seed=seed, **how)[0],
        "every second layer": call(baselines.every_second_layer, subject, data, ["speedup=2x"], seed=seed, **recovery)[
            0
        ],
        "magnitude": call(baselines.magnitude, subject, data, ["speedup=2x"], seed=seed, **recovery)[0],
    }
    return {
        name: {"Spearman": language.spearman(result.subject), "speedup": speedup(result.subject)}
        for name, result in students.items()
    }


WAYS = {
    "task, logits and tokens": {"task": 0.5, "logit": 1.0, "token": 0.5},
    "logits alone": {"task": 0.0, "logit": 1.0, "token": 0.0},
    "task alone": {"task": 1.0, "logit": 0.0, "token": 0.0},
}


@claim(
    question="Pruned step by step, does a Llama lose less with task, logits and tokens than with logits or task alone?",
    setup=(
        "one Llama of 6 layers, width 128, trained on Brown, so that the interval is of draws of data, not of models; "
        "params=70%, then 45%; 60 steps of 8 x 64 tokens for each"
    ),
    measure="loss",
    unit="nats",
    better="lower",
    ours="task, logits and tokens",
    baselines=["logits alone", "task alone"],
    seeds=SEEDS,
)
def losses(seed: int) -> Figures:
    how: dict[str, Any] = {
        "seed": seed, "trials": 0, "calibration": scaled(64, 8), "length": language.LENGTH, "steps": scaled(60, 2),
        "train_batch": 8, "train_length": language.LENGTH, "lr": 2e-3,
    }  # fmt: skip
    budgets = ["params=70%", "params=45%"]
    run = functools.partial(prune_all, "ziplm", language.llama(), language.training(), budgets, **how)
    return {name: language.held_out(run(**way)[-1].subject) for name, way in WAYS.items()}


@claim(
    question="Does the clock agree with speedups of 1.5x, 2x and 3x that were asked for, to 7 %?",
    setup=f"{MINILM}; nothing is trained",
    measure="error",
    unit="%",
    better="lower",
    margin=7.0,
    pairs=[(f"{target:g}x", "asked for") for target in TARGETS],
    seeds=SEEDS,
)
def clock(seed: int) -> Figures:
    how: dict[str, Any] = {"trials": scaled(30, 2), "steps": 0, "gradual": False, "seed": seed, **SMALL}
    budgets = [f"speedup={target:g}x" for target in TARGETS]
    results = prune_all("ziplm", language.minilm(), language.training(), budgets, **how)
    errors = {
        f"{target:g}x": 100 * abs(speedup(result.subject) / target - 1)
        for target, result in zip(TARGETS, results, strict=True)
    }
    return {**errors, "asked for": 0.0}
