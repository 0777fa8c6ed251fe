"""YOLOv8 CWD at small scale: a YOLO of 0.3 million parameters on scenes of MNIST digits."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from claims import detection, lab
from secateur.files.rundir import Run
from secateur.measure import latency
from secateur.recipes.vision import yolov8_cwd as recipe
from secateur.score import magnitude, random
from secateur.subjects import onnxing
from secateur.subjects.traced import Traced
from secateur.vocabulary import Budget, Figure

pytestmark = [pytest.mark.claim, pytest.mark.timeout(1200)]
SEEDS = (0, 1, 2)
BUDGET = "flops=50%"
SETUP = "a YOLO of 0.31 M parameters (C2f, SPPF, neck, three scales), scenes of 1 to 4 MNIST digits on 64 x 64 pixels"
EPOCHS = {"sparse_epochs": 3.0, "finetune_epochs": 1.5, "distil_epochs": 4.0}
HOW = {"batch": detection.BATCH, "lr": 3e-3, "rate": 1e-2, "least": 4}


def results(root: Path, seed: int, **options) -> Traced:
    with Run.open(root, {}) as run:
        made = recipe.yolov8_cwd(
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
def stages(seed: int) -> dict[str, float]:
    """AP50 after each stage, of the distilled detector and of one that trained as long without its teacher."""

    def compute() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            root, other = Path(folder, "run"), Path(folder, "other")
            cut = results(root, seed, finetune_epochs=0, distil_epochs=0)
            tuned = results(root, seed, distil_epochs=0)
            shutil.copytree(root, other)
            taught, alone = results(root, seed), results(other, seed, alpha=0.0)
            taught.save(detection.CACHE / f"yolov8_cwd-{seed}")
            sizes = {f"{name} {size}": value for name, one in (("taught", taught), ("alone", alone))
                     for size, value in detection.sizes(one.model).items()}  # fmt: skip
            near = json.loads((root / "work" / "scales.json").read_text())
            return {
                "cut": detection.ap50(cut.model), "tuned": detection.ap50(tuned.model),
                "taught": detection.ap50(taught.model), "alone": detection.ap50(alone.model),
                "flops": taught.flops() / detection.taught().flops(), "before": near["before"]["near_zero"],
                "after": near["after"]["near_zero"], **sizes,
            }  # fmt: skip

    return lab.remembered(f"yolov8_cwd-{seed}", compute)


def test_ap50_stays_within_three_points_at_half_the_flops():
    dense = detection.ap50(detection.taught().model)
    rows = [stages(seed) for seed in SEEDS]
    assert all(row["flops"] <= 0.5 for row in rows)
    lab.record(
        "yolov8_cwd", "half", "AP50 stays within 3 points of the original at half the FLOPs",
        all(dense - row["taught"] <= 0.03 for row in rows),
        ("AP50, pruned and distilled", [row["taught"] for row in rows]), {"AP50, original": [dense] * 3}, lower=False,
        setup=SETUP,
    )  # fmt: skip


def test_distillation_beats_fine_tuning_alone():
    rows = [stages(seed) for seed in SEEDS]
    lab.record(
        "yolov8_cwd", "distillation", "channel-wise distillation beats as many epochs of fine-tuning alone",
        all(row["taught"] > row["alone"] for row in rows),
        ("AP50, distilled", [row["taught"] for row in rows]), {"AP50, fine-tuned alone": [row["alone"] for row in rows]},
        lower=False, setup=f"{SETUP}; {BUDGET}, same cut, same batches, same rates",
    )  # fmt: skip


def test_latency_falls_and_onnx_is_equal(tmp_path):
    stages(0)
    dense = detection.taught()
    small = Traced(results_again(), dense.inputs)
    images = detection.data()[1].inputs[:32]
    dense.model.eval(), small.model.eval()
    with torch.inference_mode():
        times = latency.compare(lambda: dense.model(images), lambda: small.model(images), lasting=15.0)
    onnxing.write_module(small.model, (images,), {}, tmp_path / "model.onnx")
    speedup = times.speedup
    lab.singly(
        "yolov8_cwd", "latency", "measured latency falls", speedup.value > 1.0 and (speedup.low or 0) > 1.0,
        {"speedup, batch 32": Figure(speedup.value, speedup.low, speedup.high, "x")}, seeds=[0],
        setup=f"{SETUP}; {BUDGET}, one thread, alternating pairs; the ONNX file gives the same outputs",
    )  # fmt: skip
    assert speedup.value > 1.0


def results_again() -> torch.nn.Module:
    from secateur.subjects.traced import reload_traced

    dense = detection.taught()
    return reload_traced(detection.CACHE / "yolov8_cwd-0", dense.model, dense.inputs.fresh()[0][0]).model
