"""What bad input gets, through the real command line: one clear line, exit code 2, no half-written result, a way on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from commands import SMALL, secateur_each
from processes import run, start


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(300)))
    tiny.folder("llama", root / "llama")
    return root


def ziplm(places, out, *, model="llama", budget="params=80%", data="texts.txt", more=(), how=run, **kind):
    arguments = ["run", "ziplm", model, "--budget", budget, "--data", data, "--out", out, *SMALL, *more]
    return how(places, *arguments, **kind)


def refused(done: Any, *words: str, out: Path | None = None, code: int = 2) -> None:
    """Exactly one line that holds `words`, no traceback, and no result in `out`."""
    lines = done.stderr.splitlines()
    assert done.code == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("secateur: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    if out is not None and out.exists():
        left = {path.name for path in out.iterdir()}
        assert left <= {"run.yaml", "work"}, left
        assert not [path for path in out.rglob("*") if path.name.startswith(".")]


# ----------------------------------------------------------------------------------------------------- models


def damaged(places: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(places / "llama", folder)
    spoil(folder)
    return folder


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "albert", "architectures": ["AlbertForMaskedLM"]})
    )


def not_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no model at", "expected a folder"]),
        (truncate, ["model.safetensors", "damaged or truncated"]),
        (corrupt, ["model.safetensors", "damaged or truncated"]),
        (pickled, ["only as a pickle", "pytorch_model.bin", "safetensors"]),
        (unknown, ["AlbertForMaskedLM"]),
        (not_finite, ["layers.1.mlp.up_proj.weight", "NaN or infinity"]),
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "damaged"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["no weights"]),
    ],
    ids=["missing", "truncated", "corrupt", "pickle", "unknown", "nan", "no-config", "bad-config", "no-weights"],
)
def test_bad_models(places, tmp_path, spoil, words):
    model = damaged(places, tmp_path, spoil)
    refused(ziplm(places, tmp_path / "out", model=model), *words, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["data.txt does not exist"]),
        (b"", ["data.txt holds no text"]),
        (b"\n \n\n", ["data.txt holds no text"]),
        (b"one\ntwo\n\xe9t\xe9 is latin-1\n", ["data.txt is not UTF-8 at byte 8"]),
        (b"one short line\nand one more\nand a third\n", ["data.txt holds", "less than one batch", "are needed"]),
        (b"one line\nand one more\n", ["data.txt holds 2 texts", "at least 3"]),
    ],
    ids=["missing", "empty", "blank", "latin-1", "short", "two"],
)
def test_bad_data(places, tmp_path, content, words):
    if content is not None:
        (tmp_path / "data.txt").write_bytes(content)
    refused(ziplm(places, tmp_path / "out", data=tmp_path / "data.txt"), *words, out=tmp_path / "out")


def test_from_a_shell(places, tmp_path):
    """The same in a new interpreter: nothing that libraries print while they load joins the one line."""
    how = f"--budget params=80% --data texts.txt {' '.join(SMALL)} --out {tmp_path}"
    (bad,) = secateur_each(places, f"run ziplm {damaged(places, tmp_path, not_finite)} {how}/out")
    refused(bad, "NaN")
    assert not (tmp_path / "out").exists()


@pytest.mark.wide
def test_an_export_from_a_shell_says_nothing_on_the_side(places, tmp_path):
    cut = ziplm(places, tmp_path / "small")
    assert cut.code == 0, cut.stderr
    (exported,) = secateur_each(places, f"export {tmp_path}/small --to decilm --out {tmp_path}/deci")
    assert (exported.code, exported.stderr) == (0, "")


# ---------------------------------------------------------------------------------------- budgets and flags


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("speedup=0.5x", ["'speedup=0.5x'", "above 1"]),
        ("params=200%", ["'params=200%'", "at most 100%"]),
        ("faster", ["'faster'", "for example speedup=2x"]),
        ("colour=50%", ["colour"]),
        ("params=1%", ["can't be met", "ask for at least params="]),
        ("speedup=1000x", ["can't be met", "ask for at most speedup="]),
    ],
)
def test_bad_budgets(places, tmp_path, budget, words):
    done = ziplm(places, tmp_path / "out", budget=budget, more=("--batch", "1", "--length", "8"))
    refused(done, *words, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr", "quick"], ["lr='quick'", "number"]),
        (["--steps", "1.5"], ["steps=1.5", "integer"]),
        (["--batch", "0"], ["batch=0", "at least 1"]),
        (["--threads", "0"], ["threads=0", "at least 1"]),
        (["--seed", "-1"], ["seed=-1"]),
    ],
)
def test_bad_options(places, tmp_path, more, words):
    refused(ziplm(places, tmp_path / "out", more=more), *words, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ during a run


def test_a_loss_that_is_not_finite(places, tmp_path):
    done = ziplm(places, tmp_path / "out", more=["--lr", "1e30", "--steps", "20"])
    refused(done, "step", out=tmp_path / "out")
    assert "NaN" in done.stderr or "inf" in done.stderr


def test_two_runs_in_one_directory(places, tmp_path):
    arguments = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt", "--out", tmp_path / "out"]
    long = start(places, *arguments, *SMALL, "--steps", "100000")
    try:
        waiting = time.monotonic() + 120
        while not (tmp_path / "out" / "work" / "lock").exists() or not (tmp_path / "out" / "run.yaml").exists():
            assert time.monotonic() < waiting
            assert long.poll() is None, long.stderr
            time.sleep(0.1)
        done = run(places, *arguments, *SMALL, "--steps", "100000")
        refused(done, "in use by another run", str(long.pid))
        assert not [*(tmp_path / "out").rglob(f".tmp-{done.pid}-*")], "the first run may be writing a file just now"
    finally:
        long.kill()
        long.wait()


def test_an_output_that_is_no_run_directory(places, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(ziplm(places, tmp_path), "is no run directory")
    refused(ziplm(places, tmp_path / "thesis.txt"), "is a file")
    refused(ziplm(places, tmp_path, more=["--overwrite"]), "is no run directory")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_another_run_in_the_directory(places, tmp_path):
    assert ziplm(places, tmp_path / "out").code == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    refused(
        ziplm(places, tmp_path / "out", more=["--lr", "0.5"]), "holds a run with lr=0.0005, not lr=0.5", "--overwrite"
    )
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_an_output_that_can_not_be_written(places):
    if Path("/proc/version").exists():
        refused(ziplm(places, "/proc/out"), "/proc/out")


@pytest.fixture(params=["32k", "96k", "200k", "300k"])
def small_disk(request, tmp_path):
    """A real file system of very few bytes; each size runs full at another stage."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(places, small_disk):
    done = ziplm(places, small_disk / "out")
    refused(done, "free some space", out=small_disk / "out")
    assert "disk full" in done.stderr or "No space left on device" in done.stderr
    # Once there is room, the same command goes on.
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = ziplm(places, small_disk / "out")
    assert again.code == 0, again.stderr
    assert (small_disk / "out" / "model.safetensors").exists()


def test_a_limit_on_the_size_of_files(places, tmp_path):
    """Where nobody may mount: a file that can't grow is treated like a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    refused(ziplm(places, tmp_path / "out", before=limit), "disk full", out=tmp_path / "out")
    assert ziplm(places, tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("page.html --recipe htmlrag --budget words=2", "prune-context needs --question"),
        ("--recipe htmlrag --budget words=2 --question a", "prune-context needs a FILE or --in"),
        ("page.html --recipe htmlrg --budget words=2 --question a", "did you mean 'htmlrag'"),
        ("page.html --recipe wanda --budget words=2 --question a", "wanda does not prune what a model reads"),
        ("page.html --recipe htmlrag --budget tokens=20 --question a", "needs the reader's tokenizer"),
        ("page.html --recipe htmlrag --budget lots --question a", "budget 'lots' was not understood"),
        ("none.html --recipe htmlrag --budget words=2 --question a", "none.html: No such file"),
        ("page.html --recipe htmlrag --budget words=2 --question a --wide x", "option wide='x' of htmlrag"),
        (
            "page.html --recipe htmlrag --budget words=2 --question a --embedder no/such/a",
            "--embedder no/such/a is no folder",
        ),
        ("page.html --recipe htmlrag --budget words=2 --question a --out there.html", "there.html is there already"),
        ("--in page.html --recipe htmlrag --budget words=2", "--in needs --out"),
        ("page.html --in page.html --out x --recipe htmlrag --budget words=2", "--in takes no files beside it"),
        ("--in none.jsonl --out new.jsonl --recipe htmlrag --budget words=2", "none.jsonl: No such file"),
        (
            "page.html --recipe provence --budget words=2 --question a",
            "no pruner is built here yet: run `secateur",
        ),
        ("none.csv --recipe kg_rag --budget words=2 --question a", "none.csv is not there"),
        ("page.html page.html --recipe kg_rag --budget words=2 --question a", "kg_rag reads one graph"),
        ("--in page.html --out x --recipe kg_rag --budget words=2", "kg_rag reads one graph"),
        ("http:/x --recipe paths_over_graph --budget words=2 --question a", "is not there"),
        ("http://127.0.0.1:0/x --recipe kg_rag --budget words=2 --question a", "the address of the server is none"),
        ("page.html --recipe provence --budget words=2 --question a --model no/such/a", "'no/such/a' is no folder"),
        ("page.html --recipe provence --budget words=2 --question a --model x --rounding up", "option rounding='up'"),
        ("a.csv --recipe kg_rag --budget words=2 --question a --llm-timeout 3", "llm_timeout is about a server"),
        ("a.csv --recipe kg_rag --budget words=2 --question a --graph-timeout 3", "graph_timeout is about an endpoint"),
        ("a.csv --recipe kg_rag --budget words=2 --question a --run-calls 3", "run_calls bounds a language model"),
        ("http://h/x --recipe kg_rag --budget words=2 --question a --graph-timeout 0", "timeout=0.0: give seconds"),
        ("page.html --recipe htmlrag --budget words=2 --question a --dry-run --embedder no/such/a", "is no folder"),
    ],
)
def test_prune_context_refuses_in_one_line(places, tmp_path, arguments, said, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", f"{tmp_path}-cache")  # in which no pruner is built
    (tmp_path / "page.html").write_text("<p>a b c</p>")
    (tmp_path / "there.html").write_text("mine")
    done = run(tmp_path, "prune-context", *arguments.split())
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.startswith("secateur: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"
