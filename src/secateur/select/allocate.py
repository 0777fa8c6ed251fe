"""Allocate a budget: how many units each site keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from secateur.errors import InputError
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Array, Units

__all__ = ["between", "grid", "proportional", "round_to", "round_to_total", "spread", "uniform"]


def round_to(
    value: float,
    multiple: int = 1,
    *,
    minimum: int = 0,
    maximum: int | None = None,
    towards: Literal["nearest", "down", "up"] = "nearest",
) -> int:
    """`value` as a multiple of `multiple` within [minimum, maximum]; `maximum` itself always counts as a multiple.

    >>> round_to(1382.4, 8)
    1384
    """
    ways = {"nearest": lambda x: math.floor(x + 0.5), "down": math.floor, "up": math.ceil}
    # 1e-9 absorbs the rounding of a product such as 0.7 * 10 that should have been whole.
    slack = {"nearest": 0.0, "down": 1e-9, "up": -1e-9}[towards]
    result = int(ways[towards](value / multiple + slack)) * multiple
    result = max(result, math.ceil(minimum / multiple) * multiple)
    return result if maximum is None else min(result, maximum)


def between(
    start: Mapping[str, int], end: Mapping[str, int], share: float, multiples: Mapping[str, int]
) -> dict[str, int]:
    """Sizes `share` of the way from `start` down to `end`, as multiples of `multiples`, and never below `end`.

    >>> between({"layers": 6, "neurons": 384}, {"layers": 4, "neurons": 192}, 0.5, {"layers": 1, "neurons": 8})
    {'layers': 5, 'neurons': 288}
    """
    return {
        axis: max(size, round_to(start[axis] - (start[axis] - size) * share, multiples[axis], maximum=start[axis]))
        for axis, size in end.items()
    }


def uniform(units: Units, share: float) -> dict[str, int]:
    """The same share of every free site: site name -> kept count, rounded to the nearest that the site allows."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share {share} is not between 0 and 1")
    counts: dict[str, int] = {}
    for site in units.free():
        groups = 1 if site.group is None else len(np.unique(as_numpy(site.group, None)))
        counts[site.name] = round_to(
            share * site.count, math.lcm(site.multiple, groups), minimum=site.minimum, maximum=site.count
        )
    return counts


def grid(full: int, ratio: float = 0.9, steps: int = 42, multiple: int = 8) -> list[int]:
    """Kept counts full * ratio^i, i = 0..steps, and 0: rounded to `multiple`, without repeats, ascending.

    Source: ZipLM (arXiv 2302.04089), the grid of intermediate sizes. Departure: rounded to a multiple, because
    odd widths run slower than the next even one.
    """
    if not 0.0 < ratio < 1.0 or full < 1:
        raise InputError(f"a grid needs full >= 1 and 0 < ratio < 1, not full={full} and ratio={ratio}")
    sizes = {round_to(full * ratio**i, multiple, maximum=full) for i in range(steps + 1)}
    return sorted(sizes | {0, full})


def spread(
    worth: Sequence[float],
    mean: float,
    half: float,
    *,
    sizes: Sequence[float] | None = None,
    whole: float = 1.0,
    least: float = 0.01,
) -> list[float]:
    """Densities that grow with `worth` linearly over a range of 2 `half`; their mean, weighted by `sizes`, is `mean`.

        d_l = 2 half (D_l - min D) / (max D - min D) - const,    kept between `least` and all of `whole`

    Where that clips some, the others are shifted so that the mean is met all the same. Equal worths get `mean` each.

    Source: OWL (arXiv 2310.05175), section 3.3; its lambda is `half`.
    """
    found = as_numpy(worth)
    weight = np.ones(len(found)) if sizes is None else as_numpy(sizes)
    low, high = min(least * whole, mean), whole
    if not 0.0 < mean <= whole or half < 0.0 or not len(found):
        raise InputError(f"mean={mean}, half={half}: give a mean in (0, {whole:g}] and a range that is not negative")
    reach = float(found.max() - found.min())
    steps = 2.0 * half * (found - found.min()) / reach if reach > 0 else np.zeros(len(found))

    def average(shift: float) -> float:
        return float(np.average(np.clip(steps + shift, low, high), weights=weight))

    shift = mean - float(np.average(steps, weights=weight))
    if not np.isclose(average(shift), mean, rtol=1e-12, atol=0):
        below, above = low - steps.max(), high - steps.min()
        for _ in range(200):
            shift = (below + above) / 2
            below, above = (shift, above) if average(shift) < mean else (below, shift)
    return [float(value) for value in np.clip(steps + shift, low, high)]


def round_to_total(values: Sequence[float], sizes: Sequence[float], *, most: int) -> list[int]:
    """Whole numbers from 1 to `most` near `values`, whose sum weighted by `sizes` is not above that of `values`.

    By largest remainder; ties go to the lower index.
    """
    given, weight = as_numpy(values), as_numpy(sizes)
    result = np.clip(np.floor(given + 1e-9).astype(np.int64), 1, most)
    left = float((given * weight).sum() - (result * weight).sum())
    for index in np.argsort(-(given - result), kind="stable"):
        if result[index] < most and given[index] > result[index] and weight[index] <= left + 1e-6:
            result[index] += 1
            left -= float(weight[index])
    return [int(value) for value in result]


def proportional(sizes: Sequence[int] | Array, total: int) -> list[int]:
    """Split `total` over parts in proportion to their sizes, by largest remainder; the sum is exactly `total`.

    For example how many training examples to keep of each class. Ties go to the lower index.
    """
    parts = as_numpy(sizes, np.int64)
    if not 0 <= total <= parts.sum():
        raise InputError(f"can't keep {total} of {parts.sum()}: give a total between 0 and {parts.sum()}")
    whole, rest = np.divmod(parts * total, max(int(parts.sum()), 1))
    extra = np.argsort(-rest, kind="stable")[: total - int(whole.sum())]
    whole[extra] += 1
    return [int(part) for part in whole]
