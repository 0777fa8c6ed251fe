"""Data pruning with a teacher at small scale: one hidden layer on digits, clean and with a fifth of the labels redrawn.

Every training takes 400 steps, whatever it sees. Settings were looked at on splits and seeds from 100 on.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from claims import kinds, lab, vision
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.measure import loyalty
from secateur.recipes.data import kd_data_pruning as recipe
from secateur.studies import ridge
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
NAME = "kd_data_pruning"
SEEDS = (0, 1, 2, 3)
STEPS, BATCH, SIZE, WIDTH = 400, 64, 1000, 128
SHARES = (0.03, 0.1, 0.3, 1.0)
SETUP = f"digits, 1,000 to train on, one hidden layer of {WIDTH}, {STEPS} steps for each share, SGD 0.1, tau 4"
KINDS = {"clean": 0.0, "noisy": 0.2}
TEXTS = {"clean genres": 0.0, "noisy genres": 0.2}
"""Share of redrawn labels, of digits and of Brown's genres."""
BALANCED = (
    "with clean labels and 10 %, EL2N and forgetting, classes in balance, are 0.6 points above random (96.5 and 96.5 "
    "against 95.9 %); at 3 % random is 1.7 and 1.4 points above them, with redrawn labels 2.5 and 2.7"
)
MEMORISED = (
    "at 10 % memorisation, classes in balance, is 0.4 points above random with clean labels (96.3 against 95.9 %) and "
    "0.2 with redrawn ones, less than seeds differ; at 3 % random is 1.4 and 6.8 points above it"
)
SHORT = (
    "with redrawn labels and 10 %, labels alone are 3.1 points above the teacher alone (82.3 against 79.2 %): equal "
    "epochs leave 40 steps, few for soft targets; at 30 %, and with clean labels, the teacher alone is above"
)
WIDEST = (
    "teachers of twice and four times the width teach alike at 3 %, 93.73 and 93.76 %: a digit in 3,188 makes the "
    "widest the best, and has been on either side"
)


@functools.cache
def data(kind: str, seed: int) -> tuple[Examples, Examples]:
    """(train, test) of a split of its own for each seed; the test part is never redrawn."""
    if kind in TEXTS:
        whole = kinds.genres(100)
        whole = replace(whole, inputs=whole.inputs * 384**0.5)  # of length 1: entries of size 1
        order = np.random.default_rng([seed, 1500]).permutation(len(whole))
        train, test, classes = whole.take(order[:SIZE]), whole.take(order[SIZE:]), 15
    else:
        (train, test), classes = vision.digits(SIZE, seed), 10
    draw = np.random.default_rng([seed, 7])
    wrong, other = draw.random(SIZE) < {**KINDS, **TEXTS}[kind], draw.integers(0, classes, SIZE)
    return replace(train, labels=torch.where(torch.from_numpy(wrong), torch.from_numpy(other), train.labels)), test


def net(width: int = WIDTH, kind: str = "clean") -> nn.Module:
    inputs, classes = (384, 15) if kind in TEXTS else (64, 10)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def trained(teacher: nn.Module, kind: str, seed: int, shares=(1.0,), *, chance: int, **how) -> list[nn.Module]:
    """The recipe's students for each share."""
    torch.set_num_threads(1)
    train = data(kind, seed)[0]
    budgets = [Budget.parse(f"examples={share:.0%}") for share in shares]
    with tempfile.TemporaryDirectory() as root, Run.open(Path(root) / "run", {}) as run:
        found = recipe.kd_data_pruning(
            Traced(teacher, Example.of(train.inputs[:1])), train, budgets, run, batch=BATCH,
            epochs=STEPS / (SIZE // BATCH), seed=chance, **how,
        )  # fmt: skip
        return [one.subject.model for one in found]


@functools.cache
def teacher(kind: str, seed: int, width: int = WIDTH) -> nn.Module:
    """Trained on all of the data, labels alone."""
    return trained(net(width, kind), kind, seed, chance=seed, alpha=0.0)[0]


def judged(student: nn.Module, taught_by: nn.Module, test: Examples) -> tuple[float, float]:
    """Accuracy, and label loyalty to the teacher that saw all of the data."""
    with torch.no_grad():
        ours, theirs = (one.eval()(test.inputs) for one in (student, taught_by))
    return vision.accuracy(student, test), loyalty.label(ours, theirs).value


def accuracies(kind: str, seed: int, alpha: float, shares=SHARES, score: str = "random", **how) -> dict[str, float]:
    """Share -> accuracy on the test part of a student that starts from other weights than its teacher did.

    "SHARE loyal" is its label loyalty to that teacher.
    """

    def compute() -> dict[str, float]:
        found = trained(
            teacher(kind, seed), kind, seed, shares, chance=seed + 50, alpha=alpha, score=score, **how
        )  # fmt: skip
        told = {
            str(s): judged(one, teacher(kind, seed), data(kind, seed)[1]) for s, one in zip(shares, found, strict=True)
        }
        return {s: a for s, (a, _) in told.items()} | {f"{s} loyal": b for s, (_, b) in told.items()}

    told = "-".join([kind, str(seed), str(alpha), score, *map(str, (*shares, *how.values()))])
    return lab.remembered(f"{NAME}-{told}", compute)


class Row(list[float]):
    """Accuracies, one for each seed, and label loyalties beside them."""

    loyal: list[float]

    @classmethod
    def of(cls, found: list[dict[str, float]], share: str) -> Row:
        row = cls(one[share] for one in found)
        row.loyal = [one[f"{share} loyal"] for one in found]
        return row


def rows(kind: str, share: float, alpha: float, **how) -> Row:
    return Row.of([accuracies(kind, seed, alpha, **how) for seed in SEEDS], str(share))


def points(first, second) -> float:
    """How much the mean of the one lies above that of the other, in points of accuracy."""
    return 100 * float(np.mean(first) - np.mean(second))


def told(name: str, claim: str, holds: bool, what: str, mine, others, *, setup: str = SETUP, **more) -> None:
    """The row of a claim: the accuracy of `what`, beside the others'; and label loyalty, its own and its rivals'."""
    more.setdefault("against", list(others))
    rivals = {rival: others[rival] for rival in more["against"]}
    loyal = {f"label loyalty, {one}": row.loyal for one, row in {what: mine, **rivals}.items()}
    lab.record(
        NAME, name, claim, holds, ("accuracy", mine), {**others, **loyal}, lower=False,
        setup=f"{setup}; loyalty to a teacher of all the data; measured: {what}", **({"seeds": SEEDS} | more),
    )  # fmt: skip


def test_a_teacher_is_worth_points_at_small_shares():
    found = {(kind, f, a): rows(kind, f, a) for kind in KINDS for f in (0.03, 0.1) for a in (0.0, 1.0)}
    holds = all(points(found[kind, f, 1.0], found[kind, f, 0.0]) >= 2 for kind in KINDS for f in (0.03, 0.1))
    told(
        "teacher", "with the teacher alone (alpha 1), random pruning to 3 % and to 10 % is at least 2 points "
        "above labels alone, with clean labels and with a fifth redrawn",
        holds, "noisy, 10 %", found["noisy", 0.1, 1.0],
        {"noisy, 10 %, labels alone": found["noisy", 0.1, 0.0]}
        | {f"{kind}, {f:.0%}, {'labels' if a == 0 else 'teacher'} alone": found[kind, f, a]
           for kind, f, a in found if (kind, f) != ("noisy", 0.1)},
        against=["noisy, 10 %, labels alone"],
        reason="less than 2 points somewhere",
    )  # fmt: skip


def test_texts_gain_by_a_teacher_too():
    found = {
        (kind, f, a): rows(kind, f, a, shares=(0.1, 0.3)) for kind in TEXTS for f in (0.1, 0.3) for a in (0.0, 1.0)
    }
    told(
        "texts", "with the teacher alone, random pruning of texts to 10 % and to 30 % is above labels alone, with "
        "clean labels and with a fifth redrawn",
        all(points(found[kind, f, 1.0], found[kind, f, 0.0]) > 0 for kind in TEXTS for f in (0.1, 0.3)),
        "noisy genres, 10 %", found["noisy genres", 0.1, 1.0],
        {"noisy genres, 10 %, labels alone": found["noisy genres", 0.1, 0.0]}
        | {f"{kind}, {f:.0%}, {'labels' if a == 0 else 'teacher'} alone": found[kind, f, a]
           for kind, f, a in found if (kind, f) != ("noisy genres", 0.1)},
        against=["noisy genres, 10 %, labels alone"],
        setup="1,000 of 1,500 passages of Brown's 15 genres as MiniLM's embeddings, one hidden layer of "
        f"{WIDTH}, {STEPS} steps for each share, SGD 0.1, tau 4",
        reason="a share loses by its teacher",
    )  # fmt: skip


CHOSEN = (0.03, 0.1, 0.5)


def test_with_a_teacher_every_rule_gains():
    scores = ("random", "el2n", "grand", "forgetting")
    found = {
        (kind, score, f, a): rows(kind, f, a, shares=CHOSEN, score=score)
        for kind in KINDS for score in scores for f in (0.03, 0.1) for a in (0.0, 1.0)
    }  # fmt: skip
    cells = [(kind, score, f) for kind in KINDS for score in scores for f in (0.03, 0.1)]
    gains = {cell: points(found[(*cell, 1.0)], found[(*cell, 0.0)]) for cell in cells}
    worst = min(gains, key=gains.__getitem__)
    told(
        "rules", "at 3 % and 10 % the teacher alone is above labels alone for random, EL2N, GraNd and forgetting",
        all(gain > 0 for gain in gains.values()),
        f"{' '.join(map(str, worst))}, the least gain", found[(*worst, 1.0)],
        {"labels alone": found[(*worst, 0.0)]},
        reason="a rule loses by its teacher",
    )  # fmt: skip


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=BALANCED)
def test_with_a_teacher_random_is_as_good_as_any():
    found = {
        (kind, score, f): rows(kind, f, 1.0, shares=CHOSEN, score=score)
        for kind in KINDS for score in ("random", "el2n", "forgetting") for f in CHOSEN
    }  # fmt: skip
    holds = all(
        points(found[kind, "random", f], found[kind, score, f]) >= (0 if f <= 0.12 else -1)
        for kind in KINDS for score in ("el2n", "forgetting") for f in CHOSEN
    )  # fmt: skip
    told(
        "random", "with the teacher alone, random is at least as good as EL2N and forgetting at 3 % and 10 %, "
        "and within a point at 50 %, classes in balance",
        holds, "noisy, 3 %", found["noisy", "random", 0.03],
        {f"{kind}, {score}, {f:.0%}": row for (kind, score, f), row in found.items()
         if (kind, score, f) != ("noisy", "random", 0.03)},
        against=["noisy, el2n, 3%", "noisy, forgetting, 3%"],
        reason=BALANCED,
    )  # fmt: skip


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=MEMORISED)
def test_with_a_teacher_random_is_as_good_as_memorisation():
    """The paper's other score; eight trainings on halves, so that an example is four times inside and four outside."""
    ways = {"random": {}, "memorisation": {"runs": 8}}
    found = {
        (kind, score, f): rows(kind, f, 1.0, shares=CHOSEN, score=score, **how)
        for kind in KINDS for score, how in ways.items() for f in CHOSEN
    }  # fmt: skip
    cells = [(kind, f) for kind in KINDS for f in CHOSEN]
    gaps = {(kind, f): points(found[kind, "random", f], found[kind, "memorisation", f]) for kind, f in cells}
    told(
        "memorisation", "with the teacher alone, random is at least as good as memorisation at 3 % and 10 %, and "
        "within a point at 50 %, classes in balance",
        all(gap >= (0 if f <= 0.12 else -1) for (_, f), gap in gaps.items()),
        "noisy, 3 %", found["noisy", "random", 0.03],
        {f"{kind}, {score}, {f:.0%}": row for (kind, score, f), row in found.items()
         if (kind, score, f) != ("noisy", "random", 0.03)},
        against=["noisy, memorisation, 3%"],
        reason=MEMORISED,
    )  # fmt: skip


def test_the_best_alpha_falls_as_more_is_kept():
    table = {f: {a: rows("noisy", f, a) for a in recipe.WEIGHTS} for f in SHARES}
    best = {f: max(recipe.WEIGHTS, key=lambda a: float(np.mean(table[f][a]))) for f in SHARES}
    falling = [best[f] for f in SHARES]
    told(
        "alpha", "with a fifth of the labels redrawn, the best alpha of five never rises with the share kept, "
        "and is smaller for all than for 3 %",
        falling == sorted(falling, reverse=True) and falling[0] > falling[-1],
        "3 %, its best", table[0.03][best[0.03]],
        {f"{f:.0%}, alpha {a:g}": table[f][a] for f in SHARES for a in recipe.WEIGHTS
         if (f, a) != (0.03, best[0.03])},
        against=["3%, alpha 0.5"] if best[0.03] != 0.5 else ["3%, alpha 0"],
        setup=f"{SETUP}; best alphas {', '.join(f'{best[f]:g} at {f:.0%}' for f in SHARES)}",
        reason=f"the best alphas are {falling}",
    )  # fmt: skip


def test_a_third_with_a_teacher_is_as_good_as_all_without():
    few, whole = rows("clean", 0.3, 0.5), rows("clean", 1.0, 0.0)
    told(
        "third", "a random 30 % with alpha 0.5 is within half a point of all of the data with labels alone",
        points(few, whole) >= -0.5, "30 % with a teacher", few, {"all, labels alone": whole},
        reason="more than half a point is lost",
    )  # fmt: skip


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=SHORT)
def test_equal_epochs_gain_too():
    found = {
        (kind, f, a): rows(kind, f, a, shares=(0.1, 0.3), equal="epochs")
        for kind in KINDS for f in (0.1, 0.3) for a in (0.0, 1.0)
    }  # fmt: skip
    told(
        "epochs", "for equal epochs, too, the teacher alone is above labels alone at 10 % and 30 %",
        all(points(found[kind, f, 1.0], found[kind, f, 0.0]) > 0 for kind in KINDS for f in (0.1, 0.3)),
        "noisy, 10 %", found["noisy", 0.1, 1.0],
        {"noisy, 10 %, labels alone": found["noisy", 0.1, 0.0]}
        | {f"{kind}, {f:.0%}, {'labels' if a == 0 else 'teacher'} alone": found[kind, f, a]
           for kind, f, a in found if (kind, f) != ("noisy", 0.1)},
        against=["noisy, 10 %, labels alone"],
        reason=SHORT,
    )  # fmt: skip


FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=WIDEST)
def test_the_widest_teacher_is_not_the_best_for_a_small_share(tmp_path):
    def student(seed: int, factor: float) -> dict[str, float]:
        def compute() -> dict[str, float]:
            file = tmp_path / "student.py"
            file.write_text(
                "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), "
                f"nn.Linear(64, {WIDTH}), nn.ReLU(), nn.Linear({WIDTH}, 10))\n"
            )
            large = teacher("clean", seed, round(WIDTH * factor))
            found = trained(large, "clean", seed, (0.03, 0.5), chance=seed + 50, alpha=1.0, student=f"{file}:build")
            test = data("clean", seed)[1]
            told = {
                key: judged(one, large, test)
                for key, one in zip(("0.03", "0.5", "teacher"), (*found, large), strict=True)
            }
            return {key: a for key, (a, _) in told.items()} | {f"{key} loyal": b for key, (_, b) in told.items()}

        return lab.remembered(f"{NAME}-capacity-{seed}-{factor}", compute)

    found = {f: [student(seed, f) for seed in SEEDS] for f in FACTORS}
    table = {f: {key: Row.of(found[f], key) for key in ("0.03", "0.5", "teacher")} for f in FACTORS}
    best = {key: max(FACTORS, key=lambda f: float(np.mean(table[f][key]))) for key in ("0.03", "0.5")}
    told(
        "capacity", "for 3 % of the data, the teacher that teaches best is not the widest of five, from a "
        "quarter of the student's width to four times it",
        best["0.03"] != FACTORS[-1], f"3 %, teacher x {best['0.03']:g}", table[best["0.03"]]["0.03"],
        {f"{key if key == 'teacher' else f'{float(key):.0%}'}, x {f:g}": table[f][key]
         for key in ("0.03", "0.5", "teacher") for f in FACTORS if (key, f) != ("0.03", best["0.03"])},
        against=["3%, x 4"] if best["0.03"] != 4.0 else ["3%, x 1"],
        setup=f"{SETUP}; at 50 % the best is x {best['0.5']:g}", reason=WIDEST,
    )  # fmt: skip


def test_alpha_auto_finds_what_the_share_wants():
    shares = (0.03, 0.1, 0.3)

    def over(alpha, **how) -> Row:
        """The means over the shares."""
        found = [accuracies("noisy", seed, alpha, **how) for seed in SEEDS[:3]]
        means = [
            {key: float(np.mean([one[f"{f}{end}"] for f in shares])) for key, end in (("", ""), (" loyal", " loyal"))}
            for one in found
        ]
        return Row.of(means, "")

    mine = over("auto", shares=shares, tried=(0.03, 0.3, 1.0), trials=1)
    fixed = {a: over(a) for a in recipe.WEIGHTS}
    told(
        "auto", "with a fifth of the labels redrawn, alpha auto is within a point of the best fixed alpha, over "
        "3 %, 10 % and 30 % together",
        points(mine, max(fixed.values(), key=sum)) >= -1, "auto", mine,
        {f"alpha {a:g}": row for a, row in fixed.items()},
        setup=f"{SETUP}; alpha judged on a fifth of the training part, its labels redrawn as the others",
        seeds=SEEDS[:3], reason="more than a point is lost",
    )  # fmt: skip


def test_in_ridge_regression_error_falls_with_what_the_teacher_saw():
    seeds = tuple(range(5))
    holds, table = True, dict[str, list[float]]()
    for noise in (1.0, 0.5):
        for f in (0.1, 0.25, 0.5):
            tried = [one for one in (0.1, 0.25, 0.5, 0.75, 1.0) if one >= f]
            for alpha in (0.25, 0.5, 0.75, 1.0):
                row = [np.mean([ridge.error(f, alpha, t, noise=noise, seed=s) for s in seeds]) for t in tried]
                holds &= bool((np.diff(row) < 0).all())
            alone = [ridge.error(f, 0.0, f, noise=noise, seed=s) for s in seeds]
            taught = [ridge.error(f, 1.0, 1.0, noise=noise, seed=s) for s in seeds]
            holds &= float(np.mean(taught)) < float(np.mean(alone))
            table[f"noise {noise}, {f:.0%}, labels alone"] = alone
            table[f"noise {noise}, {f:.0%}, teacher of all"] = taught
    lab.record(
        NAME, "ridge", "in ridge regression the student's error falls with the share that its teacher saw, for every "
        "share and alpha, and a teacher that saw all is better than labels alone",
        holds, ("error", table.pop("noise 1.0, 25%, teacher of all")), table,
        against=["noise 1.0, 25%, labels alone"], seeds=seeds,
        setup="40 features, 400 examples, penalty 10, relative squared error, 100 trials for each seed; measured: "
        "noise 1, 25 %, teacher of all",
        reason="it rises somewhere",
    )  # fmt: skip
