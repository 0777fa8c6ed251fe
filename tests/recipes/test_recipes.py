"""Recipes, their cards and options, read from text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur import recipes
from secateur.errors import UnknownRecipeError

SOURCE = '''
from typing import Annotated, Literal
from annotated_types import Ge, Gt, Le
from secateur.vocabulary import Training

Host = Literal['kd', 'none']
Share = Annotated[float, Gt(0), Le(1)]


def f(a, b: str = "x", *, n: Annotated[int, Ge(1)] = 3, share: Share | None = None, names: Sequence[str] = ("x",),
      host: Host = "kd", must: str, length: int = 8, training: Training = Training(steps=5, batch=4)):
    """Say.

    Args:
        n: how many,
            at most.
        must, host: given.
        steps: of its own.

    More.
    """
'''


def test_options_are_read_as_text():
    options = {option.name: option for option in recipes.read_options(SOURCE, "f")}
    assert {name: (option.default, option.annotation) for name, option in options.items() if name != "must"} == {
        "n": (3, "int"),
        "share": (None, "float | None"),
        "names": (("x",), "Sequence[str]"),
        "host": ("kd", "Literal['kd', 'none']"),
        "length": (8, "int"),
        "steps": (5, "int | None"),
        "train_batch": (4, "int | None"),
        "training": ("", "str | Sequence[str]"),
        "patience": (None, "int | None"),
        "validation": (None, "float | None"),
    }
    assert options["n"].help == "how many, at most."
    assert options["must"].help == options["host"].help == "given."
    assert options["steps"].help == "of its own."
    assert options["train_batch"].help == "Examples or sequences per micro-batch."
    assert (options["n"].bounds, options["share"].bounds) == ("at least 1", "above 0 and at most 1")
    both = recipes.read_options(SOURCE, "f", by_position=True)
    assert [option.name for option in both[:3]] == ["a", "b", "n"]


def test_parameters_of_a_function_are_read_where_it_is_defined():
    found = {option.name: option for option in recipes.parameters("secateur.distill")}
    assert list(found)[:4] == ["student", "teachers", "data", "out"]
    assert found["steps"].default == 1000
    assert found["temperature"].help.startswith("T of both predictions' softmax; their divergence is")


MODULE = '''raise RuntimeError("nobody imports it")
CARD = {
    "title": "Toy", "paper": "none", "cuts": "x", "recovers": "x", "extra": "", "family": "toys",
}


def toy(subject: str, *, share: float = 0.5):
    """A toy."""
'''


def test_installed_packages_add_recipes_which_are_read_without_importing_them(tmp_path: Path, monkeypatch):
    before = recipes.cards()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text('raise RuntimeError("nobody imports it")')
    (tmp_path / "pack" / "toy.py").write_text(MODULE)
    (tmp_path / "pack-1.dist-info").mkdir()
    (tmp_path / "pack-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1\n")
    points = "[secateur.recipes]\ntoy = pack.toy:toy\nziplm = pack.toy:toy\ngone = pack.gone:gone\n"
    (tmp_path / "pack-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    cards = recipes.cards()
    assert set(cards) - set(before) == {"toy"}
    assert cards["toy"]["title"] == "Toy"
    assert cards["ziplm"] == before["ziplm"], "one of ours is not replaced"
    assert [(option.name, option.default) for option in recipes.signature("toy")] == [("share", 0.5)]
    assert (recipes.subject("toy"), recipes.describe("toy"), recipes.training("toy")) == ("str", "A toy.", [])
    assert "pack" not in sys.modules
    with pytest.raises(RuntimeError, match="nobody imports it"):
        recipes.find("toy")


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(UnknownRecipeError, match="did you mean 'ziplm'"):
        recipes.signature("zipml")
    with pytest.raises(UnknownRecipeError, match=r"known: ast, .*ziplm"):
        recipes.find("qqqqqq")


def test_choices_that_another_module_names_are_written_out():
    kinds = {
        (recipe, option.name): option.annotation for recipe in recipes.cards() for option in recipes.signature(recipe)
    }
    choices = "Literal['row', 'block', 'matrix', 'global']"
    assert (kinds["wanda", "scope"], kinds["owl", "scope"]) == (choices, f"{choices} | None")
    assert kinds["ziplm", "environment"] == "Literal['prefill', 'decode']"  # an option of a group's class
    assert kinds["ignore_top_k", "action"] == "Literal['drop', 'keep']"
    assert kinds["ignore_top_k", "sign"] == "Literal['both', 'positive', 'negative']"
