from __future__ import annotations

from secateur._utils.bars import show_bar


def test_without_a_terminal_all_items_come_and_nothing_is_printed(capsys):
    assert list(show_bar(range(3), "rounds")) == [0, 1, 2]
    assert list(show_bar((letter for letter in "ab"), "letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
