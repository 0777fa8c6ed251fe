"""AST at small scale: Llamas trained on Brown, to 2:4, every arm for the same tokens.

What must hold is asked twice: of the 1.2M-parameter Llama of the other claims, whose training was so short that
whatever is trained on from it gets better than it, and of a narrower one that is short of weights, not of steps.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from claims import lab
from secateur._utils.rundir import Run
from secateur.recipes.sparse import ast, magnitude, sparsegpt
from secateur.subjects import Transformer
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import low_rank
from secateur.vocabulary import Budget, Result

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
STEPS, BATCH, K = 400, 16, 16
SETUP = f"Llama-type, 6 layers, width 128, Brown, 2:4; {STEPS} steps of {BATCH} x {lab.LENGTH} tokens for every arm"
ARMS: dict[str, dict[str, Any]] = {
    "AST": {},
    "decay of the paper": {"decay": 1e-4},
    "AST without KD": {"kd": 0.0},
    "fixed mask and KD": {"refresh": 0},
    "fixed mask": {"refresh": 0, "kd": 0.0},
    "static decay": {"ramp": 0.0},
    "boosted": {"slorb": K},
}
GRADUAL = "gradual mask and KD"
SETTLED = "settled "
"""Before the name of an arm that starts from the settled original, and trains for `LONG` steps."""
LONG = 3000
SETUPS = {
    "": SETUP,
    SETTLED: f"Llama-type, 4 layers, width 64, Brown, 2:4; {LONG} steps of {BATCH} x {lab.LENGTH} tokens for every arm",
}
NAMES = [*ARMS, GRADUAL, *(SETTLED + arm for arm in ("AST", "fixed mask and KD", "fixed mask"))]
PAIRS = [pytest.param(arm, seed, id=f"{arm.replace(' ', '-')}-{seed}") for arm in NAMES for seed in SEEDS]
TRAINING = {"train_batch": BATCH, "lr": 1e-3, "min_lr": 1e-4, "calibration": 128, "decay": 1e-2}
"""The decay by how masks settle, on a seed of its own (7): against these gradients 1e-4 moves nothing."""


def original(arm: str = "") -> Transformer:
    return lab.settled() if arm.startswith(SETTLED) else lab.llama()


def result(recipe: Any, subject: Transformer, seed: int, pattern: str = "2:4", **options: Any) -> Result:
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder, "run"), {}) as run:
        asked = [Budget.parse(f"pattern={pattern}")]
        (found,) = recipe(subject, lab.training(), asked, run, seed=seed, length=lab.LENGTH, **options)
    return found


def gradual(seed: int) -> Result:
    """Magnitude in two steps, 3:4 and then 2:4, each trained under its fixed mask for half of the steps."""
    how = {**TRAINING, "steps": STEPS // 2, "refresh": 0}
    with tempfile.TemporaryDirectory() as teacher:
        original().save(Path(teacher))
        half = result(ast.ast, original(), seed, "3:4", **how)
        return result(ast.ast, half.subject, seed + len(SEEDS), teacher=teacher, **how)


def perplexity(student: Transformer) -> float:
    return math.exp(lab.held_out(student))


def held(student: Transformer) -> dict[str, torch.Tensor]:
    return {name: matrix.weight != 0 for name, matrix in matrices(student.model, student.layers()).items()}


@functools.cache
def dense(arm: str = "") -> float:
    return perplexity(original(arm))


def first(arm: str = "") -> Transformer:
    """The first mask of every arm: magnitude in one shot."""
    return _once(original(arm))


@functools.cache
def _once(subject: Transformer) -> Transformer:
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder, "run"), {}) as run:
        (found,) = magnitude.magnitude(subject, lab.training(), [Budget.parse("pattern=2:4")], run)
    return found.subject


@functools.cache
def one_shot(seed: int, origin: str = "") -> float:
    """Perplexity of SparseGPT."""

    def compute() -> dict[str, float]:
        return {"perplexity": perplexity(result(sparsegpt.sparsegpt, original(origin), seed).subject)}

    return lab.remembered(f"ast-{origin}sparsegpt-{seed}".replace(" ", "-"), compute)["perplexity"]


@functools.cache
def trained(arm: str, seed: int) -> dict[str, Any]:
    """One arm: its perplexity, how its mask moved, and what its branches add."""

    def compute() -> dict[str, Any]:
        how = {
            "steps": LONG if arm.startswith(SETTLED) else STEPS,
            **TRAINING,
            **ARMS.get(arm.removeprefix(SETTLED), {}),
        }
        found = gradual(seed) if arm == GRADUAL else result(ast.ast, original(arm), seed, **how)
        masks, start = held(found.subject), held(first(arm))
        for name, stays in masks.items():
            assert bool((stays.unflatten(1, (-1, 4)).sum(2) == 2).all()), name
        kept = sum(int((stays & start[name]).sum()) for name, stays in masks.items())
        beside = low_rank.find_branches(found.subject.model)
        return {
            "perplexity": perplexity(found.subject),
            "overlap": kept / sum(int(stays.sum()) for stays in masks.values()),
            "flips": found.recovery.settings["flips"],
            "added": sum(p.numel() for branch in beside.values() for p in branch.parameters()),
        }

    return lab.remembered(f"ast-{arm.replace(' ', '-')}-{seed}", compute)


def perplexities(arm: str) -> list[float]:
    return [trained(arm, seed)["perplexity"] for seed in SEEDS]


def quarters(seed: int) -> tuple[float, float]:
    """Mean flip rate against the mask before, in the first and in the last quarter."""
    rows = trained("AST", seed)["flips"]
    parts = [[previous for step, previous, _ in rows if low < step / STEPS <= low + 0.25] for low in (0.0, 0.75)]
    return sum(parts[0]) / len(parts[0]), sum(parts[1]) / len(parts[1])


@pytest.mark.parametrize(("arm", "seed"), PAIRS)
def test_every_arm_beats_its_own_first_mask(arm: str, seed: int) -> None:
    """One training each, so that a part of the claims takes a few minutes; the tests below read what came out."""
    assert trained(arm, seed)["perplexity"] < perplexity(first(arm))


@pytest.mark.parametrize(
    ("name", "origin", "arm"),
    [("gap", "", "AST"), ("gap-published", "", "decay of the paper"), ("settled-gap", SETTLED, "AST")],
)
def test_ast_closes_half_of_the_gap_that_sparsegpt_leaves(name, origin, arm):
    ours, theirs, whole = perplexities(origin + arm), [one_shot(seed, origin) for seed in SEEDS], dense(origin)
    left = [(mine - whole) / (other - whole) for mine, other in zip(ours, theirs, strict=True)]
    lab.record(
        "ast",
        name,
        "AST with KD closes at least half of the gap in perplexity that one-shot SparseGPT leaves at 2:4",
        sum(left) / len(left) <= 0.5,
        ("perplexity", ours),
        {"SparseGPT": theirs, "dense": [whole] * 3},
        against=("SparseGPT",),
        setup=f"{SETUPS[origin]} but SparseGPT, which is not trained; {sum(left) / len(left):.0%} of the gap is left",
    )


def test_moving_masks_are_clearly_better_than_fixed_ones_with_and_without_kd():
    ours = perplexities(SETTLED + "AST")
    others = {arm: perplexities(SETTLED + arm) for arm in ("fixed mask and KD", "fixed mask")}
    once = [perplexity(first(SETTLED))] * 3
    lab.record(
        "ast",
        "settled-fixed",
        "AST is clearly better than a fixed mask with KD and than one trained on the next token, and this one than "
        "one-shot magnitude",
        all(lab.clearly_less(ours, other) for other in others.values())
        and lab.clearly_less(others["fixed mask"], once),
        ("perplexity", ours),
        {**others, "magnitude": once, "dense": [dense(SETTLED)] * 3},
        against=("fixed mask and KD", "fixed mask"),
        setup=SETUPS[SETTLED],
    )


MOVED = (
    "AST is better than a fixed mask on the next token (51.31 against 52.80), which is better than one-shot magnitude "
    "(63.84); but a fixed mask with KD is best (51.14): this original was trained for too short a time to be short of "
    "weights, and with 400 steps more any mask comes near to it (50.10)"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=MOVED)
def test_moving_masks_beat_fixed_ones_with_and_without_kd():
    ours = perplexities("AST")
    others = {arm: perplexities(arm) for arm in ("fixed mask and KD", "fixed mask")}
    once = [perplexity(first())] * 3
    lab.record(
        "ast",
        "fixed",
        "AST < a fixed mask trained on the next token < one-shot magnitude, and AST <= a fixed mask with KD",
        lab.less(ours, others["fixed mask and KD"])
        and lab.clearly_less(ours, others["fixed mask"])
        and lab.clearly_less(others["fixed mask"], once),
        ("perplexity", ours),
        {**others, "magnitude": once},
        setup=SETUP,
        reason=MOVED,
    )


def test_moving_masks_are_no_worse_than_gradual_ones():
    """The strongest baseline of the paper."""
    ours, others = perplexities("AST"), perplexities(GRADUAL)
    lab.record(
        "ast",
        "gradual",
        "AST <= magnitude pruning in two steps (3:4, then 2:4), with KD and for as many tokens",
        lab.less(ours, others),
        ("perplexity", ours),
        {GRADUAL: others},
        setup=SETUP,
    )


def test_distillation_matters():
    ours, others = perplexities("AST"), perplexities("AST without KD")
    lab.record(
        "ast",
        "distillation",
        "AST with KD is better than without, at equal steps",
        lab.clearly_less(ours, others),
        ("perplexity", ours),
        {"without KD": others},
        setup=SETUP,
    )


def test_boosted_is_at_least_as_good_as_naive():
    ours, others = perplexities("boosted"), perplexities("AST")
    found = matrices(lab.llama().model, lab.llama().layers()).values()
    shapes = [tuple(matrix.weight.shape) for matrix in found]
    added = sum(rows * columns // K + columns * columns // K for rows, columns in shapes)
    assert {trained("boosted", seed)["added"] for seed in SEEDS} == {added}
    share = added / sum(rows * columns for rows, columns in shapes)
    lab.record(
        "ast",
        "boosted",
        f"AST-Boosted (SLoRB, k = {K}) <= AST-Naive",
        lab.less(ours, others),
        ("perplexity", ours),
        {"naive": others},
        setup=f"{SETUP}; {added} parameters more, {share:.1%} of the masked matrices",
    )


def test_an_annealed_decay_is_no_worse_than_a_static_one_and_masks_settle():
    ours, others = perplexities("AST"), perplexities("static decay")
    settled = [quarters(seed) for seed in SEEDS]
    moved = [trained("AST", seed)["flips"][-1][2] for seed in SEEDS]
    rates = ", ".join(f"{early:.2%} to {late:.2%}" for early, late in settled)
    lab.record(
        "ast",
        "annealed",
        "annealed decay <= static decay; flips fall from the first to the last quarter, and some weights stay flipped",
        lab.less(ours, others) and all(late < early for early, late in settled) and min(moved) > 0,
        ("perplexity", ours),
        {"static": others},
        setup=f"{SETUP}; flips per refresh, first to last quarter, by seed: {rates}",
    )


@pytest.mark.parametrize("origin", ["", SETTLED], ids=["", "settled"])
def test_the_mask_does_not_stay_the_first_one(origin):
    ours, fixed = ([trained(origin + arm, seed)["overlap"] for seed in SEEDS] for arm in ("AST", "fixed mask"))
    assert fixed == [1.0] * 3  # or the overlap would say nothing of ours
    lab.record(
        "ast",
        f"{origin.strip()}-overlap".strip("-"),
        "the last mask is not the first one, which magnitude chose",
        max(ours) < 1.0,
        ("share of kept weights that the first mask kept", ours),
        {"fixed mask": fixed},
        setup=SETUPS[origin],
    )
