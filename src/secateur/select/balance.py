"""Balanced rankings: every group keeps its share, however scores differ between groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.errors import InfeasibleError, InputError
from secateur.select import ranking
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Array, Budget, Selection, Units

__all__ = ["by_budget", "within"]


def within(scores: Array, group: Array) -> Array:
    """[count]: 1 - (t - 1/2) / n of the t-th best of the n units of its group (t from 1), for `ranking` to go by.

    A ranking by these keeps round(f n) of every group, for one f that fits the budget: Webster's method, whose
    selections are nested as budgets grow, and which is never over budget. Of shares f n that are whole it keeps those.
    Equals keep the lower index, within a group and among groups. Sum_g round(f n_g) for the f that is asked for may lie
    above the budget, by up to half a unit for each group: then fewer are kept here.

    scores, group: NumPy or torch; what is given back is float64 of the same library as the scores.
    Source: Balinski and Young, Fair Representation (1982), chapter 9.
    """
    worth, member = as_numpy(scores), np.unique(as_numpy(group, None), return_inverse=True)[1]
    if worth.ndim != 1 or member.shape != worth.shape:
        raise InputError(f"{worth.shape} scores in groups of shape {member.shape}: give one group for each score")
    order = np.lexsort((np.arange(len(worth)), -worth, member))
    sizes = np.bincount(member)
    place = np.arange(len(worth)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    result = np.empty(len(worth))
    result[order] = 1.0 - (place + 0.5) / sizes[member[order]]
    return scores.double().new_tensor(result) if hasattr(scores, "new_tensor") else result


def by_budget(
    units: Units, site: str, scores: Array, budget: Budget | str, group: Array, names: Sequence[str] = ()
) -> Selection:
    """The best of every group of one site, the same share of each, as much as fits the budget: `within`, ranked.

    names: what group 0, 1, ... are called. Raises `InfeasibleError` where a group would keep nothing, with the least
    cost, in the budget's first measure, at which all keep something.
    """
    value, member = within(scores, group), as_numpy(group, None)
    chosen = ranking.by_budget(units, {site: value}, budget)
    keep = as_numpy(chosen.keep[site], bool)
    empty = np.setdiff1d(member, member[keep])
    if empty.size:
        rank = as_numpy(value)
        least = min(rank[member == number].max() for number in empty)
        measure = (chosen.budget or Budget.parse(budget)).limits[0].measure
        needed = units.cost({site: rank >= least})[measure]
        first, many = int(empty[0]), int((member == empty[0]).sum())
        called = repr(names[first]) if first < len(names) else str(first)
        raise InfeasibleError(
            f"budget {Budget.parse(budget).brief()} leaves nothing of class {called}, which has {many} of "
            f"{len(member)} units: {measure}={needed:.0f} keeps some of each class, or do not balance classes",
            needed,
        )
    return chosen
