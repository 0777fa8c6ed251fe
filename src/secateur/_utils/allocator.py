"""What the C library does with memory that was freed: give it back to the system, or keep it for what comes next."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["keep_memory", "release_memory"]

_TRIM, _MAP = -1, -3
"""Parameters of glibc's mallopt: from which size on a free end of the heap goes back, and a block is mapped alone."""

_USUAL = 32 * 2**20
"""Bytes at which glibc maps a block alone once it has seen one of that size freed; it trims at twice as many."""


def release_memory() -> None:
    """Return free heap blocks to the system, within milliseconds; does nothing where the C library is not glibc.

    After a tensor of up to 32 MiB was freed, glibc allocates all of that size on its heap, where a free block between
    two used ones stays resident: a process that works in rounds of different sizes would grow with each.
    """
    with suppress(OSError, AttributeError, TypeError):  # no such function; no library that is the process itself
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def keep_memory() -> Iterator[None]:
    """Within the block what the main thread freed serves what it asks for next; other C libraries do as they did.

    By itself glibc gives the end of its heap back, and whether a pass then works on fresh pages, each of which the
    kernel zeroes first, hangs on what the process did before: MiniLM takes a quarter longer so, its half an eighth.
    """
    _set(2**31 - 1, 2**30)
    try:
        yield
    finally:
        _set(2 * _USUAL, _USUAL)
        release_memory()


def _set(trim: int, mapped: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM, trim)
        library.mallopt(_MAP, mapped) or library.mallopt(_MAP, _USUAL)  # before glibc 2.35 that is the most
