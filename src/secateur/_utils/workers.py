"""WHAT LIBRARIES PRINT around our one line, kept back: here, and in processes that help."""

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
from types import TracebackType
from typing import Any

__all__ = ["helper", "helpers", "libraries", "loading", "unneeded"]

_CHATTY = ("torchao", "torch.utils._pytree")
"""transformers imports torchao wherever it is installed, and that warns of kernels for other devices than ours."""


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def libraries() -> None:
    """Let chatty libraries log errors alone."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_serious)


def helper(threads: int, environ: Mapping[str, str]) -> None:
    """What a process that helps another does first, with the `environ` of the one that it helps.

    Ctrl-C is for that one, which then ends its helpers. Where it is killed it can't: then they end themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    libraries()
    os.environ.clear()
    os.environ.update(environ)  # of now: the server from which helpers are forked has that of its own start
    importlib.import_module("torch").set_num_threads(threads)


def _end_with(helped: Any) -> None:
    helped.join()
    os._exit(1)


def unneeded(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of `sys.excepthook` where helpers are forked: one that comes too late, after Ctrl-C, has nothing to say.

    What it was to share with the process that it would help is gone, or nothing comes from there any more.
    """
    if not issubclass(kind, FileNotFoundError | EOFError):
        sys.__excepthook__(kind, error, trace)


_SLOW = ("transformers.modeling_utils", "sentence_transformers")


def helpers() -> BaseContext:
    """Processes that help: forked from a server that has imported what they need, once for all of them.

    A process of its own for each would import for seconds and hold all of it; a fork of ours would copy its threads.
    What is slow and has been needed here already they will need, too.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["secateur.runs.preload", *(name for name in _SLOW if name in sys.modules)])
    return context


@contextmanager
def loading() -> Iterator[None]:
    """Within the block transformers does not tell of weights that a checkpoint lacks: whoever loads it looks."""
    logging_of = importlib.import_module("transformers.utils.logging")
    before = logging_of.get_verbosity()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(before)
