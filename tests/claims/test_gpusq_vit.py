"""GPUSQ-ViT at small scale: a vision transformer of width 64 and depth 4 on MNIST at 16 x 16.

Each seed is the whole experiment: a dense network of its own, pruned and quantised, all arms for as many steps.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from claims import lab, vision
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.formats import integers
from secateur.formats.integers import Form
from secateur.measure import sparsity
from secateur.recipes.vision import gpusq_vit as recipe
from secateur.recover.distillation import mixed
from secateur.recover.sparsity import masks
from secateur.recover.training import loop
from secateur.select import weights
from secateur.select.pattern import n_of_m
from secateur.subjects import open_traced
from secateur.subjects.matrices import matrices
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget

pytest.importorskip("torchao")
pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
BATCH, PRUNE, QUANTISE = 64, 100, 60
LR, QUANTISE_LR = 5e-4, 2e-4
SETUP = (
    "ViT of width 64, depth 4, patches of 4 x 4, on 5,000 MNIST digits of 16 x 16, 5,000 others to test; each seed has "
    f"a dense network of its own (12 epochs of AdamW); {PRUNE} steps of retraining at {LR}, then {QUANTISE} steps of "
    f"quantisation-aware training at {QUANTISE_LR}, batches of {BATCH}; all matrices but the head are 2:4"
)
PLAIN = Form(2, 4)
FULL, LABELS = (1.0, 10.0, 5.0), (1.0, 0.0, 0.0)
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "labels": {"factors": LABELS},
    "no features": {"factors": (1.0, 10.0, 0.0)},
    "no logits": {"factors": (1.0, 0.0, 5.0)},
    "uniform": {"uniform": True},
    "images": {"labels": "none"},
}


@functools.cache
def data() -> tuple[Examples, Examples]:
    return vision.mnist(5000, 5000, size=16)


@functools.cache
def dense(seed: int) -> Traced:
    net = nets.vit(seed, size=16, patch=4, dim=64, depth=4, heads=4, classes=10)
    how = {"optimizer": "adamw", "lr": 2e-3, "warmup": 0.1, "weight_decay": 0.05}
    vision.taught("gpusq-vit", net, data()[0], epochs=12, batch=BATCH, seed=seed, **how)
    return open_traced(net, data()[0].inputs[:2], prove=False)


def accuracy(subject: Traced) -> float:
    """In percent."""
    return 100 * vision.accuracy(subject.model, data()[1])


def result(seed: int, **options: Any) -> Traced:
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder, "run"), {}) as run:
        per = len(data()[0]) // BATCH
        how = {"batch": BATCH, "lr": LR, "quantise_lr": QUANTISE_LR, "seed": seed}
        how |= {"epochs": PRUNE / per, "quantise_epochs": QUANTISE / per, **options}
        (found,) = list(recipe.gpusq_vit(dense(seed), data()[0], [Budget.parse("pattern=2:4")], run, **how))
        return found.subject


def whole(subject: Traced) -> bool:
    """Whether the mask of the dense network's magnitudes has survived to the last weight."""
    held = {name: one.weight for name, one in matrices(subject.model).items() if name in subject.masks}
    closed = all(not bool(weight[~subject.masks[name].flatten(1)].any()) for name, weight in held.items())
    return closed and not sparsity.broken(held, 2, 4) and len(held) == 25


@functools.cache
def arm(seed: int, bits: int, name: str) -> dict[str, float]:
    """Accuracy of the network of `bits` after this way of training; and whether every mask held."""

    def compute() -> dict[str, float]:
        subject = result(seed, bits=bits, **WAYS[name])
        return {"accuracy": accuracy(subject), "held": float(whole(subject))}

    return lab.remembered(f"gpusq_vit-{bits}-{name.replace(' ', '-')}-{seed}", compute)


def column(bits: int, name: str) -> list[float]:
    return [arm(seed, bits, name)["accuracy"] for seed in SEEDS]


ARMS = {32: ("full", "labels"), 8: ("full", "images"), 4: ("full", "labels", "no features", "no logits", "uniform")}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("bits", "name"), [(bits, name) for bits, names in ARMS.items() for name in names])
def test_the_mask_survives_in_every_arm(bits: int, name: str, seed: int) -> None:
    """One experiment each, so that a part of the claims takes a minute; the tests below read what came out."""
    assert arm(seed, bits, name)["held"]


# ------------------------------------------------------------------------------------------------- the sentence


def test_int8_is_within_one_point_of_dense_and_the_mask_survives():
    before, after = [accuracy(dense(seed)) for seed in SEEDS], column(8, "full")
    held = all(arm(seed, 8, "full")["held"] for seed in SEEDS)
    assert min(before) > 95
    lab.record(
        "gpusq_vit", "int8", "2:4 and 8 bits stay within one point of dense, and the mask survives to the last weight",
        held and all(a - b <= 1.0 for a, b in zip(before, after, strict=True)),
        ("accuracy, 2:4 and 8 bits", after), {"accuracy, dense": before}, lower=False, setup=SETUP,
    )  # fmt: skip


def test_images_alone_come_within_two_points_of_labels():
    ours, others = column(8, "images"), column(8, "full")
    lab.record(
        "gpusq_vit", "unsupervised", "without labels, 2:4 and 8 bits come within 2 points of supervised",
        all(b - a <= 2.0 for a, b in zip(ours, others, strict=True)),
        ("accuracy, images alone", ours), {"accuracy, with labels": others}, lower=False, setup=SETUP,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- retraining


def masked(seed: int, mask: Mapping[str, Tensor]) -> Traced:
    subject = dense(seed).copy()
    subject.masks = dict(mask)
    masks.apply(subject.model, mask)
    return subject


def magnitude(seed: int, form: Form = PLAIN) -> dict[str, Tensor]:
    chosen, _ = recipe.eligible(matrices(dense(seed).model), form, 16)
    return recipe.magnitude_masks(chosen, form)


def test_retraining_recovers_most_of_what_one_shot_loses():
    rows = {
        "dense": [accuracy(dense(seed)) for seed in SEEDS],
        "one shot": [accuracy(masked(seed, magnitude(seed))) for seed in SEEDS],
        "full": column(32, "full"),
    }
    lost, left = ([a - b for a, b in zip(rows["dense"], rows[name], strict=True)] for name in ("one shot", "full"))
    lab.record(
        "gpusq_vit", "one-shot", "2:4 in one shot costs accuracy, and retraining with the mask wins most of it back",
        all(a > 0 and b <= a / 2 for a, b in zip(lost, left, strict=True)),
        ("accuracy, retrained", rows["full"]),
        {"accuracy, one shot": rows["one shot"], "accuracy, dense": rows["dense"]},
        lower=False, against=["accuracy, one shot"], setup=SETUP,
    )  # fmt: skip


def test_mixed_distillation_retrains_no_worse_than_labels_alone():
    ours, others = column(32, "full"), column(32, "labels")
    lab.record(
        "gpusq_vit", "mixed", "mixed distillation retrains at least as well as labels alone",
        sum(ours) >= sum(others),
        ("accuracy, mixed", ours), {"accuracy, labels alone": others}, lower=False, setup=SETUP,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- four bits


def test_four_bits_rank_below_eight():
    ours, others = column(8, "full"), column(4, "full")
    lab.record(
        "gpusq_vit", "bits", "8 bits are at least as accurate as 4",
        all(a >= b for a, b in zip(ours, others, strict=True)),
        ("accuracy, 8 bits", ours), {"accuracy, 4 bits": others}, lower=False, setup=SETUP,
    )  # fmt: skip


def test_at_four_bits_mixed_distillation_beats_labels_alone():
    ours, others = column(4, "full"), column(4, "labels")
    lab.record(
        "gpusq_vit", "int4", "at 4 bits, mixed distillation with weights is no worse than training on labels alone",
        sum(ours) >= sum(others),
        ("accuracy, mixed", ours), {"accuracy, labels alone": others}, lower=False, setup=SETUP,
    )  # fmt: skip


def test_features_matter_more_than_logits():
    full, logits, features = (column(4, name) for name in ("full", "no logits", "no features"))
    lab.record(
        "gpusq_vit", "terms", "at 4 bits: all terms >= without logits >= without features",
        sum(full) >= sum(logits) >= sum(features),
        ("accuracy, all terms", full),
        {"accuracy, without logits": logits, "accuracy, without features": features}, lower=False, setup=SETUP,
    )  # fmt: skip


def test_weights_from_residuals_beside_uniform_ones():
    """A small effect is expected: the row shows the paired difference, and nothing is asserted of its sign."""
    ours, others = column(4, "full"), column(4, "uniform")
    apart = [a - b for a, b in zip(ours, others, strict=True)]
    lab.record(
        "gpusq_vit", "weights", "at 4 bits, weights from residuals come within a point of uniform ones, or above",
        sum(apart) / len(apart) >= -1.0,
        ("accuracy, from residuals", ours), {"accuracy, uniform": others}, lower=False, setup=SETUP,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- baselines


def chosen(seed: int, name: str) -> dict[str, Tensor]:
    """A mask of half of the weights of the same matrices, by another rule."""
    found = {one: dense(seed).model.get_parameter(one) for one in magnitude(seed)}
    draw = torch.Generator().manual_seed(seed)
    if name == "unstructured":
        return {
            key: weights.best(one.detach().abs().flatten(1), 0.5, "matrix").view_as(one) for key, one in found.items()
        }
    if name == "random":
        scores = {key: torch.rand(one.flatten(1).shape, generator=draw) for key, one in found.items()}
    else:  # the first two of four
        scores = {key: -torch.arange(one[0].numel()).expand(len(one), -1).float() for key, one in found.items()}
    return {key: n_of_m(scores[key], 2, 4).view_as(one) for key, one in found.items()}


@functools.cache
def baselines(seed: int) -> dict[str, float]:
    def compute() -> dict[str, float]:
        found = {}
        for name in ("unstructured", "random", "first"):
            subject = masked(seed, chosen(seed, name))
            lesson(subject, dense(seed), PRUNE, LR, seed)
            found[name] = accuracy(subject)
        return found

    return lab.remembered(f"gpusq_vit-baselines-{seed}", compute)


def feed(seed: int) -> examples.Batches:
    return examples.batches(data()[0], batch=BATCH, seed=seed)


def taps() -> list[str]:
    return recipe.blocks(dense(0).model)


def training(seed: int) -> Any:
    return partial(
        loop.train, seed=seed, count=examples.count, dropout=False, precision="fp32", weight_decay=0.01, every=10**9
    )


def lesson(subject: Traced, teacher: Traced, steps: int, lr: float, seed: int) -> None:
    """Step 2 of the recipe for any mask."""
    ask = subject.inputs.ask
    objective = mixed.objective(subject.model, teacher.model, ask, taps(), factors=FULL, disagreeing=0.5)
    recipe.prune(subject, objective, training(seed), feed(seed), steps, teacher.model, lr=lr)


def test_magnitude_beats_random_and_the_first_two_of_four():
    ours = column(32, "full")
    rows = {name: [baselines(seed)[name] for seed in SEEDS] for name in ("unstructured", "random", "first")}
    lab.record(
        "gpusq_vit", "baselines", "at 50 % of the weights, 2:4 by magnitude beats random 2:4 and the first two of four",
        all(lab.less(rows[name], ours) for name in ("random", "first")),
        ("accuracy, 2:4 by magnitude", ours),
        {"accuracy, random 2:4": rows["random"], "accuracy, first two of four": rows["first"],
         "accuracy, unstructured magnitude": rows["unstructured"]},
        lower=False, against=["accuracy, random 2:4", "accuracy, first two of four"], setup=SETUP,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- the order


def quantised(subject: Traced, teacher: Traced, steps: int, seed: int, lr: float = QUANTISE_LR) -> Traced:
    """Steps 4 and 5 of the recipe at 4 bits, with any teacher."""

    def taught(student: torch.nn.Module, _: torch.nn.Module) -> mixed.Objective:
        ask = subject.inputs.ask
        return mixed.objective(student, teacher.model, ask, taps(), factors=FULL, disagreeing=0.5)

    return recipe.quantise(subject, taught, training(seed), feed(seed), steps, bits=4, lr=lr)[0]


@functools.cache
def orders(seed: int) -> dict[str, float]:
    """Two stages, the other way round, and both at once: at 4 bits, for as many steps in all."""

    def compute() -> dict[str, float]:
        form = Form(2, 4, 2)
        joint = quantised(masked(seed, magnitude(seed, form)), dense(seed), PRUNE + QUANTISE, seed, LR)
        # The other way round: quantised first; its weights are masked by magnitude and both go on together.
        first = quantised(dense(seed).copy(), dense(seed), QUANTISE, seed)
        late = dense(seed).copy()
        state = dict(first.model.named_parameters())
        with torch.no_grad():
            for name, parameter in late.model.named_parameters():
                parameter.copy_(state[name])
        late.masks = recipe.magnitude_masks(recipe.eligible(matrices(late.model), form, 16)[0], form)
        masks.apply(late.model, late.masks)
        turned = quantised(late, first, PRUNE, seed, LR)
        return {"joint": accuracy(joint), "turned": accuracy(turned)}

    return lab.remembered(f"gpusq_vit-orders-{seed}", compute)


JOINT = (
    "the other order is worse (85.7 against 89.0 %), but one stage that is masked and rounded from the start is better "
    "(90.1 %, with every seed): at this size all steps under rounding are worth more than a stage without it"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=JOINT)
def test_two_stages_beat_the_other_order_and_one_joint_stage():
    ours = column(4, "full")
    joint, turned = ([orders(seed)[name] for seed in SEEDS] for name in ("joint", "turned"))
    lab.record(
        "gpusq_vit", "order", "at 4 bits and equal steps, pruning then quantising beats the other order and one stage",
        sum(ours) >= max(sum(joint), sum(turned)),
        ("accuracy, prune, then quantise", ours),
        {"accuracy, quantise, then prune": turned, "accuracy, both at once": joint}, lower=False, setup=SETUP,
        reason=JOINT,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- sizes


def test_sizes_against_floats_are_those_of_the_paper():
    times = {}
    for bits in (8, 4):
        form = Form(2, 4, 2 if bits == 4 else 1)
        mask = magnitude(0, form)
        layers = dense(0).model
        whole = packed = 0.0
        for name, one in mask.items():
            weight = layers.get_parameter(name).detach().flatten(1)
            parts = integers.pack(torch.zeros(weight.shape, dtype=torch.int8), one.flatten(1), form, bits)
            whole += 4 * weight.numel()
            packed += sum(part.numel() for part in parts.values())
        times[bits] = whole / packed
    lab.record(
        "gpusq_vit", "size", "eligible matrices take 6.4 times less room in 8 bits and 12.8 times less in 4",
        times[8] == 6.4 and times[4] == 12.8,
        ("times smaller, 8 bits", [times[8]]), {"times smaller, 4 bits": [times[4]]}, seeds=[0], setup=SETUP,
    )  # fmt: skip
