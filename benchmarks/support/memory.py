"""What a process holds, read from the kernel: resident bytes now, and at the highest point since the last reset."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

__all__ = ["MIB", "highest", "reset", "resident"]

MIB = 2**20
_PROC = Path("/proc/self")


def resident() -> int:
    """Resident bytes, once free blocks have been given back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc; elsewhere free blocks stay where they are
    return _status("VmRSS")


def reset() -> None:
    """Let `highest` count from here on. Raises OSError where the kernel does not offer it."""
    (_PROC / "clear_refs").write_text("5")


def highest() -> int:
    """The highest resident size since the process began, or since `reset`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
