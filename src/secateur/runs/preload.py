"""Modules that the server of forked workers imports before it serves."""

from __future__ import annotations

import signal
import sys

from secateur._utils import workers

__all__ = ["context_files"]

# Ctrl-C at the terminal is for the process that is helped, also while this one still imports.
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.excepthook = workers.ignore_orphan_errors
workers.quiet_libraries()

from secateur.runs import context_files  # noqa: E402 - the slow imports, once they disturb nobody
