"""Notes on data are warnings, and kept while somebody wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur._utils.noting import keep_notes, keep_notes_in, list_notes, note
from secateur.errors import DataWarning, RunError


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


@pytest.mark.filterwarnings("ignore::secateur.errors.DataWarning")
def test_a_run_that_goes_on_has_the_notes_of_steps_that_it_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "notes.json"

    def go(*lines: str) -> tuple[str, ...]:
        with keep_notes():
            note("read")
            keep_notes_in(file)
            for line in lines:
                note(line)
            return list_notes()

    assert go("scored", "scored") == ("read", "scored")
    assert go("cut") == ("read", "scored", "cut")
    monkeypatch.setattr("secateur._utils.distributed.index", lambda: 1)
    assert go() == ("read",)  # the first process alone writes evidence
    monkeypatch.undo()
    file.write_text("[")
    with pytest.raises(RunError, match=r"notes\.json is damaged: delete it and run the same command again"):
        go()
    keep_notes_in(file)  # nobody keeps any
    assert list_notes() == ()
