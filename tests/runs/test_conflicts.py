"""Conflict prompts from Python: made, filtered, drawn, written."""

from __future__ import annotations

import pytest

import tiny
from assets import facts
from secateur.data import conflicts as reading
from secateur.errors import DataError, InputError, RunError
from secateur.runs.backends.language import Language
from secateur.runs.conflicts import make_conflicts

WORLD = facts.World()


def test_prompts_are_written_and_read_again(tmp_path):
    table = facts.write_table(WORLD, tmp_path / "facts.jsonl")
    out = tmp_path / "prompts.jsonl"
    made = make_conflicts(table, tiny.knowing(WORLD), out, relation="capital", kind="coherent", count=10)
    assert len(made) == 10
    assert "prompts drawn" in made.notes[-1]
    assert reading.read(out).items == made.items
    assert {(one.relation, one.kind) for one in made.items} == {("capital", "coherent")}
    again = make_conflicts(facts.rows(WORLD), tiny.knowing(WORLD), relation="capital", kind="coherent", count=10)
    assert again.items == made.items


def test_nothing_is_written_of_what_is_refused(tmp_path):
    out = tmp_path / "prompts.jsonl"
    table = facts.rows(WORLD)
    model = tiny.folder("gpt2", tmp_path / "gpt2")
    with pytest.raises(DataError):  # it knows none of the words
        make_conflicts(table, model, out)
    with pytest.raises(InputError, match="holds conflict prompts already"):
        make_conflicts([{"prompt": "a", "memory": "b", "context": "c"}], tiny.knowing(WORLD), out)
    with pytest.raises(InputError, match="writes no text"):
        make_conflicts(table, tiny.folder("bert", tmp_path / "bert"), out)
    with pytest.raises(InputError, match="count=0"):
        make_conflicts(table, tiny.knowing(WORLD), out, count=0)
    assert not out.exists()


def test_what_is_there_is_not_written_over(tmp_path, monkeypatch):
    """Told before the model is opened: the table of facts was lost, and a folder refused after all had been asked."""
    table, out = facts.write_table(WORLD, tmp_path / "facts.jsonl"), tmp_path / "prompts.jsonl"
    (tmp_path / "same.jsonl").symlink_to(table)
    out.write_text("mine")
    before = table.read_text()
    monkeypatch.setattr(Language, "open", lambda *_: pytest.fail("opened"))
    for place, overwrite, words in (
        (table, False, "is the table of facts itself"),
        (tmp_path / "same.jsonl", True, "is the table of facts itself"),
        (out, False, "is there already: give another name"),
        (tmp_path, True, "is a folder: give the name of a file in it"),
    ):
        with pytest.raises(RunError, match=words):
            make_conflicts(table, "model", place, overwrite=overwrite)
    assert (table.read_text(), out.read_text()) == (before, "mine")
    monkeypatch.undo()
    made = make_conflicts(table, tiny.knowing(WORLD), out, count=3, overwrite=True)
    assert reading.read(out).items == made.items
