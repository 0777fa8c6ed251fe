"""Subsets of fixed sizes: all ways to remove so many units of each site, a sample of them, or some near a given one.

Source: Feng et al., "Is Oracle Pruning the True Oracle?" (arXiv 2412.00143): exact and approximate oracle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Selection

__all__ = ["Keep", "around", "count", "draw", "list_removed", "near"]

Keep = dict[str, NDArray[np.bool_]]
"""Site -> [count]: which units stay."""

_TRIES = 50
"""Draws in a row without a new subset, after which there is none that chance would find."""


def count(sizes: Mapping[str, tuple[int, int]]) -> int:
    """How many ways there are: the product over sites of C(n, k); sizes: site -> (n units, k of them go)."""
    return math.prod(math.comb(units, gone) for units, gone in sizes.values())


def draw(sizes: Mapping[str, tuple[int, int]], most: int, seed: int = 0) -> list[Keep]:
    """All ways to remove k of n units of each site where there are at most `most`, else `most` different ones.

    Of a sample each way is as likely as any other; a larger one under the same seed begins with a smaller one.

    Args:
        sizes: site -> (n units, k of them go).
        most: at least 1.
        seed: of the sample.

    Raises `InputError` where a site would keep nothing, or would have to lose more than it has.
    """
    for name, (units, gone) in sizes.items():
        if not 0 <= gone < units:
            raise InputError(f"{name} would lose {gone} of its {units} units, and one has to stay: give a lower ratio")
    if most < 1:
        raise InputError(f"{most} candidates were asked for: give at least 1")
    if count(sizes) <= most:
        return list(_all(sizes))
    order, found = np.random.default_rng([seed, *map(ord, "".join(sizes))]), dict[bytes, Keep]()
    while len(found) < most:
        keep = {name: _remove(units, order.permutation(units)[:gone]) for name, (units, gone) in sizes.items()}
        found.setdefault(_key(keep), keep)
    return list(found.values())


def near(keep: Mapping[str, NDArray[np.bool_]], many: int, seed: int = 0) -> list[Keep]:
    """Up to `many` different subsets of the same sizes in which one unit of one site goes in another's place.

    Of sites one is drawn in which something goes and something stays; fewer come where there are no more, none where
    nothing goes. The given subset is not among them.
    """
    movable = [name for name, mask in keep.items() if mask.any() and not mask.all()]
    order, start = np.random.default_rng([seed, *map(ord, "".join(keep))]), _key(keep)
    found, idle = dict[bytes, Keep](), 0
    while movable and len(found) < many and idle < _TRIES:
        name = movable[int(order.integers(len(movable)))]
        swapped = keep[name].copy()
        swapped[order.choice(np.flatnonzero(swapped))] = False
        swapped[order.choice(np.flatnonzero(~keep[name]))] = True
        one = {**keep, name: swapped}
        idle = idle + 1 if _key(one) in found or _key(one) == start else 0
        if not idle:
            found[_key(one)] = one
    return list(found.values())


def around(selection: Selection, many: int, seed: int = 0) -> list[Selection]:
    """The selection, and others in which each site keeps as many units: up to `many`, half of them near, half anywhere.

    Where units of a site cost the same, all of them spend what it spends.
    """
    keep = {name: as_numpy(mask, np.bool_) for name, mask in selection.keep.items()}
    sizes = {name: (len(mask), int((~mask).sum())) for name, mask in keep.items() if mask.any()}
    movable = {name: keep[name] for name in sizes}
    others = near(movable, (many - 1) // 2, seed)
    drawn = draw(sizes, min(many, count(sizes)), seed) if sizes else []
    found = {_key(one): one for one in [movable, *others, *drawn]}
    return [selection, *(replace(selection, keep={**keep, **one}) for one in list(found.values())[1:many])]


def list_removed(keep: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[int]]:
    """Site -> places of the units that go, in ascending order: a subset as JSON has it."""
    return {name: np.flatnonzero(~mask).tolist() for name, mask in keep.items()}


def _all(sizes: Mapping[str, tuple[int, int]]) -> Iterator[Keep]:
    """In lexicographic order of what goes, the last site's first."""
    ways = [itertools.combinations(range(units), gone) for units, gone in sizes.values()]
    for chosen in itertools.product(*ways):
        pairs = zip(sizes.items(), chosen, strict=True)
        yield {name: _remove(units, np.array(gone, int)) for (name, (units, _)), gone in pairs}


def _remove(units: int, gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.ones(units, bool)
    mask[gone] = False
    return mask


def _key(keep: Mapping[str, NDArray[np.bool_]]) -> bytes:
    return b"".join(mask.tobytes() for mask in keep.values())
