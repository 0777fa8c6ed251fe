"""Digests: equal for what is equal, and for texts of equal words."""

from __future__ import annotations

import numpy as np

from secateur._utils import hashes


def test_equal_parts_have_equal_digests_and_no_others():
    found = hashes.of([b"one", b"two", b"one", b""])
    assert found.shape == (4,)
    assert found.dtype.itemsize == hashes.SIZE
    assert found[0] == found[2]
    assert len(np.unique(found)) == 3
    assert hashes.of([]).shape == (0,)


def test_words_are_what_is_left_without_case_spaces_and_punctuation():
    assert hashes.words("  The CAT -- sat.\n") == hashes.words("the cat sat")
    assert hashes.words("ﬁne") == hashes.words("fine")  # a ligature
    assert hashes.words("the cat sat") != hashes.words("the cats at")
    assert hashes.words("?!") == b"?!"
