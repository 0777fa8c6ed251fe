"""Processes that help: forked from a server that has its imports, with the environment of now."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pytest

from secateur._utils import workers


def seen(name: str) -> tuple[str | None, bool, bool]:
    """In a helper: a variable of its environment, whether slow modules are there, and whether Ctrl-C is ignored."""
    imported = "secateur.runs.context" in sys.modules
    return os.environ.get(name), imported, signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("value", ["one", "two"])
def test_helpers_have_their_imports_and_the_environment_of_now(monkeypatch, value):
    monkeypatch.setenv("SECATEUR_SEEN", value)
    with ProcessPoolExecutor(1, workers.process_context(), workers.prepare_process, (1, dict(os.environ))) as pool:
        assert pool.submit(seen, "SECATEUR_SEEN").result() == (value, True, True)


def test_helpers_have_what_was_slow_here_already():
    importlib.import_module("transformers.modeling_utils")
    workers.process_context()
    assert forkserver._forkserver._preload_modules[:2] == ["secateur.runs.preload", "transformers.modeling_utils"]


HELPED = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from secateur._utils import workers as quiet

class Given:
    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made

if __name__ == "__main__":
    for given in (Given(open, ("/no/such/file",)), Given(int, ("x",))):
        print("next:", file=sys.stderr, flush=True)
        late = quiet.process_context().Process(target=print, args=(given,))
        late.start()
        late.join()
        print(late.exitcode, flush=True)
    pool = ProcessPoolExecutor(1, quiet.process_context(), quiet.prepare_process, (1, dict(os.environ)))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""


def test_helpers_that_come_too_late_say_nothing_and_none_outlives_the_process_that_it_helps(tmp_path):
    """In an interpreter that is killed and can end nobody.

    After Ctrl-C what a helper was to share with that process is gone, which is no news; any other failure is told.
    """
    (tmp_path / "helped.py").write_text(HELPED)
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(
            [sys.executable, tmp_path / "helped.py"], stdout=subprocess.PIPE, stderr=err, text=True
        ) as helped,
    ):
        assert [helped.stdout.readline() for _ in range(2)] == ["1\n", "1\n"]
        helper = Path("/proc", helped.stdout.readline().strip())
        assert helper.name.isdigit()
        assert helper.exists()
        helped.kill()
    before, gone, other = (tmp_path / "err").read_text().split("next:\n")
    assert (before, gone) == ("", "")
    assert "ValueError: invalid literal for int()" in other
    end = time.monotonic() + 20
    while helper.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not helper.exists()
