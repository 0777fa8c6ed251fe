"""Which entries of an update go: the k % that training changed most, or least, or any; tensor by tensor, or of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from torch import Tensor

from secateur._utils.finite import all_finite
from secateur.errors import InputError, NumericalError
from secateur.score import changes, random
from secateur.score.changes import Sign
from secateur.select import weights
from secateur.subjects.delta.delta import SITE, Delta
from secateur.subjects.delta.tensors import Tensors
from secateur.vocabulary import Selection

__all__ = [
    "Action", "Order", "Rule", "Scope", "Sign", "masks", "measure_changes", "measure_length", "scale", "scale_to",
    "select",
]  # fmt: skip

Action: TypeAlias = Literal["drop", "keep"]
Order: TypeAlias = Literal["largest", "smallest", "random"]
Scope: TypeAlias = Literal["tensor", "global"]
_AT_ONCE = 2**28
"""Entries of a tensor of which a copy is sorted in part, for 3 GB more; of a larger one they are counted, six times
slower."""
_CHUNK = 2**24
"""Entries that are counted at a time."""
_HALVINGS = 12
"""Factors that are tried until a scaled update is as long as it is to be, within a thousandth."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done (`drop` or `keep`) with the first floor(share n) of n entries in an order.

    share: exact, from 0 to 1; a float means the decimal that it is written as, so that 0.08 of 100 is 8. order: largest
    or smallest `changes.size`, or random by the seed; of equals the lower index is first, of equals in several tensors
    the earlier tensor. scope: n is of each tensor, or of all together.

    To drop a share and to keep the same share, all else the same, leave complements of one another.
    """

    share: Fraction | float
    action: Action = "drop"
    order: Order = "largest"
    scope: Scope = "tensor"
    sign: Sign = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"share={float(self.share):g}: give a share of the entries, from 0 to 1")

    def count(self, entries: int) -> int:
        """How many of so many entries are first: floor(share n)."""
        exact = self.share if isinstance(self.share, Fraction) else Fraction(str(self.share))
        return math.floor(exact * entries)

    def rank(self, update: Tensor, name: str) -> Tensor:
        """[n] of an update [n]: the first in the order has the highest number.

        Raises `NumericalError` for an update that is not finite.
        """
        if not all_finite(update):
            raise NumericalError(f"the update of {name} holds NaN or infinity: give models without")
        if self.order == "random":
            return random.draw(len(update), name, self.seed)
        size = changes.size(update, self.sign)
        return size if self.order == "largest" else -size

    def stays(self, first: Tensor) -> Tensor:
        """Which entries stay, of a mask of those that are first."""
        return first if self.action == "keep" else ~first


def select(delta: Delta, rule: Rule) -> Selection:
    """What stays of an update by a rule; `spent` says how many entries that are.

    Thresholds are found exactly, by passes over the tensors of which one is in memory at a time (`weights.threshold`).
    Masks are computed when they are asked for.

    Raises `NumericalError` for an update that holds NaN or infinity, in any order.
    """
    edges, first = _find_edges(delta.sites, lambda name: rule.rank(delta.update(name), name), rule)
    spent = first if rule.action == "keep" else sum(delta.sites.values()) - first
    return Selection(_Masks(delta, rule, edges), {"update": float(spent)})


def masks(updates: Mapping[str, Tensor], rule: Rule) -> dict[str, Tensor]:
    """Name -> which entries of an update [...] stay, of updates that are in memory, such as those of one step."""
    counts = {name: update.numel() for name, update in updates.items()}
    edges, _ = _find_edges(counts, lambda name: rule.rank(updates[name].flatten(), name), rule)
    found = dict[str, Tensor]()
    for name, update in updates.items():
        first, _ = weights.above(rule.rank(update.flatten(), name), *edges[name])
        found[name] = rule.stays(first).view(update.shape)
    return found


def _find_edges(
    counts: Mapping[str, int], rank: Callable[[str], Tensor], rule: Rule
) -> tuple[dict[str, tuple[float, int]], int]:
    """(name -> threshold, and how many of its equals are first, too; how many are first in all tensors)."""
    edges = dict[str, tuple[float, int]]()
    if rule.scope == "tensor":
        for name, count in counts.items():
            ranked, first = rank(name), rule.count(count)
            if count <= _AT_ONCE:
                edges[name] = _sort_edge(first, ranked)
            else:
                edges[name] = _count_edge(first, [(name, part) for part in ranked.split(_CHUNK)])
        return edges, sum(map(rule.count, counts.values()))
    first = rule.count(sum(counts.values()))
    edge, ties = _count_edge(first, _Ranked(counts, rank))
    for name in counts:  # equals of the threshold go to the earlier tensor
        edges[name] = edge, ties
        _, ties = weights.above(rank(name), edge, ties)
    return edges, first


@dataclass(frozen=True, slots=True)
class _Ranked:
    """(name, ranks) of each tensor, computed anew in each pass."""

    names: Iterable[str]
    rank: Callable[[str], Tensor]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.rank(name)) for name in self.names)


def _count_edge(first: int, ranked: Iterable[tuple[str, Tensor]]) -> tuple[float, int]:
    """(the number of the last of the first, how many of its equals are first), of numbers that come in parts."""
    return weights.threshold(lambda: ranked, first) if first else (math.inf, 0)


def _sort_edge(first: int, ranked: Tensor) -> tuple[float, int]:
    """The same of the numbers [n] of one tensor."""
    if not first:
        return math.inf, 0
    edge = float(ranked.kthvalue(len(ranked) - first + 1).values)
    return edge, first - int((ranked > edge).sum())


class _Masks(Mapping[str, Tensor]):
    """Site -> what stays of it, computed when it is asked for."""

    def __init__(self, delta: Delta, rule: Rule, edges: Mapping[str, tuple[float, int]]) -> None:
        self.delta, self.rule, self.edges = delta, rule, edges

    def __getitem__(self, site: str) -> Tensor:
        name = site.removesuffix(f".{SITE}")
        edge, ties = self.edges[name]
        first, _ = weights.above(self.rule.rank(self.delta.update(name), name), edge, ties)
        return self.rule.stays(first)

    def __iter__(self) -> Iterator[str]:
        return (f"{name}.{SITE}" for name in self.edges)

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, site: object) -> bool:  # that of `Mapping` would compute a mask
        return isinstance(site, str) and site.removesuffix(f".{SITE}") in self.edges


def scale(delta: Delta, factor: float) -> dict[str, Tensor]:
    """Name -> tensor of the model with the whole update times a factor: before + factor (after - before)."""
    found = dict[str, Tensor]()
    for name in delta.before.outlines():
        before, after = delta.before.read(name), delta.after.read(name)
        if name in delta.sites:
            after = before + (factor * (after.float() - before.float())).to(before.dtype)
        found[name] = after
    return found


def scale_to(delta: Delta, smaller: Delta) -> dict[str, Tensor]:
    """`scale` by the factor at which the update is as long as a smaller one: the baseline of equal norm.

    In narrow number types rounding makes another length of it, so that the factor is sought by halves; the length next
    to the smaller one's may still be some percent off, where most entries move by a step or none.
    """
    wanted, low, high = smaller.norm(), 0.0, 1.0
    factor, found, best = wanted / delta.norm(), dict[str, Tensor](), math.inf
    for _ in range(_HALVINGS):
        scaled = scale(delta, factor)
        length = measure_length(delta.before, scaled)
        if abs(length - wanted) < best:
            found, best = scaled, abs(length - wanted)
        if best <= 1e-3 * wanted:
            break
        low, high = (factor, high) if length < wanted else (low, factor)
        factor = (low + high) / 2
    return found


def measure_changes(delta: Delta) -> tuple[float, dict[str, int]]:
    """(the Euclidean length of an update, name -> how many of its entries differ from those before), in one pass.

    In narrow number types most steps of a training are rounded away, and rows of tokens that it never met stay.
    """
    squares, changed = 0.0, dict[str, int]()
    for name in delta.sites:
        update = delta.update(name)
        squares += float(update.double().square().sum())
        changed[name] = int(update.count_nonzero())
    return math.sqrt(squares), changed


def measure_length(before: Tensors, tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean length of what tensors differ by from those before, as both are in their number types."""
    changes = (tensor.double() - before.read(name).double() for name, tensor in tensors.items())
    return math.sqrt(sum(float(change.square().sum()) for change in changes))
