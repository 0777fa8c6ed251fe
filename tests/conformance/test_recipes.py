"""Every recipe obeys the laws of `secateur.conformance` on a toy."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from secateur import conformance, recipes
from secateur.files import texts
from secateur.subjects import open_subject

# Recipe -> the toy: kind of model, budget, and options that make it quick. A new recipe adds none: the default does.
DEFAULT = ("llama", "params=75%", {})
TOYS: dict[str, tuple[str, str, dict]] = {
    "ziplm": ("bert", "params=75%", {"steps": 0, "calibration": 32, "trials": 4, "judged": 16}),
}
LAWS = {"card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"}


@pytest.mark.parametrize("name", recipes.cards())
def test_recipes(name: str, tmp_path: Path) -> None:
    kind, budget, options = TOYS.get(name, DEFAULT)
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    data = texts.read(tiny.sentences())
    assert set(conformance.check_recipe(name, subject, data, budget, options=options)) == LAWS
