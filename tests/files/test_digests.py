"""Digests: equal for what is equal, and for texts of equal words."""

from __future__ import annotations

import numpy as np

from secateur.files import digests


def test_equal_parts_have_equal_digests_and_no_others():
    found = digests.of([b"one", b"two", b"one", b""])
    assert found.shape == (4,)
    assert found.dtype.itemsize == digests.SIZE
    assert found[0] == found[2]
    assert len(np.unique(found)) == 3
    assert digests.of([]).shape == (0,)


def test_words_are_what_is_left_without_case_spaces_and_punctuation():
    assert digests.words("  The CAT -- sat.\n") == digests.words("the cat sat")
    assert digests.words("ﬁne") == digests.words("fine")  # a ligature
    assert digests.words("the cat sat") != digests.words("the cats at")
    assert digests.words("?!") == b"?!"
