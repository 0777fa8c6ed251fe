"""Free memory that the C library keeps."""

from __future__ import annotations

import ctypes
from contextlib import suppress

__all__ = ["give_back"]


def give_back() -> None:
    """Give what lies free on the heap back to the system, within milliseconds; glibc alone can, elsewhere it stays.

    Once a tensor of up to 32 MiB was freed, glibc puts all of its size on its heap, where a free block between two that
    are held stays resident: a process that works in rounds, each with other sizes, grows from one to the next.
    """
    with suppress(OSError, AttributeError, TypeError):  # no such function; no library that is the process itself
        ctypes.CDLL(None).malloc_trim(0)
