"""Which groups of weights a budget removes: channels, or whole segments without breaking the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.errors import InfeasibleError, UnsupportedError
from secateur.select import ranking
from secateur.subjects.network.segments import SITE, Segments
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Units

__all__ = ["GroupBudget", "erase"]


@dataclass(frozen=True, eq=False)
class GroupBudget:
    """What is to go from a network: its units, the weights that make them, and how the lowest are chosen."""

    units: Units
    slices: Mapping[str, Sequence[tuple[Tensor, int, Tensor]]]
    choose: Callable[[Mapping[str, Tensor], Budget], Mapping[str, Any]]
    """(scores, budget) -> site -> what stays."""
    budget: Budget
    even: bool = False
    """Whether all groups cost the same, so that any as many groups meet the budget."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, subject: Traced, budget: Budget, *, multiple: int = 1, scope: ranking.Scope = "local",
        hierarchical: bool = True,
    ) -> GroupBudget:  # fmt: skip
        """Of segments where the budget is of these, else of channels and heads.

        multiple: kept channels are multiples of this; scope: of `ranking.by_budget`; hierarchical: of `erase`. Raises
        `UnsupportedError` where nothing of the network can become zero.
        """
        if SITE in budget:
            units = subject.units(SITE)
            search = partial(_erase_to, subject.graph, units, hierarchical)
            return cls(units, subject.weights(), search, budget)
        units, producers = subject.units(multiple=multiple), subject.producers()
        slices = {
            site: parts for site, parts in producers.items() if all(weight.requires_grad for weight, _, _ in parts)
        }
        if not slices:
            raise UnsupportedError("no channel of this network is zero when the weights that make it, and learn, are")
        frozen = {name: site if name in slices else replace(site, frozen=True) for name, site in units.sites.items()}
        units = replace(units, sites=frozen)
        stays = [name for name in frozen if name not in slices]
        why = "stays whole, since zeros there do not equal a cut, or its weights do not learn"
        notes = (f"{why}: {', '.join(stays)}",) if stays else ()
        widths = {float(value) for name in slices for value in units[name].cost["channels"]}
        even = len(widths) == 1 and multiple == 1 and [limit.measure for limit in budget.limits] == ["channels"]

        def rank(scores: Mapping[str, Tensor], budget: Budget) -> Mapping[str, Any]:
            return ranking.by_budget(units, scores, budget, scope=scope).keep

        return cls(units, slices, rank, budget, even, notes)

    def lowest(self, scores: Mapping[str, Tensor], extra: float = 0.0) -> dict[str, Tensor]:
        """Site -> the units that go: those that the budget does not keep, and a share `extra` of all more."""
        budget = self.budget
        if extra and self.even:
            (limit,) = budget.limits
            whole = self.units.cost()[limit.measure]
            less = max(limit.absolute(whole) / whole - extra, 1e-6)
            budget = replace(budget, limits=(replace(limit, value=less, relative=True),))
        try:
            keep = self.choose(scores, budget)
        except InfeasibleError:
            if budget is self.budget:
                raise
            keep = self.choose(scores, self.budget)
        return {site: ~torch.as_tensor(keep[site]).bool() for site in self.slices}


def _erase_to(
    graph: Segments, units: Units, hierarchical: bool, scores: Mapping[str, Tensor], budget: Budget
) -> Mapping[str, Tensor]:
    most = int(budget.absolute(units.cost())[SITE])
    row = torch.as_tensor(scores[SITE])
    return {SITE: erase(graph, row, units[SITE].count - most, budget, hierarchical=hierarchical)}


def erase(graph: Segments, scores: Tensor, count: int, budget: Budget, *, hierarchical: bool = True) -> Tensor:
    """Booleans [segments], what stays: the `count` segments with the lowest scores go, as far as the network holds.

    Walks from the lowest score on, tentatively erases a segment with all that gets no input any more, and passes it
    over where no way would be left from input to output (H2SPG's search). Without `hierarchical`, the lowest go as they
    come. Raises `InfeasibleError` where fewer can go.
    """
    names = [segment.name for segment in graph.removable]
    order = [names[place] for place in scores.argsort(stable=True).tolist()]
    gone = set[str]() if hierarchical else set(order[:count])
    for name in order if hierarchical else ():
        erasure = graph.erase([*gone, name]) if name not in gone and len(gone) < count else None
        if erasure is not None and len(erasure.removed) <= count:
            gone = set(erasure.removed)
    if len(gone) < count:
        least = len(names) - len(gone)
        raise InfeasibleError(
            f"budget {budget.brief()} can't be met: {len(gone)} of {len(names)} segments can go before no way "
            f"leads from the input to the output; ask for at least segments={least}", float(least),
        )  # fmt: skip
    return torch.tensor([name not in gone for name in names])
