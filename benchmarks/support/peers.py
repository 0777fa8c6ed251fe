"""Peers in environments of their own: made on first use under .cache/bench, never dependencies of secateur."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DISTILLERS", "ROOT", "environment", "version"]

ROOT = Path(__file__).resolve().parents[2]

DISTILLERS = {
    # torchtune is no longer developed, and imports what later versions of torchao have dropped.
    "torchtune": ["torch", "torchao==0.9.0", "torchtune", "transformers"],
    "trl": ["torch", "trl"],
}
"""Peers that distil, and what pip is asked for."""


def environment(peer: str | None, packages: Sequence[str] = ()) -> tuple[str, str]:
    """The Python that has the peer's `packages`, this one if there is no peer; and "" or why there is none."""
    if peer is None:
        return sys.executable, ""
    folder = ROOT / ".cache" / "bench" / peer
    python, done, asked = folder / "bin" / "python", folder / "complete", "\n".join(packages)
    if not done.exists() or done.read_text() not in ("", asked):
        print(f"installing {peer} into an environment of its own ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "-q", *packages]
        made = subprocess.run(install, capture_output=True, text=True, check=False)
        if made.returncode:
            return str(python), "not installed: " + (made.stderr.strip().splitlines() or ["pip failed"])[-1][:120]
        done.write_text(asked)
    return str(python), ""


def version(peer: str | None, packages: Sequence[str] = (), name: str = "") -> str:
    """The version of the peer's package `name`, by default of the peer; "" if there is none."""
    python, problem = environment(peer, packages)
    if peer is None or problem:
        return ""
    code = f"from importlib.metadata import version; print(version({name or peer!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
