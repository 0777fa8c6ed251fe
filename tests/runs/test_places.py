"""Folders that hold something else than a model: each command says what it is, and what to give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
import tiny
from secateur.errors import InputError, ModelError
from secateur.runs import cutting, executor, memory_plan, places
from secateur.subjects import open_traced

CASES = {
    "several": r"several has no config.json and holds models in folders of their own: "
    r"give one of them, such as several/weights=50%",
    "elastic": r"elastic has no config.json and holds .*: "
    r"give one of them, such as elastic/params=60% or elastic/elastic",
    "gguf": r"gguf has no config.json and holds a GGUF file: give the file, gguf/model.gguf",
    "network": r"network holds a network that was cut \(cut.json\), and not a language model: "
    r"use a recipe on networks, or `secateur prune`",
    "none": r"none is no model folder",
}
"""Folder -> what every command on language models says of it."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of each case, without what makes them large."""
    monkeypatch.chdir(tmp_path)
    for name in ("several/weights=50%", "several/weights=70%", "elastic/params=60%", "elastic/elastic"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "elastic/elastic/elastic.json").write_text("{}")
    for folder, file in (("gguf", "model.gguf"), ("several", "evidence.json"), ("none", "run.yaml")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_text("")
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    open_traced(network, torch.rand(2, 4)).save(tmp_path / "network")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(40)))
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_each_command_says_what_a_folder_holds(folders, name):
    with pytest.raises(ModelError, match=CASES[name]):
        secateur.run("magnitude", name, "texts.txt", "weights=50%", "out")
    assert not Path("out").exists()
    if name == "network":  # which these two take
        return
    for command in (lambda: secateur.export(name, "int8"), lambda: secateur.measure(name)):
        with pytest.raises(ModelError, match=CASES[name]):
            command()


def test_what_may_be_a_model_is_left_alone(folders):
    for source in ("several/weights=50%", "owner/name", "net.py:build", "nowhere", nn.ReLU()):
        places.refuse_other(source)
    places.refuse_other("network", networks=True)


@pytest.mark.parametrize("command", ["prune", "inspect", "estimate"])
def test_commands_on_networks_and_plans_say_so_too(folders, command):
    call = {
        "prune": lambda: executor.run(cutting.prune, "several", None, "params=50%", "out"),
        "inspect": lambda: secateur.inspect("several"),
        "estimate": lambda: memory_plan.estimate("several"),
    }[command]
    with pytest.raises(ModelError, match=CASES["several"]):
        call()


def test_the_folder_of_an_elastic_run_names_its_elastic_model(folders):
    with pytest.raises(
        InputError, match=re.escape("elastic is the folder of a run: give its elastic model, elastic/elastic")
    ):
        secateur.extract("elastic", "params=70%", "out")
