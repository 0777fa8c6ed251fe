"""WHAT LIBRARIES PRINT around our one line, kept back: here, and in processes that help."""

from __future__ import annotations

import importlib
import logging
import signal

__all__ = ["helper", "libraries"]

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
