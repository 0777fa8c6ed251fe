"""A folder of photographs goes through a run: cut, judged on every class, resumed, repeated from its run.yaml."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import secateur
from pictures import class_folder
from secateur.errors import DataError
from secateur.runs import cutting, executor, measuring

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    class_folder(tmp_path / "photos", 24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(out="half", **how):
    return executor.run(cutting.prune, "net.py:build", "photos", "channels=50%", out, **how)


def test_a_folder_of_photographs_is_cut_judged_and_resumed(here):
    (row,) = cut(transform="imagenet", size=16, workers=1)
    assert "accuracy" in row.after
    record = yaml.safe_load((here / "half" / "run.yaml").read_text())
    assert record["transform"] == "imagenet"
    assert record["size"] == 16
    assert record["split"] == "by class, what validates too"
    assert record["class_names"] == ["a", "b"]
    assert record["workers"] == 1
    before = (here / "half" / "evidence.json").read_bytes()
    cut(transform="imagenet", size=16)
    assert (here / "half" / "evidence.json").read_bytes() == before
    assert "class_names" in json.dumps(json.loads(before))
    again = cutting.configured(here / "half" / "run.yaml", {"out": "again"})
    assert (again["transform"], again["size"], again["workers"]) == ("imagenet", 16, 1)


def test_a_network_is_measured_on_the_held_out_part_with_the_classes_of_the_other(here):
    class_folder(here / "apart" / "train", 8)
    class_folder(here / "both", 6)
    shutil.copytree(here / "both" / "b", here / "apart" / "val" / "b")  # by itself, b would be the first class
    shutil.copytree(here / "both" / "b", here / "whole" / "b")
    (here / "whole" / "a").mkdir()
    right, found = (measuring.measure("net.py:build", data=data, size=16, batch=4) for data in ("whole", "apart"))
    assert found["model"]["accuracy"] == right["model"]["accuracy"]
    assert found["model"]["accuracy"].samples == 3
    note = "quality is measured on apart/val, the held-out part of the data: 3 examples"
    assert note in found.notes
    assert note not in right.notes


@pytest.mark.wide
def test_the_record_of_a_run_names_the_held_out_folder_so_that_it_repeats(here):
    for part in ("train", "val"):
        class_folder(here / "apart" / part, 8)
    executor.run(cutting.prune, "net.py:build", "apart", "channels=50%", "half", size=16)
    again = cutting.configured(here / "half" / "run.yaml", {"out": "again"})
    assert again["held_out"] == "apart/val"
    executor.run(cutting.prune, **again)
    first, second = (yaml.safe_load((here / out / "run.yaml").read_text()) for out in ("half", "again"))
    assert first == second


def test_a_folder_of_unequal_images_without_a_word_is_refused_before_anything_is_written(here):
    with pytest.raises(DataError, match="photos holds images of unequal sizes"):
        cut()
    assert not (here / "half").exists()


def test_a_training_set_of_photographs_is_pruned_by_a_model(here):
    (result,) = secateur.prune_data(
        "photos", "examples=50%", "kept", score="el2n", model="net.py:build", size=16, workers=0, runs=1, epochs=1
    )
    assert len(result.subject.kept) == 12
