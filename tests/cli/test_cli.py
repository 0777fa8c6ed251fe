"""What all commands share: help, errors in one line, Ctrl-C, pipes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import secateur as package
from commands import forked, secateur
from secateur import cli, recipes
from secateur._utils import disk
from secateur.errors import ModelError
from secateur.runs import measuring


def test_help_lists_the_commands_and_loads_nothing_slow():
    done = secateur("--help")
    assert done.returncode == 0
    assert all(f"\n  {command}" in done.stdout for command in cli.COMMANDS)
    assert secateur().stdout == done.stdout
    code = (
        "import sys; from secateur.cli import main; main([{!r}]); "
        "print([m for m in ('torch', 'numpy', 'rich', 'transformers') if m in sys.modules])"
    )
    for command in ("--help", "list"):
        loaded = subprocess.run(
            [sys.executable, "-c", code.format(command)], capture_output=True, text=True, check=True
        )
        assert loaded.stdout.splitlines()[-1] == "[]", command


def test_version():
    assert secateur("--version").stdout == f"secateur {package.__version__}\n"


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m secateur show ziplm | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("family")
    code = "import sys, subprocess; asked = subprocess.Popen([sys.executable, '-m', 'secateur', 'list'], stdout=-1); "
    code += "asked.stdout.close(); sys.exit(asked.wait())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, "1 is for a target that is missed"


@pytest.mark.parametrize("how", [143, "no data here"])
def test_who_exits_within_a_command_is_not_taken_for_a_closed_pipe(monkeypatch, how):
    """A training that was told to stop, or a user's own function."""
    monkeypatch.setattr(cli.typer.main, "get_command", lambda _: lambda **__: sys.exit(how))
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    assert stop.value.code == how


def test_a_run_whose_reader_has_left_is_no_success(monkeypatch):
    """What of it was still to be done is not."""

    def stop_early(**_):
        try:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        except OSError:
            sys.exit(1)

    monkeypatch.setattr(cli.typer.main, "get_command", lambda _: stop_early)
    for words in (["list"], ["--version"], ["run", "ziplm", "--help"]):
        assert cli.main(words) == 0
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "ziplm"])
    assert stop.value.code == 1


def test_debug_shows_where_an_error_came_from(tmp_path):
    done = forked(tmp_path, "inspect", "./nowhere", "--debug")
    assert done.code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("secateur: no model at './nowhere'")


@pytest.mark.parametrize("becomes", [ValueError("could not determine the shape"), ModelError("can't be loaded")])
def test_ctrl_c_that_compiled_code_turned_into_an_error_is_still_ctrl_c(capsys, monkeypatch, becomes):
    def list_cards():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise becomes from None

    monkeypatch.setattr(recipes, "cards", list_cards)
    assert cli.main(["list"]) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


THREAD = """import atexit, signal, sys, threading
from importlib.abc import MetaPathFinder
class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'secateur.recipes':
            threading.Thread(target=threading.Event().wait).start()
            atexit.register(print, 'tidied')
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
"""A thread that nobody wakes, as Ctrl-C may meet one while a pool starts it: the interpreter would wait for it."""


@pytest.mark.parametrize(
    ("file", "text", "printed"),
    [
        ("typer.py", "import signal\nsignal.raise_signal(signal.SIGINT)\n", ""),
        ("sitecustomize.py", THREAD, "tidied\n"),
    ],
    ids=["while it loads", "with a thread that nobody wakes"],
)
def test_ctrl_c_before_anything_was_done_is_one_line_too(tmp_path, file, text, printed):
    (tmp_path / file).write_text(text)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = secateur("list", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (130, printed)
    assert done.stderr.startswith("secateur: interrupted")
    assert done.stderr.count("\n") == 1


FULL = "secateur: standard output could not be written, for there is no space left where it goes: "


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_output_is_not_taken_for_a_full_disk_of_the_results(tmp_path, monkeypatch, capsys):
    for environment in ({}, {"PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "secateur", "list"]
            kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=kept | environment
            )
        assert done.returncode == 2
        assert done.stderr.startswith(FULL)
        assert len(done.stderr.splitlines()) == 1

    def print_within_a_run(**settings: object) -> None:
        with disk.guard(tmp_path):  # as a run directory does
            print("a table", flush=True)

    monkeypatch.setattr(measuring, "measure", print_within_a_run)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["measure", "model"]) == 2
    assert capsys.readouterr().err.startswith(FULL)
