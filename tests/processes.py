"""The command line in processes of its own, without paying seconds of imports for each.

A child is forked from a process that has torch and transformers in memory already, and from there on is like any
other: its own working folder, output, exit code, limits and signals.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from accelerate.state import AcceleratorState
from transformers.utils import logging

import secateur.recipes.language.minitron
import secateur.recipes.language.ziplm
import secateur.runs.executor  # noqa: F401 - imported here so that no child has to
from secateur import cli


@dataclass
class Child:
    """A running or finished command line."""

    pid: int
    out: IO[bytes]
    err: IO[bytes]
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code; a child that takes longer than `seconds` is killed and fails the test."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running after {seconds} s: {self.stderr}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        """What it has printed."""
        self.out.seek(0)
        return self.out.read().decode()

    @property
    def stderr(self) -> str:
        """What it has complained."""
        self.err.seek(0)
        return self.err.read().decode()


def start(folder: Path, *arguments: object, before: Callable[[], object] = lambda: None) -> Child:
    """`secateur ARGUMENTS` in `folder`; `before` runs in the child first."""

    def command() -> int:
        # What the command line sets before it imports them, which it can't do here.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        before()
        cli._app = _unblocked(cli._app)
        return cli.main([str(argument) for argument in arguments])

    return forked(command, folder, waiting=True)


def forked(
    work: Callable[[], object], folder: Path | None = None, *, waiting: bool = False, **environment: str
) -> Child:
    """`work` in a process of its own, with more variables in its environment; an int that it returns is the exit code.

    waiting: `work` itself says from when on Ctrl-C may interrupt it.
    """
    out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - read until the test ends
    sys.stdout.flush()
    sys.stderr.flush()
    # Ctrl-C waits until the child's command line is there to catch it, as it is soon after a shell starts one.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return Child(pid, out, err)
    code = 70
    try:
        # The parent reads through the same open file, whose position it moves: writes go to the end all the same.
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that this process has of Ray would end it with 15
        if not waiting:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        torch.set_num_threads(1)
        os.environ.update(environment)
        os.chdir(folder or ".")
        returned = work()
        code = returned if isinstance(returned, int) else 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 71
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def both(work: Callable[[], object]) -> None:
    """`work` in two processes that know of one another, as torch.distributed.run starts them; fails where one does."""
    for child in pair(work):
        assert child.wait() == 0, child.stderr


def pair(work: Callable[[], object]) -> list[Child]:
    """As `both`, without waiting: the two processes, the first one first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def alone() -> object:
        AcceleratorState._reset_state(reset_partial_state=True)  # what the tests of this process have made of it
        return work()

    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [forked(alone, ACCELERATE_USE_CPU="1", RANK=str(rank), LOCAL_RANK=str(rank), **meeting) for rank in range(2)]


def _unblocked(make: Callable[..., Any]) -> Callable[..., Any]:
    def call(given: Sequence[str]) -> Any:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return make(given)

    return call


def run(folder: Path, *arguments: object, before: Callable[[], object] = lambda: None) -> Child:
    """`start`, and wait for the end."""
    child = start(folder, *arguments, before=before)
    child.wait()
    return child
