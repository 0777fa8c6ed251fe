"""Processes that help: forked from a server that has its imports, with the environment of now."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from secateur import quiet


def seen(name: str) -> tuple[str | None, bool, bool]:
    """In a helper: a variable of its environment, whether slow modules are there, and whether Ctrl-C is ignored."""
    return os.environ.get(name), "transformers" in sys.modules, signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("value", ["one", "two"])
def test_helpers_have_their_imports_and_the_environment_of_now(monkeypatch, value):
    monkeypatch.setenv("SECATEUR_SEEN", value)
    with ProcessPoolExecutor(1, quiet.helpers(), quiet.helper, (1, dict(os.environ))) as pool:
        assert pool.submit(seen, "SECATEUR_SEEN").result() == (value, True, True)


def test_a_helper_ends_with_the_process_that_it_helps():
    """Also where that one is killed, and can end nobody."""
    how = (1, quiet.helpers(), quiet.helper, (1, dict(os.environ)))
    with ProcessPoolExecutor(*how) as pool:  # so that the server runs, and the fork below need not start it
        pool.submit(os.getpid).result()
    told, telling = os.pipe()
    helped = os.fork()
    if not helped:
        pool = ProcessPoolExecutor(*how)
        os.write(telling, str(pool.submit(os.getpid).result()).encode())
        time.sleep(60)
        os._exit(0)
    helper = Path("/proc", os.read(told, 20).decode())
    assert helper.exists()
    os.kill(helped, signal.SIGKILL)
    os.waitpid(helped, 0)
    end = time.monotonic() + 20
    while helper.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not helper.exists()
