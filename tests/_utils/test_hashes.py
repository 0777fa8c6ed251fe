"""Digests: equal for what is equal, and for texts of equal words."""

from __future__ import annotations

import numpy as np

from secateur._utils import hashes


def test_equal_parts_have_equal_digests_and_no_others():
    found = hashes.digests([b"one", b"two", b"one", b""])
    assert found.shape == (4,)
    assert found.dtype.itemsize == hashes.SIZE
    assert found[0] == found[2]
    assert len(np.unique(found)) == 3
    assert hashes.digests([]).shape == (0,)


def test_words_are_what_is_left_without_case_spaces_and_punctuation():
    assert hashes.normalise_words("  The CAT -- sat.\n") == hashes.normalise_words("the cat sat")
    assert hashes.normalise_words("ﬁne") == hashes.normalise_words("fine")  # a ligature
    assert hashes.normalise_words("the cat sat") != hashes.normalise_words("the cats at")
    assert hashes.normalise_words("?!") == b"?!"
