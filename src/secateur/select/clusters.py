"""Clusters of units that behave alike, from their distances: one threshold for all layers, counts met exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Array

__all__ = ["Clustering", "agglomerate", "cluster_layer", "shared_threshold"]

_AROUND = 256
"""Thresholds on either side of where a bisection ends that are tried too: counts need not fall with every step."""


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Which of n units belong together.

    labels: [n] integers, the cluster of each unit; clusters are numbered by their first members
    merges: (u, v, the largest distance that was checked) for each union of two clusters, in order
    """

    labels: np.ndarray
    merges: tuple[tuple[int, int, float], ...] = ()

    def __len__(self) -> int:
        return int(self.labels.max(initial=-1)) + 1

    def members(self) -> list[np.ndarray]:
        """The units of each cluster, ascending."""
        return [np.flatnonzero(self.labels == label) for label in range(len(self))]


def agglomerate(distance: Array, threshold: float, *, least: int = 1) -> Clustering:
    """Greedy agglomerative clustering of n units with a check of complete linkage.

    While the least distance of what is left is below `threshold`, its pair (u, v) is taken. Their clusters are united
    if max( d(x, v) for x in cluster(u), d(y, u) for y in cluster(v) ) is below it too; if not, the pair is closed,
    which counts as an infinite distance in later checks. It ends early at `least` clusters. Ties go to the first pair.

    distance: [n, n], symmetric; the diagonal is not read. Values may be negative; infinity means never together.
    Raises `NumericalError` for NaN, `InputError` for a matrix that is not square and symmetric.

    Source: STUN (arXiv 2409.06211), the clustering of experts. Departure: closed pairs are closed both ways, so that
    the order of the units does not matter (but for ties).
    """
    return _Pairs(distance).cluster(threshold, least)


def shared_threshold(
    distances: Sequence[Array], target: int, *, least: int = 1, exact: bool = True
) -> tuple[float, list[Clustering]]:
    """One threshold for all layers, such that their clusters number `target` in all; found by bisection.

    distances: one [n_l, n_l] per layer, on one scale; no layer goes below `least` clusters (or its own n_l).
    exact: False takes the next count above `target` where it can't be met.

    A clustering changes only where the threshold passes one of the distances, so those are what is bisected: pairs
    strictly below the threshold may merge. The count need not fall at every step, as a larger threshold may close other
    pairs; so neighbours are tried where the bisection misses. Raises `InfeasibleError` naming the nearest counts.

    Source: STUN (arXiv 2409.06211), the bisection over all layers. Departures: steps through the distances themselves,
    with no start and no step to choose; `least` is kept.
    """
    layers = [_Pairs(distance) for distance in distances]
    if not layers:
        raise InputError("there are no layers to cluster: give one matrix of distances for each")
    whole, lowest = sum(layer.count for layer in layers), sum(min(least, layer.count) for layer in layers)
    if not lowest <= target <= whole:
        end = min(max(target, lowest), whole)
        raise InfeasibleError(
            f"{target} clusters can't be had: {len(layers)} layers hold {whole} units, with at least {least} in each "
            f"{lowest} stay; ask for {lowest} to {whole}",
            float(end),
        )
    steps = np.unique(np.concatenate([layer.values for layer in layers]))
    steps = np.append(steps[np.isfinite(steps)], np.inf)
    counts: dict[int, int] = {}

    def count(step: int) -> int:
        if step not in counts:
            counts[step] = sum(len(layer.cluster(float(steps[step]), least)) for layer in layers)
        return counts[step]

    low, high = 0, len(steps) - 1
    found = next((step for step in (low, high) if count(step) == target), None)
    while found is None and high - low > 1:
        middle = (low + high) // 2
        if count(middle) == target:
            found = middle
        elif count(middle) > target:
            low = middle
        else:
            high = middle
    for away in range(1, _AROUND) if found is None else ():
        for step in (low - away, high + away):
            if found is None and 0 <= step < len(steps) and count(step) == target:
                found = step
    if found is None:
        below = max((n for n in counts.values() if n < target), default=lowest)
        above = min((n for n in counts.values() if n > target), default=whole)
        if exact:
            raise InfeasibleError(
                f"{target} clusters can't be had: one threshold for all layers gives {below} or {above}; "
                "ask for one of these",
                float(below if target - below < above - target else above),
            )
        found = max(step for step, number in counts.items() if number == above)
    threshold = float(steps[found])
    return threshold, [layer.cluster(threshold, least) for layer in layers]


def cluster_layer(distance: Array, count: int, parts: int = 1) -> list[list[int]]:
    """The units of each of `count` clusters of one layer, made inside `parts` equal groups that follow one another.

    Units of two groups never come together, and all groups get equally many clusters, as routers want that choose among
    groups first. `count` is a multiple of `parts`. The threshold is the layer's own, so that the count is always met.
    """
    table, clusters = as_numpy(distance, np.float64), list[list[int]]()
    for members in np.split(np.arange(len(table)), parts):
        wanted = min(count // parts, len(members))
        _, (clustering,) = shared_threshold([table[np.ix_(members, members)]], wanted, least=wanted)
        clusters += [members[inside].tolist() for inside in clustering.members()]
    return clusters


class _Pairs:
    """The pairs of one layer by distance, and its clusterings: they depend on the threshold's rank among them alone."""

    def __init__(self, distance: Array) -> None:
        self.distance = as_numpy(distance, np.float64).copy()
        if self.distance.ndim != 2 or self.distance.shape[0] != self.distance.shape[1]:
            raise InputError(f"distances of shape {self.distance.shape}: give [n, n]")
        np.fill_diagonal(self.distance, np.inf)
        if np.isnan(self.distance).any():
            raise NumericalError(f"distances of shape {self.distance.shape} hold NaN: give finite ones")
        if not (self.distance == self.distance.T).all():
            raise InputError(f"distances of shape {self.distance.shape} are not symmetric: d(u, v) must be d(v, u)")
        self.count = len(self.distance)
        first, second = np.triu_indices(self.count, 1)
        order = np.argsort(self.distance[first, second], kind="stable")
        self.first, self.second = first[order], second[order]
        self.values = self.distance[self.first, self.second]
        self.known: dict[tuple[int, int], Clustering] = {}

    def cluster(self, threshold: float, least: int) -> Clustering:
        key = (int(np.searchsorted(self.values, threshold, "left")), least)
        if key not in self.known:
            self.known[key] = self._cluster(threshold, *key)
        return self.known[key]

    def _cluster(self, threshold: float, pairs: int, least: int) -> Clustering:
        left = self.distance.copy()
        clusters = [[unit] for unit in range(self.count)]  # of each unit; one list for all units of a cluster
        merges: list[tuple[int, int, float]] = []
        # Distances only ever become infinite, so their order from the start is the order in which they are the least.
        for u, v in zip(self.first[:pairs].tolist(), self.second[:pairs].tolist(), strict=True):
            if self.count - len(merges) <= least:
                break
            one, other = clusters[u], clusters[v]
            if one is other:
                continue
            worst = max(left[one, v].max(), left[other, u].max())
            if worst < threshold:
                merges.append((u, v, float(worst)))
                one += other
                for unit in other:
                    clusters[unit] = one
            else:
                left[u, v] = left[v, u] = np.inf
        firsts = [min(cluster) for cluster in clusters]
        return Clustering(np.unique(firsts, return_inverse=True)[1], tuple(merges))
