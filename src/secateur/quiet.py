"""WHAT LIBRARIES PRINT around our one line, kept back: here, and in processes that help."""

from __future__ import annotations

import importlib
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["helper", "libraries", "loading"]

_CHATTY = ("torchao", "torch.utils._pytree")
"""transformers imports torchao wherever it is installed, and that warns of kernels for other devices than ours."""


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def libraries() -> None:
    """Let chatty libraries log errors alone."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_serious)


def helper(threads: int) -> None:
    """What a process that helps another does first. Ctrl-C is for the one that it helps, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libraries()
    importlib.import_module("torch").set_num_threads(threads)


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
