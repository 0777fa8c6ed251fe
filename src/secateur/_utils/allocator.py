"""Return free heap memory of the C library to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

__all__ = ["release_memory"]


def release_memory() -> None:
    """Return free heap blocks to the system, within milliseconds; does nothing where the C library is not glibc.

    After a tensor of up to 32 MiB was freed, glibc allocates all of that size on its heap, where a free block between
    two used ones stays resident: a process that works in rounds of different sizes would grow with each.
    """
    with suppress(OSError, AttributeError, TypeError):  # no such function; no library that is the process itself
        ctypes.CDLL(None).malloc_trim(0)
