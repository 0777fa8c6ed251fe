"""Control arms of a finished run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import tiny
from pictures import class_folder
from recipes.vision import nets
from secateur import cli
from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.methods.control import LACKS
from secateur.methods.published_rules import prune
from secateur.recover.sparsity import masks
from secateur.reports import evidence
from secateur.runs import executor, scratch_baseline
from secateur.subjects import open_subject
from secateur.vocabulary import Budget

QUICK = {"epochs": 2, "batch": 24, "lr": 0.05}


@pytest.fixture
def place(tmp_path):
    data = nets.data()
    np.savez(tmp_path / "data.npz", inputs=data.inputs.numpy(), labels=data.labels.numpy())
    return tmp_path


def test_arms_are_added_to_a_run_of_a_network(place):
    model = nets.vgg()
    out = place / "out"
    executor.run("rethinking_pruning_value", model, place / "data.npz", "channels=50%", out, scratch="none", **QUICK)
    (row,) = scratch_baseline.add(out, model, place / "data.npz")
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    for arm in row.baselines.values():
        assert arm["params"].value == row.after["params"].value
        assert 0 <= arm["accuracy"].value <= 1
    assert LACKS in row.cut.notes
    assert evidence.read(out)[0].baselines.keys() == row.baselines.keys()
    assert "scratch-B" in (out / "report.html").read_text()
    assert "accuracy" in (out / "scratch.md").read_text()
    before = [dict(arm) for arm in row.baselines.values()]
    (again,) = scratch_baseline.add(out, model, place / "data.npz")
    assert [{k: v for k, v in arm.items() if k == "accuracy"} for arm in again.baselines.values()] == [
        {k: v for k, v in arm.items() if k == "accuracy"} for arm in before
    ]
    assert again.cut.notes == row.cut.notes


def test_arms_are_measured_on_what_the_run_was(place):
    how = ["rethinking_pruning_value", nets.vgg(), place / "data.npz", "channels=50%"]
    test = nets.data(30, seed=7)
    executor.run(*how, place / "out", scratch="none", held_out=test, **QUICK)
    (row,) = scratch_baseline.add(place / "out", *how[1:3], "E", chance=False, held_out=test)
    assert row.baselines["scratch-E"]["accuracy"].samples == 30
    executor.run(*how, place / "split", scratch="none", **QUICK)
    shutil.rmtree(place / "out/scratch")
    for held_out, folder, told in (
        (None, "out", "quarters: give that as held_out"),
        (test.take(range(20)), "out", "quarters: give that as held_out"),
        (test, "split", "a part of the data: leave held_out out"),
    ):
        with pytest.raises(InputError, match=f"the result channels=50% was measured on {told}"):
            scratch_baseline.add(place / folder, *how[1:3], "E", chance=False, held_out=held_out)
        assert not (place / folder / "scratch").exists(), "nothing is trained for an arm that is refused"
    assert evidence.read(place / "out")[0].baselines == row.baselines


@pytest.mark.wide
def test_arms_read_as_the_run_did_where_the_held_out_part_stands_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),\n"
        "                         nn.Flatten(), nn.Linear(72, 2))\n"
    )
    for part, count in (("train", 16), ("val", 8)):
        class_folder(tmp_path / "photos" / part, count)
    how = ["--size", "16", "--workers", "0", "--epochs", "1", "--batch", "8", "--lr", "0.05", "--scratch", "none"]
    asked = ["run", "rethinking_pruning_value", "net.py:build", "--data", "photos", "--budget", "channels=50%"]
    assert cli.main([*asked, *how, "--out", "out", "--scratch-baseline", "E"]) == 0
    (row,) = evidence.read(tmp_path / "out")
    assert row.settings["held_out"] == "photos/val"
    assert set(row.baselines) == {"scratch-E", "random units"}
    assert row.baselines["scratch-E"]["accuracy"].samples == row.after["accuracy"].samples == 8
    arm = yaml.safe_load((tmp_path / "out/scratch/scratch-E-channels=50%/run.yaml").read_text())
    assert arm["size"] == 16
    assert arm["held_out_sha256"] == row.settings["held_out_sha256"]


@pytest.mark.parametrize("arm", ["scratch-E", "scratch-B", "random units"])
def test_arms_of_single_weights_keep_as_many(tmp_path, arm):
    subject = nets.opened(nets.vgg())
    masked = prune(subject, Budget.parse("weights=30%"), "unstructured")
    masked.student.save(tmp_path / "small")
    removed = {site: list(pair) for site, pair in masked.cut.removed.items()}
    with Run.open(tmp_path / "run", {}) as run:
        (found,) = scratch_baseline.fresh_network(
            subject, nets.data(), [Budget.parse("weights=30%")], run, student=str(tmp_path / "small"),
            removed=removed, arm=arm, **QUICK,
        )  # fmt: skip
    kept = {name: weight != 0 for name, weight in masks.convolutions(found.subject.model).items()}
    assert {n: int(m.sum()) for n, m in kept.items()} == {n: int(m.sum()) for n, m in masked.masks.items()}
    same = all(torch.equal(kept[name], masked.masks[name]) for name in kept)
    assert same == (arm != "random units")
    assert found.recovery.steps == {"scratch-E": 20, "random units": 10}.get(arm, found.recovery.steps)
    assert arm != "scratch-B" or found.recovery.steps > 20


@pytest.mark.wide
def test_arms_are_added_to_a_run_of_a_language_model(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    tiny.folder("llama", tmp_path / "llama")
    place = (tmp_path / "llama", tmp_path / "texts.txt")
    executor.run("ziplm", place[0], place[1], "params=80%", tmp_path / "out", steps=4, trials=0, calibration=16,
                train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    (row,) = scratch_baseline.add(tmp_path / "out", *place)
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    assert row.baselines["scratch-E"]["params"].value == row.after["params"].value
    assert row.baselines["scratch-E"]["perplexity"].value != row.after["perplexity"].value
    stretched = evidence.read(tmp_path / "out" / "scratch" / "scratch-B-params=80%")[0]
    sizes = [open_subject(folder).flops_per_token(16) for folder in (place[0], tmp_path / "out")]
    assert stretched.recovery.steps == int(4 * sizes[0] / sizes[1]) > 4
    assert LACKS in row.cut.notes


def test_random_units_of_another_shape_are_refused():
    subject = nets.opened(nets.vgg())
    small = prune(subject, Budget.parse("channels=50%"), "l1")
    removed = {site: list(pair) for site, pair in small.cut.removed.items()}
    assert scratch_baseline.select_at_random(subject, small.student, removed, 3).model[0].out_channels == 4
    first = next(iter(removed))
    with pytest.raises(UnsupportedError, match="shape"):
        scratch_baseline.select_at_random(subject, small.student, {**removed, first: [1, 8]}, 3)
    with pytest.raises(InputError, match="at once"):
        scratch_baseline.select_at_random(subject, small.student, {**removed, "nowhere": [1, 8]}, 3)
    with pytest.raises(InfeasibleError, match="shape"):
        scratch_baseline.select_at_random(subject, small.student, {**removed, first: [8, 8]}, 3)


def test_a_run_without_training_has_no_control(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    tiny.folder("bert", tmp_path / "bert")
    place = (tmp_path / "bert", tmp_path / "texts.txt")
    executor.run("ziplm", place[0], place[1], "params=85%", tmp_path / "out", steps=0, trials=0, calibration=16,
                train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    with pytest.raises(InputError, match="steps"):
        scratch_baseline.add(tmp_path / "out", *place)
    with pytest.raises(InputError, match="mode"):
        scratch_baseline.add(tmp_path / "out", *place, "F")


def test_arms_are_added_to_a_run_of_a_detector(tmp_path):
    """Trained by the detector's own loss, as long as the run in all its stages, and judged by average precision."""
    (tmp_path / "detector.py").write_text(
        "import yolo\nfrom assets.scenes import scenes\n\n\n"
        "def build():\n    return yolo.Yolo(10, (4, 8, 8, 12, 16))\n\n\n"
        "def data():\n    return scenes(8, size=64, stop=4000)\n"
    )
    model, data = (f"{tmp_path}/detector.py:{name}" for name in ("build", "data"))
    out = tmp_path / "out"
    short = dict(sparse_epochs=1, finetune_epochs=1, distil_epochs=2, batch=4, seed=0, least=2)
    executor.run("yolov8_cwd", model, data, "channels=60%", out, **short)
    (row,) = scratch_baseline.add(out, model, data, "both")
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    assert all(0 <= arm["mAP"].value <= 1 for arm in row.baselines.values())
    assert all(arm["params"].value == row.after["params"].value for arm in row.baselines.values())
    assert "mAP: " in (out / "scratch.md").read_text()
    steps = {
        name: json.loads((out / "scratch" / f"{name}-channels=60%" / "evidence.json").read_text())["results"][0]
        for name in row.baselines
    }
    assert steps["scratch-E"]["recovery"]["steps"] == row.recovery.steps
    assert steps["scratch-B"]["recovery"]["steps"] > steps["scratch-E"]["recovery"]["steps"]
    assert steps["random units"]["recovery"]["steps"] < steps["scratch-E"]["recovery"]["steps"]
