"""The laws of a rule of selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from secateur.conformance.comparisons import (
    assert_equal_costs,
    assert_equal_selections,
    assert_superset,
    expect_refusal,
    random_scores,
)
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Budget, Scores, Selection, Site, Units

__all__ = ["check_selection"]


def check_selection(select: Callable[[Units, Scores, Budget], Selection], *, superset: bool = True) -> list[str]:
    """Check the laws of a function (units, scores, budget) -> selection on sites of four unlike kinds.

    Args:
        select: the function, say `lambda u, s, b: my_rule(u, s, b, alpha=0.5)`.
        superset: whether a larger budget must keep all that a smaller one keeps (rankings do, exact solvers need not).

    Returns the names of the laws checked: `within budget`, `spent = cost`, `fixed stays`, `repeats`, `whole`,
    `refuses`, `NumPy = torch` (where torch is installed) and `superset`.
    """
    laws: dict[str, None] = {}
    for name, units in _sample_units().items():
        measures = list(units.cost())
        scores = random_scores(units, 1)
        for share in (0.9, 0.7, 0.5):
            budget = Budget.parse(",".join(f"{measure}={share:%}" for measure in measures))
            chosen, again = select(units, scores, budget), select(units, scores, budget)
            cost, limits = units.cost(chosen.keep), budget.absolute(units.cost())
            for measure in measures:
                assert cost[measure] <= limits[measure], (
                    f"{name}: {measure} is {cost[measure]:g}, over the budget of {limits[measure]:g}"
                )
            laws["within budget"] = None
            assert_equal_costs(chosen.spent, cost, f"{name}: what the selection says it spends")
            laws["spent = cost"] = None
            for site in units.free():
                keep = as_numpy(chosen.keep.get(site.name, np.ones(site.count))).astype(bool)
                if site.fixed is not None:
                    assert keep[as_numpy(site.fixed).astype(bool)].all(), f"{name}: a fixed unit of {site.name} went"
                    laws["fixed stays"] = None
                rules = f"multiples of {site.multiple}, at least {site.minimum}"
                obeys = keep.sum() % site.multiple == 0 and keep.sum() >= site.minimum
                assert obeys, f"{name}: {site.name} keeps {keep.sum()} units; {rules}"
            assert_equal_selections(chosen, again, f"{name}: the same question twice")
            laws["repeats"] = None
            tensors = {site: torch.from_numpy(column) for site, column in scores.items()}
            what = f"{name}: torch scores against NumPy scores"
            assert_equal_selections(select(units, tensors, budget), chosen, what)
            laws["NumPy = torch"] = None
        full = select(units, scores, Budget.parse(f"{measures[0]}=100%"))
        assert all(as_numpy(keep).all() for keep in full.keep.values()), f"{name}: something went at a budget of 100 %"
        laws["whole"] = None
        refusal = expect_refusal(lambda: select(units, scores, Budget.parse(f"{measures[0]}=0.0001%")), name)  # noqa: B023
        reachable = getattr(refusal, "reachable", None)
        assert reachable is not None, f"{name}: the refusal does not say what is reachable: {refusal}"
        laws["refuses"] = None
        if superset:
            assert_superset(select, units, scores, measures[0])
            laws["superset"] = None
    return list(laws)


def _sample_units() -> dict[str, Units]:
    """Neurons of a network, examples of a training set, blocks of a page, and heads in groups."""
    draw = np.random.default_rng(0)
    neurons = {
        f"layers.{i}.neurons": Site(f"layers.{i}.neurons", 16, {"params": np.full(16, 5.0)}, multiple=4)
        for i in range(3)
    }
    tokens = draw.integers(1, 40, 30).astype(float)
    fixed = np.arange(30) == 7
    heads = Site("layers.0.heads", 8, {"params": np.full(8, 12.0)}, group=np.repeat([0, 1], 4), minimum=2)
    return {
        "neurons": Units(neurons, base={"params": 10.0}),
        "examples": Units({"train": Site("train", 40, {"examples": np.ones(40)}, minimum=1)}, base={"examples": 0.0}),
        "blocks of a page": Units({"page": Site("page", 30, {"tokens": tokens}, fixed=fixed)}),
        "grouped heads": Units({"layers.0.heads": heads}),
    }
