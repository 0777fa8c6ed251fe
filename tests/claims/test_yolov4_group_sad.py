"""Group channel pruning and spatial attention distilling at small scale: a small YOLO on scenes of MNIST digits."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from claims import detection, lab
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.errors import InfeasibleError
from secateur.measure import latency
from secateur.recipes.vision import yolov4_group_sad as recipe
from secateur.recover.sparsity import slimming
from secateur.score import magnitude, random, scales
from secateur.select import ranking, thresholds
from secateur.subjects.network import stages
from secateur.subjects.network.traced import Traced, reload_traced
from secateur.vocabulary import Budget, Figure

pytestmark = [pytest.mark.claim, pytest.mark.timeout(1200)]
SEEDS = (0, 1, 2)
BUDGET = "flops=50%"
SETUP = "a YOLO of 0.31 M parameters (C2f, SPPF, neck, three scales), scenes of 1 to 4 MNIST digits on 64 x 64 pixels"
EPOCHS = {"sparse_epochs": 3.0, "finetune_epochs": 0.0, "distil_epochs": 5.5}
HOW = {"batch": detection.BATCH, "lr": 3e-3, "rate": 1e-2, "least": 4, "feeders": True}


def results(root: Path, seed: int, **options) -> Traced:
    with Run.open(root, {}) as run:
        made = recipe.yolov4_group_sad(
            detection.taught(),
            detection.data()[0],
            [Budget.parse(BUDGET)],
            run,
            seed=seed,
            **{**HOW, **EPOCHS, **options},
        )
        (found,) = list(made)
        return found.subject


@functools.cache
def trained(seed: int) -> dict[str, float]:
    """AP50 after each stage, of the distilled detector and of one that trained as long without its teacher."""

    def compute() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            root, other = Path(folder, "run"), Path(folder, "other")
            cut = results(root, seed, distil_epochs=0)
            shutil.copytree(root, other)
            taught = results(root, seed)
            alone = results(other, seed, finetune_epochs=EPOCHS["distil_epochs"], distil_epochs=0)
            taught.save(detection.CACHE / f"yolov4_group_sad-{seed}")
            dense = detection.taught()
            return {
                "cut": detection.ap50(cut.model),
                "taught": detection.ap50(taught.model),
                "alone": detection.ap50(alone.model),
                "flops": taught.flops() / dense.flops(),
                "params": taught.units().cost()["params"] / dense.units().cost()["params"],
            }

    return lab.remembered(f"yolov4_group_sad-{seed}", compute)


def test_ap50_stays_within_three_points_at_half_the_flops():
    dense = detection.ap50(detection.taught().model)
    rows = [trained(seed) for seed in SEEDS]
    assert all(row["flops"] <= 0.5 for row in rows)
    lab.record(
        "yolov4_group_sad", "half", "AP50 stays within 3 points of the original at half the FLOPs",
        all(dense - row["taught"] <= 0.03 for row in rows),
        ("AP50, pruned and distilled", [row["taught"] for row in rows]), {"AP50, original": [dense] * 3}, lower=False,
        setup=SETUP,
    )  # fmt: skip


def test_distilling_beats_fine_tuning_alone():
    rows = [trained(seed) for seed in SEEDS]
    lab.record(
        "yolov4_group_sad", "distilling", "spatial attention distilling beats as many epochs of fine-tuning alone",
        all(row["taught"] > row["alone"] for row in rows),
        ("AP50, distilled", [row["taught"] for row in rows]),
        {"AP50, fine-tuned alone": [row["alone"] for row in rows]},
        lower=False, setup=f"{SETUP}; {BUDGET}, same cut, same batches, same rates",
    )  # fmt: skip


def test_parameters_fall_more_than_flops_where_deep_groups_lose_most():
    """The paper's 64.7 % against 34.9 %, with the official fractions of its five groups."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, Run.open(folder, {}) as run:
        made = recipe.yolov4_group_sad(
            detection.taught(), detection.data()[0], [Budget.parse("params=36%")], run, dry_run=True, layer_keep=0.12,
            least=2, feeders=True, groups=["stage4", "stage5", "up4", "to4"], fractions=[0.18, 0.5, 0.97, 0.865, 0.68],
        )  # fmt: skip
        (found,) = list(made)
    dense = detection.taught()
    rows = [1 - found.cut.after["params"] / found.cut.before["params"], 1 - found.subject.flops() / dense.flops()]
    lab.singly(
        "yolov4_group_sad", "depth", "parameters fall more than FLOPs with the published fractions", rows[0] > rows[1],
        {"fewer parameters": Figure(rows[0]), "fewer FLOPs": Figure(rows[1])}, setup=f"{SETUP}; params=36%",
    )  # fmt: skip
    assert rows[0] > rows[1]


def test_latency_falls():
    trained(0)
    dense = detection.taught()
    small = reload_traced(detection.CACHE / "yolov4_group_sad-0", dense.model, dense.inputs.fresh()[0][0])
    images = detection.data()[1].inputs[:32]
    dense.model.eval(), small.model.eval()
    with torch.inference_mode():
        times = latency.compare(lambda: dense.model(images), lambda: small.model(images), lasting=15.0)
    speedup = times.speedup
    lab.singly(
        "yolov4_group_sad", "latency", "measured latency falls", (speedup.low or 0) > 1.0,
        {"speedup, batch 32": Figure(speedup.value, speedup.low, speedup.high, "x")}, seeds=[0],
        setup=f"{SETUP}; {BUDGET}, one thread, alternating pairs",
    )  # fmt: skip
    assert (speedup.low or 0) > 1.0


@functools.cache
def sparse(seed: int, switch: float) -> Traced:
    """The detector after 250 steps of sparse training, at a rate that changes after the share `switch` of them."""
    subject, steps = detection.taught().copy(), 250
    feed = slimming.Numbered(examples.batches(detection.data()[0], batch=detection.BATCH, seed=seed), steps)
    objective = recipe.pressure(subject, set(), 3e-2, 0.65, switch, 0.01)
    detection.fit(subject.model, steps, lr=1e-2, seed=seed, objective=objective, batches=feed)
    return subject


def faint(subject: Traced) -> float:
    """Share of scales below a hundredth of the median of the best third, which the variable rate would keep."""
    free = scales.prunable(subject.model, subject.slices())
    found = torch.cat([gamma.detach().abs()[inside] for gamma, inside in free]).sort().values
    return float((found < 0.01 * found[int(0.65 * len(found)) :].median()).float().mean())


SPARSE = (
    "AP50 is far better under every seed; of the 65 % of scales that feel the full rate, all but one in a hundred go"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=SPARSE)
def test_the_variable_rate_costs_less_than_a_constant_one():
    variable, constant = ([detection.ap50(sparse(seed, switch).model) for seed in SEEDS] for switch in (0.4, 1.0))
    shares, others = ([faint(sparse(seed, switch)) for seed in SEEDS] for switch in (0.4, 1.0))
    lab.record(
        "yolov4_group_sad", "variable", "the variable rate leaves a better detector than a constant one, with as many "
        "scales near zero",
        all(a >= b for a, b in zip(variable, constant, strict=True))
        and all(a >= b - 0.02 for a, b in zip(shares, others, strict=True)),
        ("AP50, variable rate", variable),
        {"AP50, constant rate": constant, "share near zero, variable rate": shares,
         "share near zero, constant rate": others},
        lower=False, against=["AP50, constant rate"], setup=f"{SETUP}; 250 steps, rate 0.03", reason=SPARSE,
    )  # fmt: skip


GLOBAL = "sparse training has made the scales of all layers comparable: one threshold finds what is zero"


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=GLOBAL)
def test_a_threshold_per_group_loses_less_than_a_tuned_global_one():
    """No training after the cut. The global threshold has as many trials (its layer floor) as the scan of groups."""
    budget, rows = Budget.parse("params=20%"), dict[str, list[float]]()
    judged = examples.batches(detection.data()[0], batch=detection.BATCH, seed=7).take(4)
    for seed in SEEDS:
        subject = sparse(seed, 0.4)
        places = stages.places(subject.model, detection.data()[0].inputs[:1])
        groups = stages.grouped(places)

        def cut(groups, judge, share, subject=subject, seed=seed):
            masks = partial(thresholds.grouped, share=share, least=4)
            return recipe.settled(subject.copy(), set(), groups, masks, judge, budget, True, seed)[0]

        with tempfile.TemporaryDirectory() as folder, Run.open(folder, {}) as run:
            ours = cut(groups, partial(recipe.rises, run, judged), 0.12)
        trials, tuned = len(set(groups.values())) * (len(recipe.GRID) - 1), []
        for share in np.linspace(0.02, 0.5, trials):
            with contextlib.suppress(InfeasibleError):  # a floor so high that the budget is out of reach
                tuned.append(cut(dict.fromkeys(groups, "all"), partial(recipe.given, [0.9]), share))
        best = min(tuned, key=lambda student: loss(student, judged))
        found = {"one per group, by a scan": ours, f"one for all, the best of {trials} layer floors": best}
        for name, scores in (
            ("L1 norms", magnitude.coupled(subject.slices(), p=1)),
            ("random channels", random.scores(subject.units(), seed)),
        ):
            found[name] = subject.copy().cut(ranking.by_budget(subject.units(), scores, budget), offsets=True)[0]
        for name, student in found.items():
            rows.setdefault(name, []).append(detection.ap50(student.model))
    ours = rows.pop("one per group, by a scan")
    lab.record(
        "yolov4_group_sad", "groups", "a threshold per group loses less AP50 than a tuned global one, norms or chance",
        all(lab.less(row, ours) for row in rows.values()), ("one per group, by a scan", ours), rows, lower=False,
        setup=f"{SETUP}; {budget} after sparse training, constants folded, nothing is trained after the cut",
        reason=GLOBAL,
    )  # fmt: skip


@torch.no_grad()
def loss(student: Traced, batches) -> float:
    student.model.eval()
    return float(torch.stack([student.model.loss(batch) for batch in batches]).mean())
