"""One call of a recipe on a subject in memory, in a run directory of its own that is deleted afterwards."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur import recipes, vocabulary
from secateur._utils.rundir import Run
from secateur.vocabulary import Budget, Result

__all__ = ["call", "prune", "prune_all"]


def prune(name: str, subject: Any, data: Any, budget: str, **options: Any) -> Result:
    """What the recipe called `name` gives at one budget."""
    return prune_all(name, subject, data, [budget], **options)[0]


def prune_all(
    name: str, subject: Any, data: Any, budgets: Sequence[str], *, folder: Path | None = None, **options: Any
) -> list[Result]:
    """What the recipe called `name` gives at each budget, of one run; in `folder`, where its files are to be read."""
    return call(recipes.find(name), subject, data, budgets, folder=folder, **options)


def call(
    recipe: Callable[..., Iterator[Result]],
    subject: Any,
    data: Any,
    budgets: Sequence[str],
    *,
    folder: Path | None = None,
    **options: Any,
) -> list[Result]:
    """The results of a recipe, or of what has its form."""
    limits = [Budget.parse(budget) for budget in budgets]
    with tempfile.TemporaryDirectory() as place, Run.open(folder or Path(place, "run"), {}) as run:
        return list(recipe(subject, data, limits, run, **fit_options(recipe, options)))


def fit_options(recipe: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Options as the recipe's signature takes them: flat ones of its `training` become one value."""
    parameters = inspect.signature(recipe).parameters
    kind = getattr(vocabulary, "Training", None)
    if kind is None or "training" not in parameters or not isinstance(parameters["training"].default, kind):
        return options
    fields = {field.name for field in dataclasses.fields(kind)}
    changes = {key: value for key, value in options.items() if key in fields and key not in parameters}
    if "train_batch" in options and "train_batch" not in parameters:
        changes["batch"] = options["train_batch"]
    rest = {key: value for key, value in options.items() if key not in changes and key != "train_batch"}
    if "train_batch" in parameters and "train_batch" in options:
        rest["train_batch"] = options["train_batch"]
    return {**rest, "training": dataclasses.replace(parameters["training"].default, **changes)}
