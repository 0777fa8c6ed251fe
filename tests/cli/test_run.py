from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import yaml

from commands import SMALL, forked, words_of
from secateur import cli, recipes
from secateur.cli import run
from secateur.reports import evidence
from secateur.runs import executor

ZIPLM = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt"]


@pytest.mark.parametrize("name", recipes.cards())
def test_each_option_of_a_recipe_is_a_flag_and_explained(name):
    flags, about = run.COMMAND.recipe_flags([name])
    assert about.startswith(f"{name}: ")
    assert [flag.option for flag in flags] == recipes.signature(name)
    shared = {option.name for option in recipes.parameters("secateur.run")}
    assert [flag.words for flag in flags if not flag.option.help and flag.option.name not in shared] == []


def test_help_shows_the_flags_of_the_recipe(tmp_path):
    shown = words_of(forked(tmp_path, "run", "minitron", "--help", columns=200).stdout)
    for flag in run.COMMAND.recipe_flags(["minitron"])[0]:
        assert flag.words in shown
    assert "Separated by commas, or again." in shown
    target = words_of(forked(tmp_path, "run", "dp4tl", "--help").stdout).partition("--target ")[2]
    assert "(required)" in target[:250]


def test_a_flag_of_a_list_given_again_adds_to_it(places, capsys, monkeypatch):
    monkeypatch.chdir(places)
    how = ["llama", "--budget", "params=80%", "--data", "texts.txt", "--dry-run"]
    assert cli.main(["run", "romanian_distilberts", *how, "--weights", "1,a", "--weights", "2"]) == 2
    assert "option weights='a' of romanian_distilberts" in capsys.readouterr().err, "the first is not forgotten"
    for name, cases in {
        "axes": [("heads,neurons", ["heads", "neurons"]), ("heads --axes neurons", ["heads", "neurons"]), ("", [])],
        "shape": [("layers=2,neurons=8", "layers=2,neurons=8"), ("layers=2 --shape neurons=8", "layers=2,neurons=8")],
    }.items():
        for words, value in [(None, "none"), *cases]:
            taken = []
            monkeypatch.setattr(executor, "run", lambda taken=taken, name=name, **options: taken.append(
                options.get(name, "none")) or [])  # fmt: skip
            flags = [] if words is None else [f"--{name}", *(words.split() or [""])]
            assert cli.main(["run", "minitron", *how, *flags]) == 0
            assert taken == [value]


def test_run_prints_what_it_did(places):
    printed = (places / "printed").read_text()
    for words in ("Parameters", "verdict: met", "cut: ", "result  small", "report  small/report.html"):
        assert words in printed
    files = {"config.json", "model.safetensors", "run.yaml", "evidence.json", "report.html", "README.md"}
    assert files <= set(os.listdir(places / "small"))


@pytest.mark.skipif("SECATEUR_BESIDE_CARD" in os.environ, reason="the run that is repeated was made on the CPU")
def test_a_config_repeats_a_run_and_flags_win_over_it(places):
    done = forked(places, "run", "--config", "small/run.yaml", "--out", "again")
    assert done.code == 0, done.stderr
    assert (places / "again/model.safetensors").read_bytes() == (places / "small/model.safetensors").read_bytes()
    for named in (["ziplm"], []):
        done = forked(places, "run", *named, "--config", "small/run.yaml", "--out", "again", "--steps", "3")
        assert done.code == 2
        assert "holds a run with steps=2, not steps=3" in done.stderr


def test_a_dry_run_writes_nothing(places):
    before = sorted(os.listdir(places))
    done = forked(places, *ZIPLM, *SMALL, "--dry-run")
    assert done.code == 0, done.stderr
    assert "verdict: dry run" in done.stdout
    assert "FLOPs" in done.stdout
    assert sorted(os.listdir(places)) == before


def test_a_missed_budget_ends_with_one_and_only_a_result_is_pointed_to(places, capsys, monkeypatch):
    (row,) = evidence.read(places / "small")
    missed = replace(row, verdict="missed: by a mile")
    nothing = replace(row, cut=replace(row.cut, removed={}), verdict="failed: nothing was removed")

    def printed(rows, out):
        monkeypatch.setattr(executor, "run", lambda on_result, **_: [on_result(row) for row in rows] and rows)
        assert cli.main([*ZIPLM, "--out", str(places / out)]) == 1
        return capsys.readouterr().out

    shown = printed([missed], "small")
    assert "verdict: missed: by a mile" in shown
    assert "\nresult  " in shown
    shown = printed([nothing], "small")
    assert "\nresult  " not in shown
    assert f"report  {places / 'small' / 'report.html'}" in shown.replace("\n/", "/")
    assert "nowhere" not in printed([nothing], "nowhere")
    assert "\nresult  " in printed([nothing, row], "small")


@pytest.mark.wide
def test_a_run_can_add_networks_trained_from_scratch(places):
    done = forked(places, *ZIPLM, "--out", "beside", *SMALL, "--held-out", "texts.txt", "--scratch-baseline", "E")
    assert done.code == 0, done.stderr
    assert "scratch lacks the compute" in done.stdout
    (row,) = json.loads((places / "beside" / "evidence.json").read_text())["results"]
    assert set(row["baselines"]) == {"scratch-E", "random units"}


NET = """import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""
OTOV3 = "run otov3 net.py:build --budget channels=50% --data data.npz --out o --epochs 4 --batch 8"


def test_networks_that_can_not_be_trained_from_scratch_are_refused_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    np.savez(tmp_path / "data.npz", inputs=np.random.default_rng(0).random((20, 6), np.float32))
    language = "run ziplm llama --budget params=80% --data data.npz --out o"
    for line, error in {
        f"{OTOV3} --scratch-baseline F": "E, B, both",
        f"{OTOV3} --scratch-baseline E": "has no classes: networks are trained from scratch on classes or boxes",
        f"{OTOV3} --scratch-baseline E --scratch-epochs 0": "epochs=0 of networks trained from scratch",
        f"{OTOV3} --scratch-baseline E --scratch-lr -1": "lr=-1.0 of networks trained from scratch",
        f"{OTOV3} --scratch-cap 2": "--scratch-cap is of networks trained from scratch: give --scratch-baseline",
        f"{language} --scratch-baseline E --steps 0": "a run of ziplm with steps=0 trains nothing",
        f"{language} --scratch-baseline E --scratch-epochs 2": "leave epochs out",
    }.items():
        assert cli.main(line.split()) == 2
        printed = capsys.readouterr().err
        assert error in printed
        assert printed.count("\n") == 1
        assert not (tmp_path / "o").exists()


@pytest.mark.wide
def test_networks_trained_from_scratch_take_epochs_rate_and_cap(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=draw.random((40, 6), np.float32), labels=draw.integers(0, 3, 40))
    how = "--scratch-baseline B --scratch-epochs 3 --scratch-lr 0.02 --scratch-cap 1"
    done = forked(tmp_path, *OTOV3.split(), *how.split())
    assert done.code == 0, done.stderr
    settings = yaml.safe_load((tmp_path / "o/scratch/scratch-B-channels=50%/run.yaml").read_text())
    assert (settings["epochs"], settings["lr"], settings["cap"]) == (3, 0.02, 1.0)
    assert yaml.safe_load((tmp_path / "o/run.yaml").read_text())["epochs"] == 4
