"""Worker processes, and suppression of what libraries print."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType

__all__ = ["ignore_orphan_errors", "prepare_process", "process_context", "quiet_libraries", "quiet_loading"]

_CHATTY = ("torchao", "torch.utils._pytree")
"""transformers imports torchao wherever it is installed, and that warns of kernels for other devices than ours."""


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def quiet_libraries() -> None:
    """Let libraries that warn of what does not matter here log errors only."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_serious)


def prepare_process(threads: int, environ: Mapping[str, str]) -> None:
    """Initialise a worker process, with the environment `environ` of its parent.

    Ctrl-C goes to the parent, which then ends its workers. Where the parent is killed, they end themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    quiet_libraries()
    os.environ.clear()
    os.environ.update(environ)  # of now: the fork server has the environment of its own start
    importlib.import_module("torch").set_num_threads(threads)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def ignore_orphan_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replace `sys.excepthook` in the fork server: silence errors of workers whose parent has exited, after Ctrl-C.

    The files or pipes that they share with it are gone.
    """
    if not issubclass(kind, FileNotFoundError | EOFError):
        sys.__excepthook__(kind, error, trace)


_SLOW = ("transformers.modeling_utils", "sentence_transformers")


def process_context() -> BaseContext:
    """A context whose worker processes are forked from a server that has imported what they need, once for all.

    Spawned processes would each import for seconds and hold a copy; a fork of this process would copy its threads.
    Slow modules that this process has loaded are loaded by the server too.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["secateur.runs.preload", *(name for name in _SLOW if name in sys.modules)])
    return context


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' report of weights that a checkpoint lacks: whoever loads it checks."""
    logging_of = importlib.import_module("transformers.utils.logging")
    before = logging_of.get_verbosity()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(before)
