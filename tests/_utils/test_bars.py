"""Bars on a terminal and in a notebook, of which IPython's part is stood in for by a module of that name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from cells import stand_in
from secateur._utils.bars import are_shown, in_notebook, show_bar


def test_without_a_terminal_all_items_come_and_nothing_is_printed(capsys):
    assert list(show_bar(range(3), "rounds")) == [0, 1, 2]
    assert list(show_bar((letter for letter in "ab"), "letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "found"), [("ZMQInteractiveShell", True), ("TerminalInteractiveShell", False)])
def test_a_notebook_is_told_by_its_shell_or_what_that_is_built_on(monkeypatch, kind, found):
    assert not in_notebook()
    stand_in(monkeypatch, kind)
    assert in_notebook() is are_shown() is found


def test_an_ipython_that_is_half_imported_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    assert not in_notebook()
