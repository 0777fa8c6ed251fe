"""Workers of pytest-xdist as forks of one process that has collected the tests.

A worker needs twenty seconds of a processor to import what the tests import; as a fork of a process that has done so
it needs two, to collect once more. pytest-xdist starts each worker by a command. Here that is this file: it hands its
standard streams to the process that has collected, and ends as the fork ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["command"]

_open: list[int] = []
"""A server ends when this end of its pipe is closed: when the process that started it ends, however that may be."""


def command(arguments: Sequence[str]) -> str | None:
    """What starts a worker that has collected what pytest's `arguments` ask for; None where workers start as ever.

    Threads of a pool don't come along with a fork, so there must be none.
    """
    if sys.platform != "linux" or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    place = Path(tempfile.mkdtemp()) / "workers"  # a folder of this user alone
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place))
    listening.listen()
    alive, end = os.pipe()
    if os.fork() == 0:
        os.close(end)
        try:
            _serve(listening, alive, arguments)
        finally:
            shutil.rmtree(place.parent, ignore_errors=True)
            os._exit(0)
    listening.close()
    os.close(alive)
    _open.append(end)
    return f"{sys.executable} {__file__} {place}"


def _serve(listening: socket.socket, alive: int, arguments: Sequence[str]) -> None:
    """Collect, and fork for whoever asks, until the other end of `alive` is closed."""
    import pytest

    nowhere = os.open(os.devnull, os.O_RDWR)  # what is wrong with a file of tests, each worker says
    for number in range(3):
        os.dup2(nowhere, number)
    pytest.main([*arguments, "--collect-only", "-qq", "-n0"])
    gc.collect()
    gc.freeze()
    while alive not in select.select([listening, alive], [], [])[0]:
        asking, _ = listening.accept()
        _, streams, _, _ = socket.recv_fds(asking, 1, 3)
        if os.fork() == 0:
            listening.close()
            os.close(alive)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            _work(asking)
        for stream in streams:
            os.close(stream)
        asking.close()


def _work(asking: socket.socket) -> NoReturn:
    """Run what comes by standard input, as `python -c` would have in the place of this file."""
    sys.argv = ["-c"]
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    try:
        exec(eval(sys.stdin.readline()), {"__name__": "__main__"})
        atexit._run_exitfuncs()
        asking.send(b"\0")
    finally:
        os._exit(1)


def _ask(place: str) -> int:
    """Hand over the standard streams; the status with which the fork ends."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(place)
        socket.send_fds(asking, [b"."], [0, 1, 2])
        return (asking.recv(1) or b"\1")[0]


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # no server is left: a worker as ever
        sys.exit(_ask(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
