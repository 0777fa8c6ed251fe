"""The command line in tests: in a forked process, or in a new interpreter as from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
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


EACH = """
import os, sys
from secateur import cli

for number, line in enumerate(sys.argv[1].split("\\n")):
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    code = cli.main(line.split())
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{sys.argv[2]}/{number}.code", "w") as file:
        file.write(str(code))
"""


@dataclass
class Done:
    """What a command line left."""

    code: int
    stdout: str
    stderr: str


def secateur_each(cwd: Path, *lines: str) -> list[Done]:
    """Several commands, one after another in one new interpreter: the first has all that libraries say as they load."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", EACH, "\n".join(lines), place]
        subprocess.run(command, cwd=cwd, env=environment, check=True, timeout=120)
        texts = [
            {name: Path(place, f"{number}.{name}").read_text() for name in ("code", "out", "err")}
            for number in range(len(lines))
        ]
    return [Done(int(text["code"]), text["out"], text["err"]) for text in texts]


def words_of(text: str) -> str:
    """What a page of help says, without its frames and line breaks."""
    return " ".join(text.replace("│", " ").split())
