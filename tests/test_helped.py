"""Processes that help: forked from a server that has its imports, with the environment of now."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

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
