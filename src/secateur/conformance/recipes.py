"""The laws of a recipe, on a toy."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateur import recipes
from secateur._utils import rundir
from secateur.conformance.comparisons import Output, assert_equal_outputs, expect_refusal, output_of, random_scores
from secateur.runs import keywords
from secateur.select import pattern, ranking, weights
from secateur.select.arrays import as_numpy
from secateur.subjects import matrices
from secateur.vocabulary import Budget, Limit, Result, Selection, Site, Units

__all__ = ["check_recipe"]

_CARD = ("title", "paper", "cuts", "recovers", "extra", "family")


def check_recipe(
    name: str,
    subject: Any,
    data: object,
    budget: Budget | str,
    *,
    options: Mapping[str, object] | None = None,
    quality: Callable[[Any], float] | None = None,
    output: Output | None = None,
    recipe: Callable[..., Iterator[Result]] | None = None,
    card: Mapping[str, str] | None = None,
    chances: int = 3,
) -> list[str]:
    """Check the laws of a recipe on a toy: give a subject and data so small that a run takes seconds.

    Args:
        name: the recipe's name.
        subject: what it prunes; its units should differ in worth, or nothing can beat chance.
        data: a `secateur.data.texts.Corpus`.
        budget: what may stay.
        options: the recipe's keywords, say fewer steps.
        quality: subject -> number, higher is better; without it, minus the mean squared difference of outputs from
            those of `subject`.
        output: subject -> array, as in `check_subject`.
        recipe: the function; without it, the one that secateur has under `name`.
        card: its card; without it, the one that secateur reads.
        chances: random selections at the same budget, of the kinds of units it cut, whose mean quality it must beat.

    Returns the names of the laws checked: `card`, `within budget`, `original untouched`, `repeats`, `resumes`,
    `beats chance`, `refuses`.
    """
    card = card if card is not None else recipes.cards()[name]
    missing = [key for key in _CARD if key not in card or (key != "extra" and not card[key])]
    assert not missing, f"the card of {name} lacks {', '.join(missing)}"
    function = recipe or recipes.find(name)
    assert function.__name__ == name, f"recipe {name} is a function called {function.__name__}"

    budget, options = Budget.parse(budget), dict(options or {})
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    chosen = options if open_ended else keywords.check_options(function, options)
    output = output or output_of(subject)
    assert output, "give output=: this subject has no forward and example"
    before = output(subject)

    def run(folder: Path, wanted: Budget = budget) -> Result:
        with rundir.Run.open(folder, {"budget": str(wanted), **options}) as opened:
            results = list(function(subject, data, [wanted], opened, **chosen))
        assert len(results) == 1, f"{name} gave {len(results)} results for one budget"
        first: Result = results[0]
        return first

    def fidelity(one: object) -> float:
        return -float(((as_numpy(output(one)) - as_numpy(before)) ** 2).mean())

    model: object = getattr(subject, "model", None)
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if hasattr(module, "running_mean"):
            module.training = True  # as constructors give it: a pass of the original would change its statistics
    state = _state_of(model)
    with tempfile.TemporaryDirectory() as place:
        result = run(Path(place) / "first")
        assert result.name == str(budget), f"the result is called {result.name}, the budget {budget}"
        assert not result.cut.is_noop, f"{name} removed nothing at {budget}"
        whole = dict(result.cut.before) if _sparse(budget) else {**result.cut.before, **subject.units().cost()}
        limits = budget.absolute(whole) if "latency" not in budget else {}
        counted = _nonzero(result, budget) if _sparse(budget) else result.subject.units().cost()
        for measure, limit in limits.items():
            for what, cost in (("predicted", result.predicted), ("counted", counted)):
                assert cost[measure] <= limit * (1 + 1e-9), f"{what} {measure} is {cost[measure]:g}, over {limit:g}"
        for key, value in _state_of(model).items():
            assert_equal_outputs(value, state[key], 0.0, f"{key} of the original afterwards")
        assert_equal_outputs(output(subject), before, 0.0, "the original's output afterwards")
        answer = output(result.subject)
        assert_equal_outputs(output(run(Path(place) / "second").subject), answer, 0.0, "the same run twice")
        assert_equal_outputs(output(run(Path(place) / "first").subject), answer, 0.0, "the run resumed")
        _beats_chance(subject, result, budget, quality or fidelity, chances)
        measure = budget.limits[0].measure if budget.limits else "pattern"
        least = f"{measure}=0.0001%" if budget.limits else "pattern=4:4"  # a pattern that takes nothing
        error = expect_refusal(lambda: run(Path(place) / "third", Budget.parse(least)), name)
        assert measure in str(error), f"the refusal does not name the measure: {error}"
    return ["card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"]


def _state_of(model: object) -> dict[str, np.ndarray]:
    """Copies of what a network holds, statistics that a pass in training mode would change among it."""
    held = model.state_dict() if isinstance(model, nn.Module) else {}
    return {name: np.array(as_numpy(value)) for name, value in held.items() if hasattr(value, "shape")}


def _beats_chance(subject: Any, result: Result, budget: Budget, quality: Callable[[Any], float], chances: int) -> None:
    if _sparse(budget):
        random = [_zero_at_random(subject, result, budget, seed) for seed in range(chances)]
    else:
        units = subject.units(*_chosen_kinds(subject.units(), result))
        if any(limit.measure not in units.cost() for limit in budget.limits):
            # A time, say: what the recipe kept is then the budget of chance.
            budget = Budget((Limit("params", result.subject.units().cost()["params"]),))
        scores = [random_scores(units, seed) for seed in range(chances)]
        random = [subject.cut(ranking.by_budget(units, score, budget, scope="local"))[0] for score in scores]
    ours, theirs = quality(result.subject), sum(quality(one) for one in random) / chances
    assert ours > theirs, f"quality is {ours:g}, that of random selections at the same budget {theirs:g}"


def _sparse(budget: Budget) -> bool:
    """Whether single weights go: the result has zeros in place of smaller tensors."""
    return budget.pattern is not None or "weights" in budget


def _matrices(subject: Any) -> dict[str, Any]:
    within = subject.layers() if hasattr(subject, "layers") else None
    return dict(matrices.matrices(subject.model, within))


def _is_pruned(subject: object, name: str) -> bool:
    """Whether a matrix was pruned, as far as a subject that keeps masks says so: others may hold zeros by rounding."""
    masks = getattr(subject, "masks", {})
    return not masks or name in masks


def _nonzero(result: Result, budget: Budget) -> dict[str, float]:
    """Weights that are not zero, counted on the result; its pattern is checked on the way."""
    count = 0
    for name, matrix in _matrices(result.subject).items():
        stays = as_numpy(matrix.weight) != 0
        count += int(stays.sum())
        if budget.pattern is not None and not stays.all() and _is_pruned(result.subject, name):
            m = budget.pattern.m
            runs = stays[:, : stays.shape[1] // m * m].reshape(-1, m)
            assert runs.sum(1).max(initial=0) <= budget.pattern.n, f"{name} does not keep to {budget.pattern}"
    return {"weights": float(count)}


def _zero_at_random(subject: Any, result: Result, budget: Budget, seed: int) -> object:
    """A copy with as many zeros as the result in each of its matrices, and as few units (experts), at random places."""
    draw = np.random.default_rng(seed)
    units, keep = subject.units(), {}
    for site in units.only(*_chosen_kinds(units, result)).free():
        if site.name in result.cut.removed:
            keep[site.name] = np.ones(site.count, bool)
            keep[site.name][draw.permutation(site.count)[: result.cut.removed[site.name][0]]] = False
    chance, found = subject.cut(Selection(keep))[0] if keep else subject.copy(), _matrices(result.subject)
    for name, matrix in _matrices(chance).items():
        stays = as_numpy(found[name].weight) != 0
        if stays.all() or not _is_pruned(result.subject, name):
            continue
        scores = draw.random(stays.shape)
        runs = (budget.pattern.n, budget.pattern.m) if budget.pattern is not None else None
        mask = pattern.n_of_m(scores, *runs) if runs else weights.best(scores, stays.mean(), "matrix")
        matrix.weight.mul_(matrix.weight.new_tensor(mask))
    return chance


def _chosen_kinds(units: Units, result: Result) -> list[str]:
    """The kinds of units that the recipe chose itself: not those that went because their owner did."""

    def share(name: str) -> float:
        gone, count = result.cut.removed.get(name, (0, 1))
        return gone / count

    def chosen(site: Site) -> bool:
        return share(site.name) > (share(site.owner[0]) if site.owner else 0.0)

    return list(dict.fromkeys(site.kind for site in units.sites.values() if chosen(site)))
