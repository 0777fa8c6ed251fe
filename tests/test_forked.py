"""Workers that are forks of a process that has collected."""

from __future__ import annotations

import os
import select
from pathlib import Path

import execnet
import pytest

import forked


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What starts a worker that has collected one file."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "test_one.py"
    file.write_text("import os\nCOLLECTED = os.getpid()\ndef test_one(): pass\n")
    found = forked.command([str(file), "--rootdir", str(tmp_path), "-c", os.devnull, "--import-mode", "importlib"])
    if found is None:
        pytest.skip("workers start as ever here")
    return found


def ask(start: str, source: str) -> object:
    """What `source` sends from a worker."""
    group = execnet.Group()
    try:
        return group.makegateway(f"popen//python={start}").remote_exec(source).receive(60)
    finally:
        group.terminate(10)


def test_each_worker_is_another_fork_that_has_the_modules(start: str) -> None:
    """The file was executed in the process that collects, which no worker is."""
    source = "import os, sys; channel.send((sys.modules['test_one'].COLLECTED, os.getpid(), os.getppid()))"
    (collected, first, parent), (again, second, _) = ask(start, source), ask(start, source)  # type: ignore[misc]
    assert collected == again == parent
    assert len({collected, first, second, os.getpid()}) == 4


def test_a_worker_that_dies_is_noticed(start: str) -> None:
    """Its channel ends, as that of a process of its own does."""
    with pytest.raises(EOFError):
        ask(start, "import os; os._exit(3)")


def test_the_server_ends_with_who_asked_for_it_and_workers_start_as_ever(start: str) -> None:
    """A worker that pytest-xdist starts later is a process of its own; no temporary folder stays."""
    place = Path(start.split()[-1])
    server = ask(start, "import os; channel.send(os.getppid())")
    ended = os.pidfd_open(server)  # type: ignore[arg-type]
    os.close(forked._open.pop())
    assert select.select([ended], [], [], 60)[0]
    assert not place.parent.exists()
    assert ask(start, "import sys; channel.send('test_one' in sys.modules)") is False


@pytest.mark.parametrize("threads", [None, "2"])
def test_threads_do_not_come_along(threads: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool of threads, workers start as ever."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert forked.command([]) is None
