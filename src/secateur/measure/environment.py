"""Machine and versions of a measurement. Never host names, user names or paths."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import secateur

__all__ = ["describe"]

CODE = ("src", "tests", "claims", "benchmarks", "examples", "pyproject.toml")
PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")


def describe() -> dict[str, Any]:
    """What a reader needs to judge or repeat a figure: processor, cores, threads, memory, system, versions, commit.

    What torch would tell is left out where nothing has needed it so far: to load it takes seconds.
    """
    import psutil

    torch: Any = sys.modules.get("torch")
    record: dict[str, Any] = {
        "cpu": _processor(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "logical_cores": _usable_cores(),
        **({"threads": torch.get_num_threads()} if torch else {}),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{_system()} {platform.machine()}",
        "python": platform.python_version(),
        "secateur": secateur.__version__,
    }
    if torch and torch.cuda.is_available():
        record["gpu"] = torch.cuda.get_device_name()
        record["cuda"] = torch.version.cuda
    record.update({name: version for name in PACKAGES if (version := _version(name))})
    commit = _commit()
    return {**record, "commit": commit} if commit else record


def _processor() -> str:
    """The processor's own name; Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may run on, which a container or a job scheduler can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of secateur's own source tree, "+" where its code differs; None in an installed package.

    Asked only where the package lies in a `src` folder of its own repository: an environment inside someone else's
    repository must not lend that repository's commit. Texts and evidence rows are not code: a row that was just
    written must not make the next one look as if it came from other code.
    """
    source = Path(secateur.__file__).resolve().parents[1]
    if source.name != "src" or not (source.parent / ".git").exists():
        return None

    return _commit_of(source.parent)


@functools.cache
def _commit_of(repository: Path) -> str | None:
    """Asked once: what is imported is the code as it was."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno", "--", *CODE) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
