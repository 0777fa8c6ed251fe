from __future__ import annotations

import inspect

import pytest

from secateur import recipes
from secateur.cli import values
from secateur.recipes import Option


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", "int", 3),
        ("2e-4", "float", 2e-4),
        ("none", "float | None", None),
        ("none", "float", "none"),
        ("none", "Literal['kd', 'none']", "none"),
        ("none", "Literal['kd', 'ce'] | None", None),
        ("none", "str | None", None),
        ("1,2", "Sequence[int]", ["1", "2"]),
        ("[1, 2]", "list[int]", [1, 2]),
        (["1, 2", "[3]", ""], "Sequence[int]", ["1", "2", 3]),
        (["1", "[3"], "Sequence[int]", "[3"),
        (["a, b"], "str | Sequence[str]", "a, b"),
        (["a,b", '["c", "d"]', "[ef]*"], "str | Sequence[str]", "a,b,c,d,[ef]*"),
        ([""], "str | Sequence[str]", ""),
        ("12", "str", "12"),
        ("12", "str | Path | Sequence[Mapping[str, Any]]", "12"),
        ("12", "Model | None", "12"),
        ("12", "int | Literal['all']", 12),
        ("no", "Literal['yes', 'no']", "no"),
        ("2", "Literal[1, 2]", 2),
        ("3", "Literal[1, 2]", "3"),
        ("2", "Literal['1', '2']", "2"),
        ("word", "int", "word"),
    ],
)
def test_text_becomes_what_the_annotation_says(text, annotation, value):
    assert values.parse(text, annotation) == value


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        ("Any", "NAME"),
        ("Sequence[str]", "Sequence[str]"),
        ("str | Sequence[str]", "Sequence[str]"),
        ("float | None", "float"),
        ("Literal['', 'a', 'b'] | None", "a|b"),
        ("str | Path | None", "PATH"),
        ("Model", "MODEL"),
    ],
)
def test_help_shows_the_choices_or_the_kind_of_a_value(annotation, shown):
    assert values.describe_kind(annotation) == shown


def test_help_says_what_holds_where_an_option_is_left_out():
    defaults = {inspect.Parameter.empty: "required", 0.5: "default 0.5", "kd": "default kd", None: "default None"}
    assert [values.describe_default(Option("x", default, "", "")) for default in defaults] == list(defaults.values())


def test_all_options_that_are_written_with_commas_may_be_given_again():
    """Those whose recipe reads their commas by `listed`, `loop.options` or `shapes.parse`."""
    named = {"training", "protect", "units", "keep", "widths", "shape", "tokens"}
    kinds = {
        f"{recipe}.{option.name}": option.annotation
        for recipe in recipes.cards()
        for option in recipes.signature(recipe)
        if (
            option.name in named
            and isinstance(option.default, str)
            and "Literal" not in option.annotation
            and not (option.name == "protect" and "protect.json" in option.help)
        )  # a file's name
        or f"{recipe}.{option.name}" == "slimmoe.stages"
    }
    assert len(kinds) >= 20
    assert {name: kind for name, kind in kinds.items() if kind != "str | Sequence[str]"} == {}
