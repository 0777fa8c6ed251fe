"""Every recipe that trains, in two processes: the loss curve of one process with the same global batch, one set of files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import processes
import tiny
import toys
import yolo
from recipes.vision import nets
from secateur import recipes
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.runs import keywords
from secateur.subjects import open_subject, open_traced
from secateur.subjects.network import detectors
from secateur.vocabulary import Budget

SMALL = {"length": 16, "train_batch": 4}
QUICK = {"batch": 8, "epochs": 1.0}
Toy = tuple[Any, Any, str, dict[str, Any]]


def language(kind: str, budget: str, **options: Any) -> Toy:
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    return subject, texts.read(tiny.chains(200)), budget, {**SMALL, **options}


def network(budget: str, model: nn.Module | None = None, **options: Any) -> Toy:
    return nets.opened(model or nets.vgg()), nets.data(64), budget, {**QUICK, **options}


def detector(**options: Any) -> Toy:
    images = yolo.squares(8)
    stages = dict.fromkeys(("sparse_epochs", "finetune_epochs", "distil_epochs"), 1.0)
    return detectors.open_detector(yolo.tiny(), images.inputs[:1]), images, "channels=60%", {"batch": 2, **stages, **options}


def plain() -> nn.Module:
    """No batch norm, whose statistics would be those of one process's part of the batch."""
    torch.manual_seed(0)
    inner = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*inner, nn.Flatten(), nn.Linear(128, 4))


TOYS: Mapping[str, Callable[[], Toy]] = {
    "minitron": lambda: language("llama", "params=75%", steps=4, short_steps=2, candidates=2, calibration=32),
    "ziplm": lambda: language("bert", "params=75%", steps=4, calibration=32, trials=4, judged=16),
    "romanian_distilberts": lambda: language("masked", "params=80%", steps=4),
    "ast": lambda: language("llama", "pattern=2:4", steps=6, refresh=2, slorb=8),
    "slimmoe": lambda: language("mixtral", "params=70%", steps=6, calibration=16, stages="2"),
    "otov3": lambda: network("channels=60%"),
    "consensus_polarization": lambda: network("channels=60%", plain()),
    "gpusq_vit": lambda: network("pattern=2:4", nets.vit(), quantise_epochs=1.0, least=8, calibration="entropy"),
    "rethinking_pruning_value": lambda: network("channels=60%", epochs=2, scratch="E"),
    "nd_loss": lambda: network("channels=60%"),
    "yolov4_group_sad": lambda: detector(layer_keep=0.0, least=2, fractions=(0.5,) * 7),
    "yolov8_cwd": lambda: detector(least=2),
}
WHOLE = ("consensus_polarization",)
"""What is a mean over the whole batch: one process has batches of twice the size in place of two micro-batches."""


def run(name: str, toy: Toy, folder: Path, *, together: bool) -> dict[str, Any]:
    """What a run found, and its files."""
    torch.manual_seed(0)
    subject, data, budget, options = toy
    if name in WHOLE and not together:
        options = {**options, "batch": 2 * options["batch"]}
    options = {**options, "training": f"accumulate={1 if together or name in WHOLE else 2}"}
    function = recipes.find(name)
    with Run.open(folder, {}, shared=True) as directory:
        checked = keywords.check_options(function, options)
        (result,) = function(subject, data, [Budget.parse(budget)], directory, **checked)
    assert result.recovery is not None
    weights = {key: value for key, value in result.subject.model.state_dict().items() if value.is_floating_point()}
    losses = dict(result.recovery.losses)
    return {"losses": losses, "removed": result.cut.removed, "weights": weights, "steps": result.recovery.steps}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("name", TOYS)
def test_two_processes_train_as_one_with_the_same_global_batch(name: str, tmp_path: Path) -> None:
    toy = TOYS[name]()

    def work() -> None:
        torch.save(run(name, toy, tmp_path / "two", together=True), tmp_path / os.environ["RANK"])

    processes.both(work)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    alone = run(name, toy, tmp_path / "one", together=False)
    assert first["steps"] == alone["steps"] > 1
    assert first["removed"] == second["removed"] == alone["removed"]
    for step, loss in alone["losses"].items():
        assert math.isfinite(loss)
        assert first["losses"][step] == second["losses"][step] == pytest.approx(loss, rel=1e-5), step
    assert all(torch.equal(weight, second["weights"][key]) for key, weight in first["weights"].items())
    assert files(tmp_path / "two") == files(tmp_path / "one")
