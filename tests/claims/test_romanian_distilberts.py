"""Distilled masked language models at small scale: two teachers of two tokenizers, four tasks, loyalty to each."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from claims import lab, masked
from secateur.measure import latency
from secateur.recipes.language import romanian_distilberts as recipe
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Selection

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
BY_HAND = (*SEEDS, 3, 4, 5)
"""With three, loyalty was higher with each seed and its interval reached zero: three more were added then."""
FACTORS = (5.0, 2.0, 1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "triple loss": {},
    "fresh weights": {"fresh": True},
    "masked tokens alone": {"factors": (0.0, 2.0, 0.0)},
    "without soft targets": {"factors": (0.0, 2.0, 1.0)},
    "without masked tokens": {"factors": (5.0, 0.0, 1.0)},
    "without hidden states": {"factors": (5.0, 2.0, 0.0)},
    "two teachers": {"second": True},
    "of the second teacher": {"home": "B"},
}
CLASSES = ("tags", "genre", "spam")
LOYALTIES = {"label": CLASSES, "probability": CLASSES, "regression": ("similarity",)}


def student(seed: int, *, factors=FACTORS, fresh: bool = False, second: bool = False, home: str = "A") -> Transformer:
    """Half the layers of the home teacher, trained for `masked.STEPS`."""
    teacher = masked.teacher(home)
    total = len(teacher.layers())
    cut, _ = teacher.cut(Selection({"layers": recipe.layers(total, total // 2, "spread")}))
    if fresh:
        torch.manual_seed(seed)
        cut = open_subject(BertForMaskedLM(cut.model.config), tokenizer=teacher.tokenizer)
    company = recipe.company(teacher, (), (), "words", masked.LENGTH)
    if second:
        other = recipe.joined(teacher, "second", masked.teacher("B"), 0.5, "words", masked.LENGTH)
        company = [recipe.Teacher("original", teacher, 0.5), other]
    recipe.anew(company, seed)
    return masked.taught(cut, company, masked.STEPS, seed=seed, factors=factors)


@functools.cache
def measured(variant: str, seed: int) -> dict[str, Any]:
    """What comes of a variant: on masked texts, and on each task after fine-tuning."""

    def compute() -> dict[str, Any]:
        made = student(seed, **VARIANTS[variant])
        found = {task: masked.compared(masked.fitted(made, task, seed), task, seed) for task in masked.TASKS}
        return found | ({} if variant == "of the second teacher" else {"texts": masked.pretrained(made, "judged")})

    return lab.remembered(f"distilberts-{variant.replace(' ', '-')}-{seed}", compute)


def scores(variant: str) -> list[float]:
    """Mean score over tasks, for each seed."""
    return [float(np.mean([measured(variant, seed)[task]["score"] for task in masked.TASKS])) for seed in SEEDS]


def loyalties(variant: str, kind: str, teacher: str = "A") -> list[float]:
    """Mean loyalty over tasks, for each seed."""
    return [
        float(np.mean([measured(variant, seed)[task][teacher][kind] for task in LOYALTIES[kind]])) for seed in SEEDS
    ]


def loyal(variant: str, teacher: str = "A") -> dict[str, list[float]]:
    """Rows of each loyalty of a student: to the first teacher, the second (B) or both (ensemble)."""
    whose = {"A": "the first", "B": "the second", "ensemble": "both"}[teacher]
    return {f"{kind} loyalty to {whose}: {variant}": loyalties(variant, kind, teacher) for kind in LOYALTIES}


def on_texts(variant: str, what: str) -> list[float]:
    return [measured(variant, seed)["texts"][what] for seed in SEEDS]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("teacher", ["A", "B"])
def test_teachers_are_fine_tuned(teacher, seed):
    """What the students are compared with; in parts, since each takes a while."""
    assert all(0 < masked.learned(teacher, task, seed).score <= 1 for task in masked.TASKS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_students_are_taught(variant, seed):
    """All that the claims below compare."""
    assert all(0 < measured(variant, seed)[task]["score"] <= 1 for task in masked.TASKS)


@pytest.mark.parametrize("seed", BY_HAND)
def test_students_are_fine_tuned_from_labels_and_from_predictions(seed):
    assert set(by_hand(seed)) == set(CLASSES)


@pytest.mark.parametrize("kind", ["score", *LOYALTIES])
def test_triple_loss_beats_fresh_weights_and_masked_tokens_alone(kind):
    read = scores if kind == "score" else functools.partial(loyalties, kind=kind)
    ours, others = read("triple loss"), {name: read(name) for name in ("fresh weights", "masked tokens alone")}
    lab.record(
        "romanian_distilberts",
        "triple" if kind == "score" else f"triple-{kind}",
        f"copied layers and the triple loss beat fresh weights, and masked tokens alone, in "
        f"{'mean task score' if kind == 'score' else f'{kind} loyalty'} at equal steps",
        all(sum(ours) > sum(rival) for rival in others.values()),
        (kind if kind == "score" else f"{kind} loyalty", ours),
        others,
        lower=False,
        setup=masked.SETUP,
    )


NEARER = (
    "without soft targets the states fall still further (0.947 against 0.953; 0.970 with all losses): here both losses "
    "pull one way"
)
WITHOUT = {"soft": "without soft targets", "masked": "without masked tokens", "states": "without hidden states"}


@pytest.mark.parametrize(
    ("row", "loss", "what"),
    [
        ("soft", "soft", "probability loyalty of masked tokens"),
        ("soft-tasks", "soft", "probability loyalty after fine-tuning"),
        pytest.param(
            "states",
            "states",
            "cosine of hidden states",
            marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=NEARER),
        ),
    ],
)
def test_each_loss_is_what_its_measure_stands_on(row, loss, what):
    read = {
        "soft": lambda name: on_texts(name, "probability"),
        "soft-tasks": lambda name: loyalties(name, "probability"),
        "states": lambda name: on_texts(name, "cosine"),
    }[row]
    rows = {name: read(name) for name in WITHOUT.values()}
    ours, whole = rows.pop(WITHOUT[loss]), read("triple loss")
    lab.record(
        "romanian_distilberts",
        f"without-{row}",
        f"{WITHOUT[loss]} the {what} falls most",
        sum(ours) < sum(whole) and all(sum(ours) < sum(rival) for rival in rows.values()),
        (what, ours),
        rows | {"triple loss": whole},
        against=tuple(rows),
        setup=masked.SETUP,
        reason=NEARER,
    )


def test_the_student_keeps_the_teachers_score():
    ours = scores("triple loss")
    theirs = [float(np.mean([masked.learned("A", task, seed).score for task in masked.TASKS])) for seed in SEEDS]
    lab.record(
        "romanian_distilberts",
        "kept",
        "the student of half the layers keeps 97 % of its teacher's mean task score",
        sum(ours) >= 0.97 * sum(theirs),
        ("score", ours),
        {"teacher": theirs, **loyal("triple loss")},
        lower=False,
        against=("teacher",),
        setup=masked.SETUP,
    )


def test_the_student_is_faster():
    teacher = masked.teacher("A")
    cut, _ = teacher.cut(Selection({"layers": recipe.layers(6, 3, "spread")}))
    example = teacher.example(32, 64)
    ratios = []
    with torch.no_grad():
        for _ in SEEDS:
            pair = latency.compare(
                lambda: teacher.model.base_model(**example), lambda: cut.model.base_model(**example), lasting=5.0
            )
            ratios.append(pair.after.value / pair.before.value)
    lab.record(
        "romanian_distilberts",
        "time",
        "a forward pass of the student's encoder takes at most 0.6 of its teacher's, on a CPU",
        max(ratios) <= 0.6,
        ("share of the teacher's time", ratios),
        setup=f"{masked.SETUP}; 32 sequences of 64 tokens",
    )


ALIKE = (
    "no difference: labels 0.821 against 0.818, probabilities 0.839 against 0.840, numbers 0.760 against 0.752, each "
    "within its interval; fine-tuned from labels, a student keeps little of a second teacher that its hidden states "
    "were drawn to, by words"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=ALIKE)
@pytest.mark.parametrize("kind", LOYALTIES)
def test_two_teachers_make_a_student_loyal_to_the_second(kind):
    ours = loyalties("two teachers", kind, "B")
    rivals = {"of the first alone": loyalties("triple loss", kind, "B")}
    shown = {"loyal to the first: two teachers": loyalties("two teachers", kind),
             "loyal to the first: the first alone": loyalties("triple loss", kind),
             "loyal to both: two teachers": loyalties("two teachers", kind, "ensemble"),
             "loyal to both: the first alone": loyalties("triple loss", kind, "ensemble")}  # fmt: skip
    lab.record(
        "romanian_distilberts",
        f"second-{kind}",
        f"taught by two, a student has clearly more {kind} loyalty to the second teacher than by the first alone",
        lab.clearly_less(rivals["of the first alone"], ours),
        (f"{kind} loyalty to the second", ours),
        rivals | shown,
        lower=False,
        against=("of the first alone",),
        setup=masked.SETUP,
        reason=ALIKE,
    )


def test_two_teachers_cost_no_score():
    ours = scores("two teachers")
    single = {"of the first alone": scores("triple loss"), "of the second alone": scores("of the second teacher")}
    better = max(single.values(), key=sum)
    lab.record(
        "romanian_distilberts",
        "second-score",
        "taught by two, a student's mean task score is not clearly below that of the better taught by one",
        not lab.clearly_less(ours, better),
        ("score", ours),
        single | loyal("two teachers", "ensemble") | loyal("triple loss") | loyal("of the second teacher", "B"),
        lower=False,
        against=tuple(single),
        setup=masked.SETUP,
    )


@functools.cache
def by_hand(seed: int) -> dict[str, Any]:
    """The distilled student fine-tuned from labels, and from what its fine-tuned teacher predicts: at equal steps."""

    def compute() -> dict[str, Any]:
        made, found = student(seed), {}
        for task in CLASSES:
            tutor = masked.learned("A", task, seed)
            found[task] = {
                name: masked.compared(masked.fitted(made, task, seed, tutor=who), task, seed)
                for name, who in {"labels": None, "teacher": tutor}.items()
            }
        return found

    return lab.remembered(f"distilberts-labels-{seed}", compute)


@pytest.mark.parametrize("kind", ["label", "probability"])
def test_loyalty_tells_apart_what_scores_do_not(kind):
    def read(name, *keys):
        rows = [[by_hand(seed)[task][name] for task in CLASSES] for seed in BY_HAND]
        return [
            float(np.mean([functools.reduce(lambda one, key: one[key], keys, row) for row in pair])) for pair in rows
        ]

    ours, labels = read("teacher", "A", kind), read("labels", "A", kind)
    score = {name: read(name, "score") for name in ("teacher", "labels")}
    even = not lab.clearly_less(score["labels"], score["teacher"])
    lab.record(
        "romanian_distilberts",
        f"labels-{kind}",
        f"fine-tuned from labels a student's score is not clearly below that of one fine-tuned from its teacher's "
        f"predictions; its {kind} loyalty clearly is",
        even and lab.clearly_less(labels, ours),
        (f"{kind} loyalty", ours),
        {"from labels": labels, "score: from predictions": score["teacher"], "score: from labels": score["labels"]},
        lower=False,
        against=("from labels",),
        setup=masked.SETUP,
        seeds=BY_HAND,
    )
