"""Data pruning with a teacher (Ben-Baruch et al.): one hidden layer on digits, clean and with a fifth of wrong labels.

Every training takes 400 steps, whatever it sees. Settings were looked at on splits and seeds from 100 on.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from claims._lab import networks
from claims._lab.calling import prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced

SIZE, BATCH, STEPS = 1000, 64, scaled(400, 6)
WRONG = {"clean": 0.0, "noisy": 0.2}
"""Share of redrawn labels."""
SETUP = "digits, 1,000 to train on, one hidden layer of 128, 400 steps for each share, SGD 0.1, tau 4"
SEEDS = range(4)


@functools.cache
def data(kind: str, seed: int) -> tuple[Examples, Examples]:
    """(train, test) of a split of its own for each seed; labels of the test part are never redrawn."""
    train, test = networks.digits(SIZE, seed)
    draw = np.random.default_rng([seed, 7])
    wrong, other = draw.random(len(train)) < WRONG[kind], draw.integers(0, 10, len(train))
    labels = torch.where(torch.from_numpy(wrong), torch.from_numpy(other), train.labels)
    return replace(train, labels=labels), test


def students(teacher: nn.Module, train: Examples, shares: tuple[float, ...], **options: Any) -> list[nn.Module]:
    """The recipe's networks, one for each share of the examples."""
    torch.set_num_threads(1)
    how = {"batch": BATCH, "epochs": STEPS / (len(train) // BATCH), **options}
    budgets = [f"examples={share:.0%}" for share in shares]
    subject = Traced(teacher, Example.of(train.inputs[:1]))
    return [result.subject.model for result in prune_all("kd_data_pruning", subject, train, budgets, **how)]


@functools.cache
def teacher(kind: str, seed: int) -> nn.Module:
    """Trained on all of the data, labels alone."""
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return students(fresh, data(kind, seed)[0], (1.0,), seed=seed, alpha=0.0)[0]


@functools.cache
def accuracies(
    kind: str, seed: int, shares: tuple[float, ...], alpha: float, score: str = "random"
) -> dict[float, float]:
    """Share -> accuracy of a student that starts from other weights than its teacher did."""
    train, test = data(kind, seed)
    made = students(teacher(kind, seed), train, shares, seed=seed + 50, alpha=alpha, score=score)
    return {share: networks.accuracy(student, test) for share, student in zip(shares, made, strict=True)}


FEW = scaled((0.03, 0.1), (0.1, 0.3))
ENDS = (FEW[0], 1.0)


@claim(
    question="Of 3 % and 10 % of the examples, is the teacher alone worth 2 points over labels alone?",
    setup=f"{SETUP}; random examples; clean labels, or a fifth redrawn",
    measure="accuracy",
    unit="%",
    better="higher",
    margin=-2.0,
    pairs=[(f"{kind}, {f:.0%}: teacher alone", f"{kind}, {f:.0%}: labels alone") for kind in WRONG for f in FEW],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {
        f"{kind}, {share:.0%}: {name}": accuracies(kind, seed, FEW, alpha)[share]
        for kind in WRONG
        for share in FEW
        for name, alpha in (("teacher alone", 1.0), ("labels alone", 0.0))
    }


@claim(
    question="With the teacher alone, are random examples as good as the hardest, to a point?",
    setup=f"{SETUP}; classes in balance; 3 %, 10 % and 50 % of the examples",
    measure="accuracy",
    unit="%",
    better="higher",
    margin=1.0,
    pairs=[
        (f"{kind}, {f:.0%}: random", f"{kind}, {f:.0%}: {score}")
        for kind in WRONG
        for f in (*FEW, 0.5)
        for score in ("el2n", "forgetting")
    ],
    seeds=SEEDS,
)
def scores(seed: int) -> Figures:
    return {
        f"{kind}, {share:.0%}: {score}": accuracies(kind, seed, (*FEW, 0.5), 1.0, score)[share]
        for kind in WRONG
        for share in (*FEW, 0.5)
        for score in ("random", "el2n", "forgetting")
    }


@claim(
    question="Is trusting the teacher alone, not half, worth more at 3 % of the examples than at all of them?",
    setup=f"{SETUP}; random examples; clean labels, or a fifth redrawn; alpha of 0, 0.25, 0.5, 0.75 and 1",
    measure="gain of alpha 1 over 0.5",
    unit="%",
    better="higher",
    pairs=[(f"{kind}, 3%", f"{kind}, all") for kind in WRONG],
    seeds=SEEDS,
    note=(
        "in the place of a claim on a random 30 % of the examples (undecided in 0.1: 96.36 % beside 96.64 %), since "
        "the recipe rests on the weight's dependence on the share"
    ),
)
def alpha(seed: int) -> Figures:
    figures: dict[str, dict[str, float]] = {}
    for kind in WRONG:
        reached = {weight: accuracies(kind, seed, ENDS, weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)}
        for share, name in zip(ENDS, ("3%", "all"), strict=True):
            best = max(reached, key=lambda weight: reached[weight][share])
            gain = reached[1.0][share] - reached[0.5][share]
            figures[f"{kind}, {name}"] = {"gain of alpha 1 over 0.5": gain, "best alpha": best}
    return figures
