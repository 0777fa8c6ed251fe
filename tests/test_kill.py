"""kill -9 and Ctrl-C at any moment: the same command resumes, and ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import functools
import hashlib
import random
import re
import signal
import time
from pathlib import Path

import pytest

import tiny
from processes import Child, run, start

BUDGETS = {"ziplm": ("params=85%", "params=75%"), "minitron": ("params=80%",)}
FILES = ("model.safetensors", "config.json", "tokenizer.json")
COMMANDS = {
    "ziplm": ["--steps", "6", "--calibration", "16", "--trials", "4", "--judged", "16", "--train-batch", "4",
              "--train-length", "16", "--training", "every=2"],
    "minitron": ["--steps", "6", "--short-steps", "2", "--candidates", "2", "--calibration", "16",
                 "--train-batch", "4", "--stages", "1", "--training", "every=2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("kill")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(300)))
    tiny.folder("llama", root / "llama")
    return root


def command(recipe: str, out: str) -> list[str]:
    budgets = [word for budget in BUDGETS[recipe] for word in ("--budget", budget)]
    return ["run", recipe, "llama", *budgets, "--data", "texts.txt", "--out", out, "--batch", "2", "--length", "16",
            *COMMANDS[recipe]]  # fmt: skip


def results(out: Path, recipe: str) -> list[Path]:
    """Of one budget the result is the run directory itself."""
    return [out / budget for budget in BUDGETS[recipe]] if len(BUDGETS[recipe]) > 1 else [out]


def contents(out: Path, recipe: str) -> list[str]:
    return [hashlib.sha256((one / name).read_bytes()).hexdigest() for one in results(out, recipe) for name in FILES]


@pytest.fixture(scope="module")
def uninterrupted(places):
    """Recipe -> (contents of the results, seconds it took): a function, as not each recipe is asked for."""

    @functools.cache
    def go_through(recipe: str) -> tuple[list[str], float]:
        begin = time.monotonic()
        done = run(places, *command(recipe, f"{recipe}-whole"))
        assert done.code == 0, done.stderr
        return contents(places / f"{recipe}-whole", recipe), time.monotonic() - begin

    return go_through


def whole_or_absent(out: Path, recipe: str) -> None:
    """Nothing that looks like a model is half of one."""
    for one in results(out, recipe):
        if (one / "model.safetensors").exists() or (one != out and one.exists()):
            assert {*FILES, "README.md"} <= {path.name for path in one.iterdir()}


@pytest.mark.wide
@pytest.mark.timeout(600)  # two minutes on two quiet cores
@pytest.mark.parametrize("recipe", COMMANDS)
def test_killed_at_ten_random_moments(places, uninterrupted, recipe):
    """Ten times SIGKILL, each somewhere in what the run has still to do: more than a third of it is rarely left."""
    expected, seconds = uninterrupted(recipe)
    draw, out, killed = random.Random(0), f"{recipe}-killed", 0
    while killed < 10:
        child = start(places, *command(recipe, out))
        end = time.monotonic() + draw.uniform(0.0, seconds / 3)
        while time.monotonic() < end and child.poll() is None:
            time.sleep(0.002)
        child.kill()
        if child.wait() == -signal.SIGKILL:
            whole_or_absent(places / out, recipe)
            killed += 1
        else:  # it came through before its moment: what it left must be right, and the rest of the kills hit a new run
            assert child.code == 0, child.stderr
            assert contents(places / out, recipe) == expected
            out = f"{recipe}-killed-after-{killed}"
    done = run(places, *command(recipe, out))
    assert done.code == 0, done.stderr
    assert contents(places / out, recipe) == expected
    assert not list((places / out).rglob(".*"))


@pytest.mark.parametrize("recipe", COMMANDS)
def test_ctrl_c_in_every_stage(places, uninterrupted, recipe):
    """Each stage leaves a file behind; Ctrl-C arrives as soon as that file does, then the same command goes on."""
    expected, _ = uninterrupted(recipe)
    whole = places / f"{recipe}-whole"
    files = [
        path for path in whole.rglob("*") if path.parent.name == "work" or path.name in ("config.json", "run.yaml")
    ]
    stages = [path.relative_to(whole) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]
    assert len(stages) >= 6
    stopped = 0
    out = f"{recipe}-stopped"
    for stage in stages:
        child = start(places, *command(recipe, out))
        while child.poll() is None and not (places / out / stage).exists():
            time.sleep(0.001)
        stopped += interrupt(child)
        whole_or_absent(places / out, recipe)
    assert stopped >= 4
    done = run(places, *command(recipe, out))
    assert done.code == 0, done.stderr
    assert contents(places / out, recipe) == expected


def interrupt(child: Child) -> bool:
    """Ctrl-C; True when it came before the end, which then is exit code 130 and one line."""
    child.kill(signal.SIGINT)
    if child.wait() == 0:
        return False
    assert child.code == 130, child.stderr
    *training, last = child.stderr.splitlines()
    assert last == "secateur: interrupted; the same command resumes where it stopped"
    # By what a training is called: "training: step 5 of 10", "train params=50% 1: evaluation 0.3".
    assert all(re.match(r"[\w %=:.-]+: (step|evaluation) ", line) for line in training), "how far, no more"
    return True


def test_ctrl_c_at_random_moments(places, uninterrupted):
    expected, seconds = uninterrupted("ziplm")
    draw = random.Random(1)
    for _ in range(6):
        child = start(places, *command("ziplm", "ziplm-random"))
        time.sleep(draw.uniform(0.05, seconds / 2))
        interrupt(child)
    assert run(places, *command("ziplm", "ziplm-random")).code == 0
    assert contents(places / "ziplm-random", "ziplm") == expected


def test_terminated_during_training(places, uninterrupted):
    """SIGTERM, as a scheduler sends it, ends with the shell's usual code and resumes like the others."""
    expected, _ = uninterrupted("ziplm")
    child = start(places, *command("ziplm", "ziplm-terminated"))
    while child.poll() is None and not list((places / "ziplm-terminated").glob("work/train-*")):
        time.sleep(0.001)
    time.sleep(0.05)
    child.kill(signal.SIGTERM)
    assert child.wait() in (143, -signal.SIGTERM)
    assert run(places, *command("ziplm", "ziplm-terminated")).code == 0
    assert contents(places / "ziplm-terminated", "ziplm") == expected
