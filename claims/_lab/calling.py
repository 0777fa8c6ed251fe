"""One call of a recipe on a subject in memory, in a run directory of its own that is deleted afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur import recipes
from secateur._utils.rundir import Run
from secateur.runs import keywords
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
    memory: Run | None = None,
    **options: Any,
) -> list[Result]:
    """The results of a recipe, or of what has its form. Options are given flat, as flags are: `steps`, `lr`, ...

    folder: of the run, where its files are to be read. memory: a run without files, in place of one.
    """
    limits, how = [Budget.parse(budget) for budget in budgets], keywords.check_options(recipe, options)
    if memory is not None:
        return list(recipe(subject, data, limits, memory, **how))
    with tempfile.TemporaryDirectory() as place, Run.open(folder or Path(place, "run"), {}) as run:
        return list(recipe(subject, data, limits, run, **how))
