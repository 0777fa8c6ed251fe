"""Every recipe obeys the laws of `secateur.conformance` on the toy that its own test file brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from secateur import conformance, recipes

LAWS = {"card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"}


@pytest.mark.parametrize("name", recipes.cards())
def test_recipes(name: str, tmp_path: Path) -> None:
    family = recipes.cards()[name]["family"]
    file = Path(__file__).parents[1] / "recipes" / family / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"toy_of_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(conformance.check_recipe(name, **module.toy(tmp_path))) == LAWS
