"""The command line in tests: in a forked process, or in a new interpreter as from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes

SMALL = [
    "--batch",
    "1",
    "--length",
    "16",
    "--steps",
    "2",
    "--calibration",
    "16",
    "--trials",
    "0",
    "--train-batch",
    "8",
    "--train-length",
    "16",
]
"""A run of ziplm in a second."""


def forked(cwd: Path, *arguments: object, columns: int = 120) -> processes.Child:
    """As `secateur`, in a process that has its imports already."""
    return processes.run(cwd, *arguments, before=lambda: os.environ.update(COLUMNS=str(columns)))


def secateur(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a new interpreter, without network."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "secateur", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **own, **environment},
        check=False,
        timeout=120,
    )


def words_of(text: str) -> str:
    """What a page of help says, without its frames and line breaks."""
    return " ".join(text.replace("│", " ").split())
