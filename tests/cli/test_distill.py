from __future__ import annotations

import os
import shutil

import pytest

from commands import forked
from secateur import cli

TAUGHT = ["--data", "texts.txt", "--steps", "4", "--batch", "8", "--length", "16", "--lr", "0.003"]


@pytest.mark.skipif("SECATEUR_BESIDE_CARD" in os.environ, reason="the stand-in device swaps tensors, as no card does")
@pytest.mark.usefixtures("planned")
def test_distill_prints_what_it_did_and_what_it_would_take(places):
    done = forked(places, "distill", "other", "--from", "llama", "--dry-run", *TAUGHT)
    assert (done.code, done.stderr) == (0, "")
    assert "seconds per step" in done.stdout
    assert "verdict: dry run" in done.stdout
    assert "note: peak memory: weights" in done.stdout
    both = ["--from", "llama=0.7", "--from", "other=0.3"]
    done = forked(places, "distill", "other", *both, "--out", "taught", *TAUGHT)
    assert done.code == 0, done.stderr
    assert "verdict: met: probability loyalty" in done.stdout
    assert "taught/report.html" in done.stdout
    assert (places / "taught" / "config.json").is_file()


@pytest.mark.wide
def test_a_cache_that_mends_itself_says_so_in_one_line(places):
    how = ["distill", "other", "--from", "llama", "--cache", "4", *TAUGHT]
    assert forked(places, *how, "--out", "sound").code == 0
    cache = places / "mended" / "work" / "predictions-0"
    shutil.copytree(places / "sound" / "work" / "predictions-0", cache)
    shutil.copy(places / "sound" / "run.yaml", places / "mended")  # as a run leaves it that was killed early
    (cache / "000000.safetensors").write_bytes(b"")
    done = forked(places, *how, "--out", "mended")
    assert done.code == 0, done.stderr
    assert done.stderr.splitlines(keepends=True)[0] == (
        "note: 1 of 1 files in mended/work/predictions-0 are missing, damaged or cut short, 000000.safetensors the "
        "first: what they held is asked for again\n"
    )
    sound, mended = ((places / name / "model.safetensors").read_bytes() for name in ("sound", "mended"))
    assert sound == mended


def test_a_student_that_comes_no_nearer_ends_with_one(places):
    done = forked(places, "distill", "llama", "--from", "llama", "--out", "same", *TAUGHT)
    assert done.code == 1
    assert "failed: the student is no nearer to its teachers" in done.stdout


@pytest.mark.wide
def test_a_config_repeats_a_distillation_and_flags_win_over_it(places):
    how = ["--hidden", "--training", "every=2", "--held-out", "texts.txt", *TAUGHT]
    done = forked(places, "distill", "other", "--from", "llama", "--out", "first", *how)
    assert done.code == 0, done.stderr
    assert "held_out: texts.txt" in (places / "first/run.yaml").read_text()
    done = forked(places, "distill", "--config", "first/run.yaml", "--out", "second")
    assert done.code == 0, done.stderr
    first, second = ((places / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    done = forked(places, "distill", "--config", "first/run.yaml", "--out", "second", "--steps", "5")
    assert done.code == 2
    assert "holds a run with steps=4, not steps=5" in done.stderr
    both = ["--from", "llama=0.5", "--from", "other=0.5"]
    done = forked(places, "distill", "--config", "first/run.yaml", *both, "--dry-run")
    assert done.code == 2
    assert "hidden states of several teachers have no mean" in done.stderr  # what the file says still holds


LLAMA = "--from llama --data texts.txt"
MATCH = f"{LLAMA} --match"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--from a=0.5 --from b --data x", "--from b has no share"),
        ("--from a=nan --data x", "option shares=nan of distill"),
        ("--from a=0 --data x", "teachers 0: give numbers of at least 0, one above"),
        ("--from none/here --data texts.txt", "none/here"),
        (f"{MATCH} model.layers.0 --match-index 1", "write {i} in it, or leave match-index out"),
        (
            f"{MATCH} model.layers.{{i}} --match-index 0,1,2 --match-index 3,0",
            "index gives numbers for model.layers.4, which the student lacks",
        ),
        (f"{MATCH} lm_head --match-weight 1,2 --match-weight 3", "3 weights for 1"),
        (f"{MATCH} lm_head --match-weight 1,a", "option match_weight="),
        (f"{MATCH} lm_head --warm-up match=0.1 --warm-up task=-1", "warm-up 'match=0.1,task=-1'"),
        (f"{MATCH} lm_head --training accumulate=x --training every=2", "setting accumulate=x: give a"),
        (f"{LLAMA} --cache some", "option cache='some' of distill"),
        (f"{LLAMA} --cache all --hidden", "cache keeps predictions only: leave hidden out"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(places, capsys, monkeypatch, words, error):
    monkeypatch.chdir(places)
    assert cli.main(["distill", "llama", "--out", "x", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1
    assert not (places / "x").exists()
