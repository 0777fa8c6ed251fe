"""Notes on data are warnings, and kept while somebody wants them."""

from __future__ import annotations

import pytest

from secateur._utils.noting import keep_notes, list_notes, note
from secateur.errors import DataWarning


def test_notes_are_kept_once_each_by_the_innermost_that_keeps_them():
    with pytest.warns(DataWarning, match="lost"):
        note("lost")
    assert list_notes() == ()

    @keep_notes()
    def read() -> tuple[str, ...]:
        for line in ("b", "a", "b"):
            with pytest.warns(DataWarning, match=line):
                note(line)
        return list_notes()

    with keep_notes():
        assert read() == read() == ("b", "a")
        assert list_notes() == ()
