"""YOLOv8 CWD at small scale: a YOLO of 0.3 million parameters on scenes of MNIST digits."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from claims import detection, lab
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.formats import onnx_files
from secateur.measure import latency
from secateur.recipes.vision import yolov8_cwd as recipe
from secateur.recover.sparsity import slimming
from secateur.score import magnitude, random, scales
from secateur.subjects.network.traced import Traced, reload_traced
from secateur.vocabulary import Budget, Figure

pytestmark = [pytest.mark.claim, pytest.mark.timeout(1200)]
SEEDS = (0, 1, 2)
HALF, QUARTER = "flops=50%", "flops=25%"
SETUP = "a YOLO of 0.31 M parameters (C2f, SPPF, neck, three scales), scenes of 1 to 4 MNIST digits on 64 x 64 pixels"
EPOCHS = {"sparse_epochs": 3.0, "finetune_epochs": 1.5, "distil_epochs": 4.5}
HOW = {"batch": detection.BATCH, "lr": 6e-3, "rate": 1e-2, "least": 4}


RICH = {"steps": 4000, "many": 8000}
"""A teacher that has seen four times the scenes, for three times as long: settings by seed 7, which no claim uses."""
RICH_EPOCHS = {"sparse_epochs": 0.75, "finetune_epochs": 0.5, "distil_epochs": 2.0}
SCARCE, PART = 1000, 4000
"""Scenes that are left to recover with, of those the rich teacher has seen: as many steps, so more epochs."""
LONGER = {SCARCE: 1.0, PART: 2.0, RICH["many"]: 1.0}
"""How many times as long the last stage is, by the scenes left: found with seeds 7, 8 and 11, which no claim uses."""


def results(root: Path, seed: int, budget: str, rich: bool = False, scenes: int = RICH["many"], **options) -> Traced:
    epochs = {name: value * RICH["many"] / scenes for name, value in RICH_EPOCHS.items()}
    epochs["distil_epochs"] *= LONGER[scenes]
    with Run.open(root, {}) as run:
        made = recipe.yolov8_cwd(
            detection.taught(**RICH) if rich else detection.taught(),
            detection.data(scenes)[0] if rich else detection.data()[0],
            [Budget.parse(budget)],
            run,
            seed=seed,
            **{**HOW, **(epochs if rich else EPOCHS), **options},
        )
        (found,) = list(made)
        return found.subject


@functools.cache
def distilled(seed: int) -> dict[str, float]:
    """AP50 of the detector at half the FLOPs."""

    def compute() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            taught = results(Path(folder, "run"), seed, HALF)
        taught.save(detection.CACHE / f"yolov8_cwd-{seed}")
        return {"AP50": detection.ap50(taught.model), "flops": taught.flops() / detection.taught().flops()}

    return lab.remembered(f"yolov8_cwd-{seed}", compute)


@functools.cache
def arms(
    seed: int, budget: str = QUARTER, rich: bool = False, scenes: int = RICH["many"]
) -> dict[str, dict[str, float]]:
    """Average precision at a budget: same cut, same fine-tuning, and then as many epochs of each way."""
    ways = [("distilled", {}), ("alone", {"alpha": 0.0})]
    if budget == QUARTER:
        ways.append(("evenly", {"weights": [1.0, 1.0, 1.0]}))

    def compute() -> dict[str, dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "cut")
            results(root, seed, budget, rich, scenes, distil_epochs=0)
            found = {}
            for name, how in ways:
                shutil.copytree(root, Path(folder, name))
                found[name] = detection.sizes(results(Path(folder, name), seed, budget, rich, scenes, **how).model)
            return found

    of = f"-rich-{scenes}" if rich else ""
    return lab.remembered(f"yolov8_cwd-arms-{budget}-{seed}{of}", compute)


def test_ap50_stays_within_three_points_at_half_the_flops():
    dense = detection.ap50(detection.taught().model)
    rows = [distilled(seed) for seed in SEEDS]
    assert all(row["flops"] <= 0.5 for row in rows)
    lab.record(
        "yolov8_cwd", "half", "AP50 stays within 3 points of the original at half the FLOPs",
        all(dense - row["AP50"] <= 0.03 for row in rows),
        ("AP50, pruned and distilled", [row["AP50"] for row in rows]), {"AP50, original": [dense] * 3}, lower=False,
        setup=SETUP,
    )  # fmt: skip


FREE = "a teacher of 2,000 scenes has little to tell: one seed of three gains nothing, at half and at a quarter"
DRAWN = (0, 1, 2, 3, 4, 5, 6, 9, 10)
"""Seeds of the rich teacher: of three the signs differed from processor to processor."""


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("distillation-half", HALF),
        ("distillation", QUARTER),
    ],
)
@pytest.mark.xfail(strict=True, raises=AssertionError, reason=FREE)
def test_distillation_beats_fine_tuning_alone(name, budget):
    """First asked at half the FLOPs, then at a quarter, where the sign of one seed hangs on the processor."""
    ours, others = ([arms(seed, budget)[way] for seed in SEEDS] for way in ("distilled", "alone"))
    lab.record(
        "yolov8_cwd", name, "channel-wise distillation beats as many epochs of fine-tuning alone, by mAP",
        lab.clearly_less([row["mAP"] for row in others], [row["mAP"] for row in ours]),
        ("mAP, distilled", [row["mAP"] for row in ours]),
        {"mAP, fine-tuned alone": [row["mAP"] for row in others], "AP50, distilled": [row["AP50"] for row in ours],
         "AP50, fine-tuned alone": [row["AP50"] for row in others]},
        lower=False, against=["mAP, fine-tuned alone"], reason=FREE,
        setup=f"{SETUP}; {budget}, same cut, same batches, same rates",
    )  # fmt: skip


MUCH = "with all of the teacher's scenes at hand fine-tuning does nearly as well: -0.001 to 0.009 mAP over nine seeds"


@pytest.mark.parametrize("seed", DRAWN)
def test_a_rich_student_learns(seed):
    """One seed each, so that none takes ten minutes; the test below reads what came out."""
    assert arms(seed, HALF, rich=True)["distilled"]["mAP"] > 0.3


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=MUCH)
def test_distillation_beats_fine_tuning_alone_where_the_teacher_knows_more():
    """At half the FLOPs, where a teacher of 2,000 scenes has nothing to tell (`distillation-half`)."""
    rows = [arms(seed, HALF, rich=True) for seed in DRAWN]
    ours, others = ([row[way] for row in rows] for way in ("distilled", "alone"))
    dense = detection.sizes(detection.taught(**RICH).model)
    lab.record(
        "yolov8_cwd", "distillation-rich", "with a teacher of 8,000 scenes channel-wise distillation beats as many "
        "epochs of fine-tuning alone at half the FLOPs, by mAP",
        lab.clearly_less([row["mAP"] for row in others], [row["mAP"] for row in ours]),
        ("mAP, distilled", [row["mAP"] for row in ours]),
        {"mAP, fine-tuned alone": [row["mAP"] for row in others], "mAP, original": [dense["mAP"]] * len(DRAWN),
         "AP50, distilled": [row["AP50"] for row in ours], "AP50, fine-tuned alone": [row["AP50"] for row in others]},
        lower=False, against=["mAP, fine-tuned alone"],
        setup=f"{SETUP}, 8,000 of them; {HALF}, same cut, same batches, same rates, two epochs of each way",
        reason=MUCH, seeds=DRAWN,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scenes", "seed"), [*((SCARCE, seed) for seed in SEEDS), *((PART, seed) for seed in DRAWN[:6])]
)
def test_a_student_of_fewer_scenes_learns(scenes, seed):
    assert arms(seed, HALF, rich=True, scenes=scenes)["distilled"]["mAP"] > 0.3


def test_half_of_the_scenes_keep_ap50_and_distillation_beats_fine_tuning_alone():
    """Both at once, with half of the images that the teacher has seen."""
    rows = [arms(seed, HALF, rich=True, scenes=PART) for seed in DRAWN[:6]]
    ours, others = ([row[way] for row in rows] for way in ("distilled", "alone"))
    dense = detection.sizes(detection.taught(**RICH).model)
    lab.record(
        "yolov8_cwd", "distillation-part", "with 4,000 of the teacher's 8,000 scenes to recover with, AP50 is within 3 "
        "points of the original at half the FLOPs, and channel-wise distillation beats as many epochs of fine-tuning "
        "alone, by mAP, on every seed and clearly",
        all(dense["AP50"] - one["AP50"] <= 0.03 for one in ours)
        and all(one["mAP"] > other["mAP"] for one, other in zip(ours, others, strict=True))
        and lab.clearly_less([row["mAP"] for row in others], [row["mAP"] for row in ours]),
        ("mAP, distilled", [row["mAP"] for row in ours]),
        {"mAP, fine-tuned alone": [row["mAP"] for row in others], "mAP, original": [dense["mAP"]] * len(ours),
         "AP50, distilled": [row["AP50"] for row in ours], "AP50, fine-tuned alone": [row["AP50"] for row in others],
         "AP50, original": [dense["AP50"]] * len(ours)},
        lower=False, against=["mAP, fine-tuned alone"],
        setup=f"{SETUP}; {HALF}, all stages on 4,000 scenes, same cut, same batches, same rates, 8 epochs of each way",
        seeds=DRAWN[:6],
    )  # fmt: skip


def test_distillation_beats_fine_tuning_alone_where_few_scenes_are_left():
    """As most have it who are handed a checkpoint: few of the images that it has seen."""
    rows = [arms(seed, HALF, rich=True, scenes=SCARCE) for seed in SEEDS]
    ours, others = ([row[way] for row in rows] for way in ("distilled", "alone"))
    dense = detection.sizes(detection.taught(**RICH).model)
    lab.record(
        "yolov8_cwd", "distillation-scarce", "with 1,000 of the teacher's 8,000 scenes to recover with, channel-wise "
        "distillation beats as many epochs of fine-tuning alone at half the FLOPs, by mAP, on every seed and clearly",
        all(one["mAP"] > other["mAP"] for one, other in zip(ours, others, strict=True))
        and lab.clearly_less([row["mAP"] for row in others], [row["mAP"] for row in ours]),
        ("mAP, distilled", [row["mAP"] for row in ours]),
        {"mAP, fine-tuned alone": [row["mAP"] for row in others], "mAP, original": [dense["mAP"]] * len(SEEDS),
         "AP50, distilled": [row["AP50"] for row in ours], "AP50, fine-tuned alone": [row["AP50"] for row in others]},
        lower=False, against=["mAP, fine-tuned alone"],
        setup=f"{SETUP}; {HALF}, all stages on 1,000 scenes, same cut, same batches, same rates, 16 epochs of each way",
    )  # fmt: skip


def test_small_and_medium_boxes_gain_most():
    """With weights that favour the finer scales; beside it, equal weights."""

    def gain(name: str, size: str) -> list[float]:
        return [arms(seed)[name][f"mAP_{size}"] - arms(seed)["alone"][f"mAP_{size}"] for seed in SEEDS]

    finer = [(a + b) / 2 for a, b in zip(gain("distilled", "small"), gain("distilled", "medium"), strict=True)]
    even = [(a + b) / 2 for a, b in zip(gain("evenly", "small"), gain("evenly", "medium"), strict=True)]
    large = gain("distilled", "large")
    lab.record(
        "yolov8_cwd", "sizes", "distillation gains at least as much mAP on small and medium boxes as on large ones",
        lab.less(large, finer), ("gain, small and medium", finer),
        {"gain, large": large, "gain, small and medium, equal weights": even}, lower=False, against=["gain, large"],
        setup=f"{SETUP}; {QUARTER}; gains over as many epochs of fine-tuning alone",
    )  # fmt: skip


def test_latency_falls_and_onnx_is_equal(tmp_path):
    distilled(0)
    dense = detection.taught()
    small = Traced(results_again(), dense.inputs)
    images = detection.data()[1].inputs[:32]
    dense.model.eval(), small.model.eval()
    with torch.inference_mode():
        times = latency.compare(lambda: dense.model(images), lambda: small.model(images), lasting=15.0)
    onnx_files.write_module(small.model, (images,), {}, tmp_path / "model.onnx")
    speedup = times.speedup
    lab.singly(
        "yolov8_cwd", "latency", "measured latency falls", speedup.value > 1.0 and (speedup.low or 0) > 1.0,
        {"speedup, batch 32": Figure(speedup.value, speedup.low, speedup.high, "x")}, seeds=[0],
        setup=f"{SETUP}; {HALF}, one thread, alternating pairs; the ONNX file gives the same outputs",
    )  # fmt: skip
    assert speedup.value > 1.0


@functools.cache
def pressed(seed: int, pushed: bool) -> Traced:
    """The detector after four epochs, with or without the penalty on scales, at a rate high enough to move them."""
    subject, steps = detection.taught().copy(), 250
    feed = slimming.Numbered(examples.batches(detection.data()[0], batch=detection.BATCH, seed=seed), steps)
    objective = recipe.pressure(subject, HOW["rate"], "decay", 0.0) if pushed else None
    detection.fit(subject.model, steps, lr=1e-2, seed=seed, objective=objective, batches=feed)
    return subject


def near_zero(subject: Traced) -> float:
    """Share of scales below a tenth of the largest."""
    free = scales.prunable(subject.model, subject.slices())
    found = torch.cat([gamma.detach().abs()[inside] for gamma, inside in free])
    return float((found < 0.1 * found.max()).float().mean())


COST = "one seed of three loses more than 3 points: 250 steps are few to push 65 % of the scales to zero"


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=COST)
def test_sparsity_training_empties_scales_at_little_cost():
    pushed, plain = ([near_zero(pressed(seed, how)) for seed in SEEDS] for how in (True, False))
    scores, others = ([detection.ap50(pressed(seed, how).model) for seed in SEEDS] for how in (True, False))
    cost = [other - score for score, other in zip(scores, others, strict=True)]
    lab.record(
        "yolov8_cwd", "sparsity", "sparsity training brings scales near zero, for at most 3 points of AP50",
        all(a > b for a, b in zip(pushed, plain, strict=True)) and max(cost) <= 0.03,
        ("share of scales near zero", pushed),
        {"the same training without the penalty": plain, "AP50 that it costs": cost},
        lower=False, against=["the same training without the penalty"], reason=COST,
        setup=f"{SETUP}; 250 steps, rate 0.01",
    )  # fmt: skip


def test_scales_after_sparsity_training_rank_best_before_fine_tuning():
    rows: dict[str, list[float]] = {}
    for seed in SEEDS:
        for name, how, score in (
            ("scales after sparsity training", True, None),
            ("scales without it", False, None),
            ("L1 norms", False, "l1"),
            ("random channels", False, "random"),
        ):
            subject, budget = pressed(seed, how), Budget.parse("channels=80%")
            units = subject.units()
            if score is None:
                selection = recipe.halve(subject, budget, "local", 4, 1)[2]
            else:
                given = magnitude.coupled(subject.slices(), p=1) if score == "l1" else random.scores(units, seed)
                selection = recipe.select(units, given, budget, "local", 4)
            student, _ = subject.cut(selection)
            rows.setdefault(name, []).append(detection.ap50(student.model))
    ours = rows.pop("scales after sparsity training")
    lab.record(
        "yolov8_cwd", "ranking", "scales after sparsity training rank channels best: AP50 right after the cut",
        all(lab.less(row, ours) for row in rows.values()), ("scales after sparsity training", ours), rows, lower=False,
        setup=f"{SETUP}; 250 steps, rate 0.01; 80 % of every layer's channels stay, nothing is trained after the cut",
    )  # fmt: skip


def test_half_of_every_layer_is_a_quarter_of_the_parameters():
    with tempfile.TemporaryDirectory() as folder, Run.open(folder, {}) as run:
        made = recipe.yolov8_cwd(
            detection.taught(), detection.data()[0], [Budget.parse("channels=50%")], run, least=1, dry_run=True
        )
        (found,) = list(made)
    fewer = 1 - found.cut.after["params"] / found.cut.before["params"]
    lab.singly(
        "yolov8_cwd", "quarter", "half of every layer's channels is 70 to 77 % of the parameters",
        0.70 <= fewer <= 0.77,
        {"fewer parameters": Figure(fewer)}, setup=SETUP,
    )  # fmt: skip
    assert 0.70 <= fewer <= 0.77


def results_again() -> torch.nn.Module:
    dense = detection.taught()
    return reload_traced(detection.CACHE / "yolov8_cwd-0", dense.model, dense.inputs.fresh()[0][0]).model
