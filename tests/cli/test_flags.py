from __future__ import annotations

import pytest

from secateur.cli.flags import Flag, extra, of_options
from secateur.errors import InputError
from secateur.recipes import Option


def test_help_begins_with_a_capital_unless_it_begins_with_a_value():
    texts = {"how many [of them].": r"How many \[of them].", "onnx, decilm or int8.": "onnx, decilm or int8."}
    assert [extra("x", "str", text).help() for text in texts] == list(texts.values())


def test_defaults_are_shown_of_all_options_of_recipes_and_of_others_where_they_say_something():
    options = [Option("a", 0, "int", "Of it."), Option("b", 3, "int", "Of it."), Option("c", "", "str", "Of it.")]
    assert [flag.help() for flag in of_options(options, "x")] == ["Of it. (default 0)", "Of it. (default 3)", "Of it."]
    assert [Flag(option, "--x").help() for option in options] == ["Of it.", "Of it. (default 3)", "Of it."]


def test_numbers_of_commands_are_checked_at_once_and_those_of_recipes_with_their_other_options():
    assert extra("seed", "int | None", "").value("3") == 3
    for kind, number in (("int", "a whole number"), ("float", "a number")):
        with pytest.raises(InputError, match=f"--seed one: give {number}"):
            extra("seed", kind, "").value("one")
    (flag,) = of_options([Option("steps", 3, "int", "")], "x")
    assert flag.value("one") == "one"
    assert Flag(Option("match", (), "Sequence[str]", ""), "--match", again=True).value(["a,b"]) == ["a,b"]
