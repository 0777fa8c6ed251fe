"""16-byte digests of examples, to find duplicates."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIZE", "digests", "normalise_words"]

SIZE = 16
"""Bytes of a digest: of a billion examples, two that differ meet with a chance of about 1e-21."""
_WORD = re.compile(r"\w+")


def digests(parts: Iterable[bytes | memoryview]) -> NDArray[np.void]:
    """BLAKE2b digests [N] of N parts, in order."""
    found = b"".join(hashlib.blake2b(part, digest_size=SIZE).digest() for part in parts)
    return np.frombuffer(found, np.dtype((np.void, SIZE)))


def normalise_words(text: str) -> bytes:
    """The words of a text in Unicode's NFKC form, without case, with one space between them, as UTF-8.

    A text without any word stands for itself.
    """
    plain = " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
    return (plain or text).encode("utf-8", "surrogatepass")
