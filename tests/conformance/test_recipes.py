"""Every recipe obeys the laws of `secateur.conformance` on the toy that its own test file brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur import conformance, recipes
from secateur.select import ranking
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Result
from subjects import nets

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


def test_a_recipe_that_changes_statistics_of_the_original_is_caught() -> None:
    def careless(subject, data, budgets, run, **options):
        """Asks the original in the mode in which it comes."""
        subject.model(torch.rand(4, 3, 8, 8))
        scores = {site.name: np.arange(float(site.count)) for site in subject.units().free()}
        student, cut = subject.cut(ranking.by_budget(subject.units(), scores, budgets[0]))
        yield Result(str(budgets[0]), student, cut, cut.after)

    model, inputs = nets.make("residual")
    how = {"recipe": careless, "card": dict.fromkeys(("title", "paper", "cuts", "recovers", "extra", "family"), "x")}
    with pytest.raises(AssertionError, match="running_mean of the original afterwards"):
        conformance.check_recipe("careless", open_traced(model, inputs), None, "params=80%", output=outputs, **how)


def outputs(subject: Traced) -> torch.Tensor:
    with torch.no_grad():
        return subject.model.eval()(torch.ones(2, 3, 8, 8))
