"""A subject of a new kind, with its backend and a recipe, is served by all commands without a change to secateur.

The package `toy_bags` is registered as an installed one is: by the entry points of a distribution on the path.
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
import yaml

import secateur
from secateur import cli, conformance
from secateur.data import texts
from secateur.errors import InputError, RunError
from secateur.runs import backends, measuring
from toy_bags.backend import Bags
from toy_bags.bags import Bag

ENTRY_POINTS = """
[secateur.recipes]
keep_heavy = toy_bags.keep_heavy:keep_heavy

[secateur.backends]
bags = toy_bags.backend:Bags
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The package as a distribution of its own."""
    info = tmp_path / "site" / "toy_bags-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-bags\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


def make_bag() -> Bag:
    draw = random.Random(0)
    strings = [f"{number:02}" + "x" * draw.randrange(30) for number in range(40)]
    return Bag({string: draw.random() for string in strings})


@pytest.fixture
def path(tmp_path):
    (tmp_path / "bag.json").write_text(json.dumps(make_bag().weights))
    return tmp_path / "bag.json"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join([*make_bag().weights, "00", "none of them"]))
    return tmp_path / "texts.txt"


def weights(bag: Bag) -> np.ndarray:
    return np.array([sum(bag.weights.values())])


def test_the_command_line_lists_shows_runs_and_reports(path, data, tmp_path, capsys):
    assert cli.main(["list"]) == 0
    assert "keep_heavy toys Heavy strings first" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["show", "keep_heavy"]) == 0
    assert "power" in capsys.readouterr().out
    out = tmp_path / "out"
    run = ["run", "keep_heavy", str(path), "--budget", "bytes=200B", "--out", str(out)]
    run += ["--data", str(data), "--power", "0.5"]
    assert cli.main([*run, "--dry-run"]) == 0
    assert "verdict: dry run" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main(run) == 0
    kept = json.loads((out / "bag.json").read_text())
    assert 0 < sum(map(len, kept)) <= 200
    assert yaml.safe_load((out / "run.yaml").read_text())["power"] == 0.5
    assert 'bag = json.load(open("out/bag.json"))' in (out / "README.md").read_text()
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert "bag.json" in (out / "report.html").read_text()


def test_a_run_is_measured_resumes_and_is_refused_with_other_settings(path, data, tmp_path):
    how = {"data": data, "budget": ["bytes=60%", "bytes=200B"], "out": tmp_path / "out"}
    rows = secateur.run("keep_heavy", path, **how)
    assert [row.verdict for row in rows] == ["met", "met"]
    assert rows[1].after["bytes"].value <= 200 < rows[1].before["bytes"].value
    assert "time: bags are not run" in rows[0].cut.notes
    assert rows[1].after["accuracy"].value < rows[1].before["accuracy"].value
    saved = (tmp_path / "out/bytes=200B/bag.json").stat().st_mtime_ns
    assert secateur.run("keep_heavy", path, **how) == rows
    assert (tmp_path / "out/bytes=200B/bag.json").stat().st_mtime_ns == saved
    with pytest.raises(RunError, match=r"power=1\.0, not power=2\.0|power"):
        secateur.run("keep_heavy", path, **how, power=2.0)


def test_its_sources_are_told_from_those_of_other_families(path, tmp_path):
    assert isinstance(backends.of_source(path), Bags)
    assert isinstance(backends.of_source(make_bag()), Bags)
    assert secateur.inspect(path)["axes"] == [
        {"kind": "strings", "sites": 1, "units": 40, "share": {"bytes": pytest.approx(1.0)}}
    ]
    with pytest.raises(InputError, match=r"keep_heavy works on bags, and 'net\.py:build' names none: give a \.json"):
        secateur.run("keep_heavy", "net.py:build", ["a text"], "bytes=200B", tmp_path / "out")


def test_it_is_measured_where_there_is_something_to_measure(path):
    with pytest.raises(secateur.SecateurError, match="bags are not run"):
        measuring.measure(path)


def test_it_obeys_the_laws_of_conformance(tmp_path):
    def reload(bag: Bag, folder):
        folder.mkdir()
        Bags().save(bag, folder)
        return Bags().open(folder)

    laws = conformance.check_subject(make_bag, output=weights, reload=reload, measure="bytes")
    assert set(laws) == {"identity", "original untouched", "predicted = receipt", "superset", "round trip"}
    laws = conformance.check_recipe("keep_heavy", make_bag(), texts.Corpus(["a text"]), "bytes=50%", output=weights)
    assert set(laws) == {
        "card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"
    }  # fmt: skip
