"""What `prune-data` left, as data of other commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import secateur
import tiny
from secateur.data import texts
from secateur.errors import DataError, InputError
from secateur.runs import sources
from secateur.runs.backends.dataset import read_rows
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network

BUILD = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def places(tmp_path):
    tiny.training_set(tmp_path)
    (tmp_path / "net.py").write_text(BUILD)
    rows = [{"text": " ".join(["w"] * (1 + i % 9)) + f" {i}", "label": "ab"[i % 2]} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_an_index_is_opened_again_by_its_place_alone(places, monkeypatch, capsys):
    monkeypatch.chdir(places)
    (cut,) = secateur.prune_data("data.npz", "examples=50%", "out", score="random", seed=3)
    found = secateur.open_index("out/examples=50%")
    assert found.kept.tolist() == cut.subject.kept.tolist()
    assert found.scores["random"].tolist() == cut.subject.scores["random"].tolist()
    assert found.data.digest == cut.subject.data.digest
    summary = secateur.inspect("out/examples=50%")
    assert (summary["model"], summary["kind"]) == ("30 of 60 examples of data.npz", "examples")
    assert summary["cost"]["examples"] == 30
    assert summary["scores"]["random"][0] == found.scores["random"][found.kept].min()
    with pytest.raises(InputError, match=r"data.npz is no index: give a folder or an index.npz that prune-data wrote"):
        sources.open_index("data.npz")


def test_an_index_is_data(places, monkeypatch):
    """For every command, by the folder or the file that `prune-data` wrote, and for `prune-data` itself."""
    monkeypatch.chdir(places)
    (first,) = secateur.prune_data("data.npz", "examples=50%", "out", seed=3)
    for index in ("out/examples=50%", places / "out" / "examples=50%" / "index.npz", first.subject):
        found = Network().read(index)
        assert torch.equal(found.inputs, first.subject.data.inputs)
        assert torch.equal(found.labels, first.subject.data.labels)
    (nested,) = secateur.prune_data("out/examples=50%", "examples=20%", "less")
    assert nested.cut.removed["examples"] == (24, 30)
    again = Network().read("less/examples=20%")
    assert torch.equal(again.inputs, nested.subject.data.inputs)
    rows = {tuple(row) for row in first.subject.data.inputs.flatten(1).tolist()}
    assert {tuple(row) for row in again.inputs.flatten(1).tolist()} < rows
    row = secateur.distill("net.py:build", "net.py:build", "less/examples=20%", "small", steps=2, batch=2)
    assert row.settings["data"] == "less/examples=20%"
    monkeypatch.chdir(places / "out")
    assert len(Network().read("examples=50%")) == 30, "a path that was relative is looked for beside the run"


def test_what_is_packed_beside_an_index_is_read_there(places, monkeypatch):
    monkeypatch.chdir(places)
    (first,) = secateur.prune_data("data.npz", "examples=50%", "out", seed=3)
    first.subject.save("out/examples=50%", packed=True)
    (places / "data.npz").unlink()
    assert Network().read("out/examples=50%").digest == first.subject.data.digest
    first.subject.data.take([0]).save("out/examples=50%/examples.npz")
    with pytest.raises(DataError, match="give the data that it was made of, or all of the examples that it keeps"):
        Network().read("out/examples=50%")


def test_an_index_of_texts_is_data_however_they_were_read(places, monkeypatch):
    monkeypatch.chdir(places)
    (cut,) = secateur.prune_data("rows.jsonl", "examples=20%", "out", balanced=True)
    found = Language().read("out/examples=20%")
    everything = texts.read("rows.jsonl")
    assert list(found.texts) == [everything.texts[place] for place in cut.subject.kept]
    assert found.labels is not None


def test_a_run_in_place_of_its_index_is_told(places, monkeypatch):
    monkeypatch.chdir(places)
    secateur.prune_data("data.npz", ["examples=50%", "examples=20%"], "out")
    secateur.prune_data("rows.jsonl", "words=50%", "spoken")
    words = "out is a run, whose indices stand in its folders: give one, such as out/examples=20%"
    for read in (Network().read, Language().read, read_rows):
        with pytest.raises(DataError, match=f"^{words}$"):
            read("out")
    with pytest.raises(DataError, match="such as spoken/words=50%"):
        read_rows("spoken")


def test_an_index_that_can_not_be_used_is_refused(places, monkeypatch):
    monkeypatch.chdir(places)
    secateur.prune_data("data.npz", "examples=50%", "out")
    index = places / "out" / "examples=50%"
    (places / "data.npz").rename(places / "moved.npz")
    with pytest.raises(DataError, match=r"index.npz is of the data data.npz: there is no data at data.npz"):
        Network().read(index)
    (places / "bare.npz").rename(places / "data.npz")
    with pytest.raises(DataError, match=r"is an index of data.npz, 60 examples of digest .*: give the data that it"):
        Network().read(index)
    (places / "out" / "run.yaml").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"run.yaml does not say what data .*index.npz is of"):
        Network().read(index)
    (places / "out" / "run.yaml").unlink()
    with pytest.raises(DataError, match=r"stands in no run directory"):
        Network().read(index)
    (places / "index.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"stands in no run directory"):
        Network().read(places / "index.npz")


def test_an_index_of_images_holds_whatever_inputs_they_become(tmp_path, monkeypatch):
    """`prune-data --size 8` says which images stay; who reads them next says how they become inputs."""
    draw = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (9 + number, 9, 3), np.uint8)).save(file)
    (tmp_path / "net.py").write_text(BUILD.replace("nn.Linear(4,", "nn.Linear(3 * 8 * 8,"))
    monkeypatch.chdir(tmp_path)
    (first,) = secateur.prune_data("photos", "examples=50%", "out", score="el2n", model="net.py:build", size=8, runs=1,
                                   epochs=1)  # fmt: skip
    found = Network().read("out/examples=50%")
    assert torch.equal(found.labels, first.subject.data.labels)
    assert (found.inputs.keys() == first.subject.data.inputs.keys()).all()
    (nested,) = secateur.prune_data("out/examples=50%", "examples=34%", "less")
    assert nested.cut.removed["examples"] == (4, 6)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "photos" / "a" / "0.png")
    with pytest.raises(DataError, match="give the data that it was made of"):
        Network().read("out/examples=50%")
