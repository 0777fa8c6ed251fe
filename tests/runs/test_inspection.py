"""Looking at a network before pruning it: from Python, and through the command line with good and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from recipes.vision.nets import blocks
from secateur.cli import inspect as command
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.runs import executor, inspection
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection
from subjects import nets
from subjects.nets import Blocks

CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6)

def bare():
    return build()[0]

def fails():
    raise RuntimeError("no\\nweights")

def number():
    return 3

value = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sites_members_shares_and_reasons() -> None:
    model, inputs = nets.make("residual")
    found = inspection.inspect(model, inputs=inputs)
    assert found["kind"] == "network"
    sites = {site["name"]: site for site in found["sites"]}
    assert sites["stem.channels"]["units"] == 12
    assert {"outer.weight[0]", "scale[0]", "bn.running_mean[0]"} <= set(sites["stem.channels"]["members"])
    assert 0 < sites["inner.channels"]["share"]["params"] < 1
    assert any(row["axes"][0] == "head.weight[0]" and "output" in row["reason"] for row in found["stays"])
    assert found["cost"]["params"] == sum(p.numel() for p in model.parameters())
    assert found["cost"]["flops"] > 0
    assert json.dumps(found)


def test_a_budget_says_what_would_go_and_leaves_the_subject_alone() -> None:
    subject = open_traced(*nets.make("residual"))
    found = inspection.inspect(subject, budget="channels=50%")
    assert sum(found["kept"].values()) == 14
    assert found["after"]["channels"] == 14
    assert found["after"]["params"] < 0.6 * found["cost"]["params"]
    assert found["after"]["flops"] < found["cost"]["flops"]
    assert subject.units().cost()["channels"] == 28


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"budget": "segments=50%"}, "no segment of this Sequential can be erased"),
        ({"budget": "segments=50%", "score": "l2"}, "segments go by magnitude, as `otov3` says beforehand; score='l2'"),
        ({"budget": "segments=50%,channels=50%"}, "as `otov3` says beforehand; give them alone"),
        ({"seed": -1}, "seed=-1 is not a whole number of at least 0 and below 2**63"),
        ({"multiple": 0}, "multiple=0: give a whole number of at least 1"),
        ({"multiple": -4, "budget": "channels=50%"}, "multiple=-4: give a whole number of at least 1"),
    ],
)
def test_what_can_not_be_looked_at_is_refused_in_one_line(place: Path, capsys, asked: dict, words: str) -> None:
    flags = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    assert cli.main(["inspect", "net.py:build", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.strip().count("\n") == 0


def test_what_would_go_is_by_the_score_that_is_asked_for() -> None:
    model, inputs = nets.make("residual")
    with torch.no_grad():
        for weight in (model.inner.weight, model.inner.bias):
            weight.mul_(1e-3)
        model.outer.weight.mul_(1e-3)
    asked = {"inputs": inputs, "budget": "channels=60%", "scope": "global"}
    small = inspection.inspect(model, score="l2", **asked)["kept"]
    equal = inspection.inspect(model, score="l2", normalise="l2", **asked)["kept"]
    assert small["inner.channels"] == 4  # all twelve of both sites that go, for they are the weakest
    assert equal["inner.channels"] > 4
    held = inspection.inspect(model, score="l2", protect=["stem.channels"], inputs=inputs, budget="channels=70%")
    assert held["kept"].get("stem.channels", 12) == 12
    assert held["kept"]["inner.channels"] < 12
    drawn = [inspection.inspect(model, score="random", seed=seed, picture=None, **asked)["after"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match="is measured on data"):
        inspection.inspect(model, score="taylor", **asked)


def test_segments_that_may_be_erased_and_why_others_may_not() -> None:
    model, inputs = nets.make("residual")
    found = {one["name"]: one for one in inspection.inspect(model, inputs=inputs)["segments"]}
    (whole,) = [one for one in found.values() if not one["stays"]]
    assert whole["name"] == "inner..scale"
    parts = [*model.inner.parameters(), *model.outer.parameters(), model.scale]
    assert whole["params"] == sum(part.numel() for part in parts)
    assert "output" in found["head"]["stays"]


def pale(picture: Path) -> list[str | None]:
    """What stands on the boxes that would go."""
    svg = "{http://www.w3.org/2000/svg}"
    groups = ElementTree.fromstring(picture.read_text("utf-8")).iter(f"{svg}g")
    return [group.find(f"{svg}text").text for group in groups if group.get("class") == "box off"]


def test_what_otov3_would_erase_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = blocks()
    with torch.no_grad():  # what the search must pass over: without both, no way is left
        for part, size in ((subject.model.left, 1e-3), (subject.model.right, 2e-3), (subject.model.two, 3e-3)):
            for parameter in part.parameters():
                parameter.mul_(size)
    found = inspection.inspect(subject, budget="segments=50%", picture=tmp_path / "net.svg")
    assert [one["name"] for one in found["segments"] if one["goes"] == "erased"] == [
        "left.0..left.1",
        "two.0.0..two.2.1",
    ]
    selection = Selection({"segments": torch.tensor([True, False, True, False])})
    small, cut = subject.cut(selection)
    assert found["kept"] == {"segments": 2}
    assert found["cost"]["segments"] == 4
    assert found["after"] == {**cut.after, "channels": small.units().cost()["channels"]}
    assert json.dumps(found)
    assert pale(tmp_path / "net.svg") == ["left.0", "two.0.0", "two.2.0"]
    assert "What can be erased, and its parameters" in (tmp_path / "net.svg").read_text("utf-8")
    with pytest.raises(InfeasibleError, match="would change nothing"):
        inspection.inspect(subject, budget="segments=100%")
    command._print_network(found, None)
    shown = capsys.readouterr().out
    assert "goes (erased): left.0..left.1" in shown
    assert "may be erased whole: right.0..right.1" in shown
    assert "Segments: 4 -> 2" in shown


def test_what_only_feeds_an_erased_part_is_drawn_as_going_too(tmp_path: Path) -> None:
    subject = open_traced(Blocks(), torch.randn(2, 5, 8))
    with torch.no_grad():
        subject.model.one.out.weight.mul_(1e-3)
    found = inspection.inspect(subject, budget="segments=75%", picture=tmp_path / "net.svg")
    assert {one["name"]: one["goes"] for one in found["segments"] if one["goes"]}["one.out"] == "erased"
    assert set(pale(tmp_path / "net.svg")) == {"one.norm", "one.q", "one.k", "one.v", "attention", "one.out"}


def test_pictures_are_files_of_their_own(tmp_path: Path) -> None:
    subject = open_traced(*nets.make("grouped queries"))
    inspection.inspect(subject, budget="channels=50%", picture=tmp_path / "deep" / "net.svg")
    text = (tmp_path / "deep" / "net.svg").read_text("utf-8")
    ElementTree.fromstring(text)
    assert "channels=50%" in text
    assert "q.heads" in text
    inspection.inspect(subject, picture=tmp_path / "net.html")
    assert (tmp_path / "net.html").read_text("utf-8").startswith("<!doctype html>")


def test_from_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["inspect", "net.py:build", "--budget", "channels=50%", "--picture", "net.svg"]
    assert cli.main(asked) == 0
    shown = capsys.readouterr().out
    assert "0.channels: 0.weight[0], 2.weight[1], 0.bias[0]" in shown
    assert "stays: 2.weight[0], 2.bias[0]: reaches the output" in shown
    assert "Channels: 16 -> 8" in shown
    assert (place / "net.svg").is_file()
    assert cli.main(["inspect", "net.py:bare", "--input", "2x6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["units"] == 16


BAD = {
    "missing.py:build": "there is no file missing.py",
    "net.py:missing": "net.py has no function missing",
    "net.py:value": "net.py has no function value",
    "net.py:fails": "failed to build a model: RuntimeError: no weights",
    "net.py:number": "returned int: expected a torch.nn.Module",
    "net.py:bare": "comes without example inputs: give their shape, such as --input 1x3x224x224",
    "broken.py:build": "broken.py can't be run: SyntaxError",
    "no.such.module:build": "No module named 'no'",
    "net.py:build --input 4x5": "can't run on the example inputs in 0",
    "net.py:build --input 4xx": "input '4xx' is no shape",
    "net.py:build --budget channels=0.1%": "can't be met",
    "net.py:build --budget channels=100%": "would change nothing",
    "net.py:build --budget speedup=2x": "costs known",
    "net.py:build --budget half": "half",
    "net.py:build --picture net.png": "neither .svg nor .html",
}


@pytest.mark.parametrize("asked", BAD)
def test_bad_input_is_one_line_and_exit_code_2(asked: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.iterdir())
    assert cli.main(["inspect", *asked.split()]) == 2
    out, err = capsys.readouterr()
    assert BAD[asked] in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert not out
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == before


def test_a_transformer_has_no_picture_yet(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only for networks"):
        executor.inspect("some/folder", picture=tmp_path / "x.svg")
    assert torch.is_grad_enabled()
