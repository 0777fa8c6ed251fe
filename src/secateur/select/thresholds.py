"""Thresholds: one share for all, one per group with floors, and merging of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select import ranking
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Array, Budget, Scores, Selection, Units, write_enough

__all__ = ["Policy", "above", "by_group", "floor", "merge", "quantile", "uniform"]

Policy = Literal["majority", "union", "smallest"]


def quantile(values: Array, fraction: float) -> float:
    """``sorted(values)[int(n fraction)]``: what is below it is that share of the n values. Minus infinity for 0."""
    if not 0 <= fraction < 1:
        raise InputError(f"fraction={fraction}: give a share of channels to take away, from 0 to below 1")
    column = np.sort(as_numpy(values))
    cut = int(len(column) * fraction)
    return float(column[cut]) if cut else -np.inf


def above(values: Array, *, percentile: float, floor: float, most: int, few: int = 0) -> np.ndarray:
    """Booleans [count]: the `most` largest of the values above both their own percentile and the floor.

    ``s > P and s > floor``, P the linearly interpolated percentile; both strictly, so that even percentile 0 leaves out
    the least. Where none is above P, since too many are equally large, these pass it; of `few` values or fewer all do.
    Equal values: the lower index stays. Lowering a threshold or raising `most` never takes one away.

    Raises `InputError` for a percentile outside 0 to 100 or a negative `most`, `NumericalError` for NaN and infinity.
    Source: KG-RAG (arXiv 2311.17330), without its loss of all where the best are alike.
    """
    if not 0 <= percentile <= 100:
        raise InputError(f"percentile={percentile}: give a number from 0 to 100")
    if most < 0:
        raise InputError(f"most={most}: give how many may stay, at least 0")
    column = as_numpy(values)
    if not np.isfinite(column).all():
        raise NumericalError("a value is NaN or infinite: values that are compared must be finite")
    result = np.zeros(len(column), bool)
    if not len(column):
        return result
    limit = np.percentile(column, percentile) if len(column) > few else -np.inf
    high = np.flatnonzero((column > floor) & ((column > limit) | (column == column.max())))
    result[high[np.argsort(-column[high], kind="stable")][:most]] = True
    return result


def merge(masks: Sequence[Array], policy: Policy = "majority") -> np.ndarray:
    """One mask [count] from those of layers that have to agree.

    majority: what at least half of them keep; union: what any keeps; smallest: the mask with the fewest kept, the first
    among equals.
    """
    stacked = np.stack([as_numpy(mask, bool) for mask in masks])
    if policy == "smallest":
        fewest: np.ndarray = stacked[int(np.argmin(stacked.sum(1)))]
        return fewest
    if policy not in ("majority", "union"):
        raise InputError(f"merge={policy!r}: give 'majority', 'union' or 'smallest'")
    result: np.ndarray = stacked.sum(0) >= (1 if policy == "union" else len(stacked) / 2)
    return result


def by_group(
    scores: Mapping[str, Sequence[Array]],
    groups: Mapping[str, str],
    fractions: Mapping[str, float],
    *,
    share: float = 0.01,
    least: int = 16,
    policy: Policy = "majority",
    multiple: int = 1,
) -> dict[str, np.ndarray]:
    """Site -> [count] booleans: what stays when each group loses about its fraction.

    A group's threshold is the `quantile` of all scores of all layers in it, and a layer keeps what is at least that.
    A layer keeps at least int(count share) units, or `least` if that is 0, or all of fewer: its best. Then the layers
    of a site agree (`merge`), and the site's count is brought up to the floor and to a multiple by mean score.

    scores: site -> one array [count] per layer of the site; groups: site -> group; fractions: group -> share to take.
    Source: group channel pruning (arXiv 2306.01526).
    """
    missing = sorted({groups[site] for site in scores} - set(fractions))
    if missing:
        raise InputError(f"no fraction for group {missing[0]!r}: give one for each group")
    pools: dict[str, list[np.ndarray]] = {}
    for site, layers in scores.items():
        pools.setdefault(groups[site], []).extend(as_numpy(layer) for layer in layers)
    theta = {group: quantile(np.concatenate(pool), fractions[group]) for group, pool in pools.items()}
    keep = {}
    for site, layers in scores.items():
        columns = [as_numpy(layer) for layer in layers]
        few = floor(len(columns[0]), share=share, least=least)
        masks = [_fill(column >= theta[groups[site]], column, few, 1) for column in columns]
        keep[site] = _fill(merge(masks, policy), np.mean(columns, axis=0), few, multiple)
    return keep


def floor(count: int, *, share: float = 0.01, least: int = 16, multiple: int = 1) -> int:
    """How many of a layer's `count` units stay at least: int(count share), or `least` if that is 0, or all of fewer."""
    few = min(count, int(count * share) or least)
    return min(count, -(-few // multiple) * multiple)


def _fill(mask: np.ndarray, scores: np.ndarray, floor: int, multiple: int) -> np.ndarray:
    """`mask` and the best of what it drops, up to `floor` units and a multiple, or up to all."""
    wanted = max(int(mask.sum()), floor)
    wanted = min(len(mask), -(-wanted // multiple) * multiple)
    order = np.lexsort((np.arange(len(mask)), -scores, ~mask))
    result = np.zeros(len(mask), bool)
    result[order[:wanted]] = True
    return result


def uniform(units: Units, scores: Scores, budget: Budget | str, *, least: int = 1) -> Selection:
    """Every free site loses one share p of its units, its worst: k = count - floor(p count), the smallest p that fits.

    k is brought up to the site's multiple, and to `least` units, or all of fewer. Raises `InfeasibleError`
    (`reachable` in the measure's own unit) where not even the largest p fits.
    """
    budget = Budget.parse(budget)
    limits = budget.absolute(units.cost())
    free = units.free()

    def counts(p: float) -> dict[str, int]:
        result = {}
        for site in free:
            step = max(1, site.multiple)
            kept = max(site.count - int(p * site.count + 1e-9), min(least, site.count), site.minimum, 1)
            result[site.name] = min(site.count, -(-kept // step) * step)
        return result

    shares = sorted({taken / site.count for site in free for taken in range(site.count)})
    low, high, best = 0, len(shares), None
    while low < high:
        middle = (low + high) // 2
        found = ranking.by_counts(units, scores, counts(shares[middle]))
        if all(found.spent[measure] <= limit for measure, limit in limits.items()):
            best, high = found, middle
        else:
            low = middle + 1
    if best is None:
        found = ranking.by_counts(units, scores, counts(shares[-1] if shares else 0.0))
        measure = next(name for name, limit in limits.items() if found.spent[name] > limit)
        raise InfeasibleError(
            f"budget {budget.brief()} can't be met: with at least {least} units per site, {measure} can go down to "
            f"{write_enough(found.spent[measure])}, the limit is {limits[measure]:.6g}",
            found.spent[measure],
        )
    return Selection(best.keep, best.spent, budget)
