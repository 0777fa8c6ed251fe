"""Encoders of texts for tests, in no time: the same text, the same vector."""

from __future__ import annotations

import itertools
import zlib

import numpy as np

from secateur.subjects.text import markup


def bag(texts):
    """How often each of 512 kinds of words stands in a text."""
    return _counted((markup.terms(text) for text in texts), len(texts), 512)


def by_letters(texts):
    """How often each of 1,024 kinds of pairs of letters stands in a text: what is spelt alike is near."""
    pairs = (["".join(pair) for pair in itertools.pairwise(f" {text.lower()} ")] for text in texts)
    return _counted(pairs, len(texts), 1024)


def _counted(parts, rows, width):
    found = np.zeros((rows, width), dtype=np.float32)
    for row, some in zip(found, parts, strict=True):
        for part in some:
            row[zlib.crc32(part.encode()) % width] += 1
    return found
