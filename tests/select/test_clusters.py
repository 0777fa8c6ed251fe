"""Clusters by one threshold: a partition, every merge within it, no order but that of the distances, exact counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select import clusters


def symmetric(n: int, seed: int, ties: bool = False) -> np.ndarray:
    draw = np.random.default_rng(seed)
    upper = np.triu(draw.integers(0, 5, (n, n)) if ties else draw.normal(size=(n, n)), 1)
    return (upper + upper.T).astype(float)


def as_printed(distance: np.ndarray, threshold: float, least: int) -> np.ndarray:
    """The published procedure, step by step on a matrix that is searched anew each time."""
    n = len(distance)
    left = distance.copy()
    np.fill_diagonal(left, np.inf)
    label = np.arange(n)
    while len(set(label)) > least and left.min() < threshold:
        u, v = np.unravel_index(int(left.argmin()), left.shape)
        first, second = np.flatnonzero(label == label[u]), np.flatnonzero(label == label[v])
        worst = np.inf if label[u] == label[v] else max(left[first, v].max(), left[second, u].max())
        if worst < threshold:
            left[first, v] = left[v, first] = left[second, u] = left[u, second] = np.inf
            label[second] = label[u]
        else:
            left[u, v] = left[v, u] = np.inf
    return np.unique([np.flatnonzero(label == one).min() for one in label], return_inverse=True)[1]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 14), st.integers(0, 10**6), st.booleans(), st.floats(-2, 5), st.integers(1, 5))
def test_it_is_the_published_procedure(n, seed, ties, threshold, least):
    distance = symmetric(n, seed, ties)
    found = clusters.agglomerate(distance, threshold, least=least)
    assert found.labels.tolist() == as_printed(distance, threshold, least).tolist()
    assert clusters.agglomerate(torch.from_numpy(distance), threshold, least=least).labels.tolist() == (
        found.labels.tolist()
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 14), st.integers(0, 10**6), st.booleans(), st.floats(-2, 5), st.integers(1, 5))
def test_clusters_are_a_partition_and_every_merge_passed_the_check(n, seed, ties, threshold, least):
    distance = symmetric(n, seed, ties)
    found = clusters.agglomerate(distance, threshold, least=least)
    together = np.concatenate(found.members())
    assert sorted(together.tolist()) == list(range(n))
    assert len(found) == n - len(found.merges) >= min(least, n)
    firsts = [int(members[0]) for members in found.members()]
    assert firsts == sorted(firsts)  # numbered by their first members
    for u, v, worst in found.merges:
        assert distance[u, v] <= worst < threshold
        assert found.labels[u] == found.labels[v]
    if n > 1 and threshold <= distance[np.triu_indices(n, 1)].min():
        assert len(found) == n


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 14), st.integers(0, 10**6), st.floats(-2, 3))
def test_a_permutation_of_units_permutes_the_clusters(n, seed, threshold):
    distance = symmetric(n, seed)  # without ties
    order = np.random.default_rng(seed + 1).permutation(n)
    plain = clusters.agglomerate(distance, threshold, least=2)
    turned = clusters.agglomerate(distance[np.ix_(order, order)], threshold, least=2)
    back = {frozenset(order[members].tolist()) for members in turned.members()}
    assert back == {frozenset(members.tolist()) for members in plain.members()}


def test_linkage_is_checked_against_whole_clusters():
    """A chain 0 - 1 - 2 whose ends are far: the second link is refused, however short it is."""
    distance = np.array([[0.0, 1.0, 9.0], [1.0, 0.0, 1.1], [9.0, 1.1, 0.0]])
    found = clusters.agglomerate(distance, 5.0)
    assert found.labels.tolist() == [0, 0, 1]
    assert found.merges == ((0, 1, 1.0),)
    assert clusters.agglomerate(distance, 10.0).labels.tolist() == [0, 0, 0]
    assert clusters.agglomerate(distance, 10.0, least=2).labels.tolist() == [0, 0, 1]
    assert clusters.agglomerate(distance, 1.0).labels.tolist() == [0, 1, 2]  # strictly below


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 3), st.data())
def test_one_threshold_meets_the_count_or_says_what_it_can(layers, seed, least, data):
    draw = np.random.default_rng(seed)
    distances = [symmetric(int(draw.integers(2, 10)), seed + layer) for layer in range(layers)]
    whole, lowest = sum(map(len, distances)), sum(min(least, len(d)) for d in distances)
    target = data.draw(st.integers(lowest, whole))
    steps = [*np.unique(np.concatenate([d[np.triu_indices(len(d), 1)] for d in distances])), np.inf]
    every = [sum(len(clusters.agglomerate(d, t, least=least)) for d in distances) for t in steps]
    threshold, found = clusters.shared_threshold(distances, target, least=least, exact=target in every)
    if target in every:
        assert sum(map(len, found)) == target
    else:
        assert sum(map(len, found)) == min(count for count in every if count > target)
        with pytest.raises(InfeasibleError, match=f"^{target} clusters can't be had") as caught:
            clusters.shared_threshold(distances, target, least=least)
        assert abs(caught.value.reachable - target) == min(abs(count - target) for count in every)
    for distance, one in zip(distances, found, strict=True):
        assert len(one) >= min(least, len(distance))
        assert one.labels.tolist() == clusters.agglomerate(distance, threshold, least=least).labels.tolist()


def test_layers_lose_where_their_units_are_near():
    near, far = symmetric(8, 0), symmetric(8, 1) + 10
    _, found = clusters.shared_threshold([near, far], 13, least=2)
    assert [len(one) for one in found] == [5, 8]


def test_a_layer_cannot_go_below_its_least():
    near, far = symmetric(8, 0), symmetric(8, 1) + 10
    _, found = clusters.shared_threshold([near, far], 10, least=4)
    assert len(found[0]) == 4
    with pytest.raises(InfeasibleError, match=r"7 clusters can't be had.*at least 4 in each 8 stay") as caught:
        clusters.shared_threshold([near, far], 7, least=4)
    assert caught.value.reachable == 8
    with pytest.raises(InfeasibleError, match="ask for 8 to 16"):
        clusters.shared_threshold([near, far], 17, least=4)


def test_counts_between_two_thresholds_are_named():
    """Four pairs equally near: they merge all at once or not at all."""
    distance = np.full((8, 8), 5.0)
    for i in range(0, 8, 2):
        distance[i, i + 1] = distance[i + 1, i] = 1.0
    with pytest.raises(InfeasibleError, match="gives 4 or 8; ask for one of these") as caught:
        clusters.shared_threshold([distance], 7)
    assert caught.value.reachable == 8
    assert len(clusters.shared_threshold([distance], 7, exact=False)[1][0]) == 8
    assert len(clusters.shared_threshold([distance], 5, exact=False)[1][0]) == 8  # never fewer than asked for


@given(st.integers(2, 10), st.integers(0, 10**6), st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_layer_of_its_own_threshold_always_meets_the_count(n, seed, ties, data):
    count = data.draw(st.integers(1, n))
    assert len(clusters.cluster_layer(symmetric(n, seed, ties), count)) == count


def test_bad_distances_are_refused():
    with pytest.raises(InputError, match=r"give \[n, n\]"):
        clusters.agglomerate(np.zeros((2, 3)), 1.0)
    with pytest.raises(InputError, match="not symmetric"):
        clusters.agglomerate(np.array([[0.0, 1.0], [2.0, 0.0]]), 1.0)
    with pytest.raises(NumericalError, match="NaN"):
        clusters.agglomerate(np.array([[0.0, np.nan], [np.nan, 0.0]]), 1.0)
    with pytest.raises(InputError, match="no layers"):
        clusters.shared_threshold([], 1)


def test_clusters_inside_groups_never_mix_them():
    places = np.array([0.0, 0.1, 5.0, 0.05, 9.0, 9.1])  # unit 3 is nearest to units 0 and 1, of the other group
    distance = np.abs(places[:, None] - places)
    assert clusters.cluster_layer(distance, 4, 2) == [[0, 1], [2], [3], [4, 5]]
    assert clusters.cluster_layer(distance, 3) == [[0, 1, 3], [2], [4, 5]]
    assert clusters.cluster_layer(distance, 6) == [[0], [1], [2], [3], [4], [5]]
