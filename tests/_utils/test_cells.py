"""A bar as an output of a cell, of which IPython's part is stood in for by a module of that name."""

from __future__ import annotations

from rich.progress import BarColumn, TextColumn

from cells import stand_in
from secateur._utils.bars import make_bar, show_bar


def test_a_bar_in_a_notebook_is_one_output_that_changes_and_goes_away(monkeypatch, capsys):
    outputs = stand_in(monkeypatch)
    monkeypatch.setattr("secateur._utils.cells._EVERY", 0.0)
    assert list(show_bar(range(2), "rounds")) == [0, 1]
    (looks,) = outputs
    assert all("rounds" in look for look in looks[1:-1])
    assert "50%" in "".join(looks)
    assert looks[-1] == ""
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_stays_shows_its_last_state_and_not_every_one_before(monkeypatch):
    outputs = stand_in(monkeypatch)
    with make_bar(TextColumn("{task.completed:.0f} of 900"), BarColumn()) as bar:
        task = bar.add_task("", total=900)
        for _ in range(900):
            bar.advance(task)
    (looks,) = outputs
    assert "900 of 900" in looks[-1]
    assert len(looks) < 100
