"""Results that 0.1.0 wrote still load, report, measure, export and resume.

tests/fixtures/0.1.0 was written by that version on the command line, with one thread, from what lies in its `inputs/`;
the report pages were left out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import secateur
from secateur import cli
from secateur._utils import plugins
from secateur.subjects import open_page, reload_traced

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
MODELS = ("homogeneous", "heterogeneous", "sparse", "taught")
RUNS = (*MODELS, "network", "trained")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURES, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    return tmp_path / "all"


def files_in(folder: Path) -> dict[str, str]:
    """Name -> digest of what a run is about: neither its lock nor its page."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in ("lock", "report.html")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("name", [*MODELS, "exported-packed", "exported-int8"])
def test_a_model_loads(results: Path, name: str) -> None:
    model = secateur.load(results / name)
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(5, 15)[None]).logits
    assert logits.shape == (1, 10, 64)
    assert logits.isfinite().all()


def test_packed_weights_are_those_of_the_result(results: Path) -> None:
    packed = secateur.load(results / "exported-packed").state_dict()
    plain = load_file(results / "sparse" / "model.safetensors")
    assert all(torch.equal(packed[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("name", ["network", "trained"])
def test_a_network_loads(results: Path, name: str) -> None:
    subject = reload_traced(results / name, plugins.function("inputs/net.py:build")(), torch.zeros(1, 1, 2, 2))
    assert sum(parameter.numel() for parameter in subject.model.parameters()) < 723


@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_written_anew(results: Path, name: str) -> None:
    target = json.loads((results / name / "evidence.json").read_text())["results"][0]["target"]
    assert target in secateur.report(results / name).read_text()


@pytest.mark.parametrize("name", ["homogeneous", "exported-int8"])
def test_a_model_is_measured(results: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    against = ["--against", "inputs/llama", "--data", "inputs/texts.txt"]
    assert cli.main(["measure", name, *against, "--batch", "2", "--length", "16"]) == 0
    assert "Perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "form"), [("sparse", "packed"), ("heterogeneous", "decilm")])
def test_a_result_is_exported(results: Path, tmp_path: Path, name: str, form: str) -> None:
    folder, _ = secateur.export(results / name, form, tmp_path / "other")
    assert any(folder.iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_ends_at_once(results: Path, name: str) -> None:
    before = files_in(results / name)
    settings = yaml.safe_load((results / name / "run.yaml").read_text())
    command = settings["recipe"] if settings["recipe"] in ("prune", "distill") else "run"
    assert cli.main([command, "--config", f"{name}/run.yaml", "--out", name]) in (0, 1)
    assert files_in(results / name) == before


def test_a_stopped_run_goes_on_where_it_was(results: Path) -> None:
    stopped = results / "stopped"
    assert not (stopped / "model.safetensors").exists()
    assert cli.main(["run", "--config", "stopped/run.yaml", "--out", "stopped"]) in (0, 1)
    assert cli.main(["run", "--config", "stopped/run.yaml", "--out", "whole"]) in (0, 1)
    on, whole = (load_file(results / name / "model.safetensors") for name in ("stopped", "whole"))
    for name, tensor in whole.items():  # the first steps were made on another machine, perhaps
        torch.testing.assert_close(on[name], tensor, rtol=1e-3, atol=1e-4)


def test_an_index_of_a_training_set_is_read_and_shortened(results: Path) -> None:
    before = (results / "subset" / "examples=30%" / "index.npz").read_bytes()
    secateur.prune_data("inputs/data.npz", ["examples=30%", "examples=20%"], results / "subset")
    assert (results / "subset" / "examples=30%" / "index.npz").read_bytes() == before
    large, small = (np.load(results / "subset" / f"examples={share}" / "index.npz") for share in ("30%", "20%"))
    assert set(small["kept"]) <= set(large["kept"])


def test_a_shortened_page_is_written_again_from_its_record(results: Path) -> None:
    before = open_page(results / "context.html")
    (results / "context.html").unlink()
    assert cli.main(["prune-context", "--config", "context.html.run.yaml", "--out", "context.html"]) == 0
    after = open_page(results / "context.html")  # tags that say nothing are no longer written
    assert [after.text(i) for i in range(len(after.blocks))] == [before.text(i) for i in range(len(before.blocks))]
