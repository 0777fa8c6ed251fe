"""Votes by hand, against plain loops, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import DataError, InfeasibleError, InputError, NumericalError
from secateur.score import votes


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_label_votes_by_hand():
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 1.0, 0.0], [0.0, 5.0, 4.0], [1.0, 1.0, 1.0]])
    assert votes.label_votes(logits, 3).tolist() == [2, 2, 0], "of equal logits the first wins"


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 40), classes=st.integers(1, 9))
def test_votes_sum_to_the_target_and_follow_a_permutation_of_the_classes(seed, samples, classes):
    logits = drawn(seed, samples, classes)
    found = votes.label_votes(logits, classes)
    assert int(found.sum()) == samples
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(votes.label_votes(logits[:, order], classes), found[order])
    features, centres = drawn(seed + 1, samples, 5), drawn(seed + 2, classes, 5)
    found = votes.feature_votes(features, centres)
    assert int(found.sum()) == samples
    assert torch.equal(votes.feature_votes(features, centres[order]), found[order])


def test_feature_votes_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(votes, "_CHUNK", 21)  # so that the last part is a smaller one
    features, centres = drawn(0, 50, 6), drawn(1, 7, 6)
    expected = [0] * 7
    for row in features.double().numpy():
        distances = [float(np.sqrt(((row - centre) ** 2).sum())) for centre in centres.double().numpy()]
        expected[distances.index(min(distances))] += 1
    assert votes.feature_votes(features, centres).tolist() == expected
    assert len({*expected}) > 2


def test_the_released_code_would_have_voted_otherwise():
    """It stores the distance to class i at the number of the sample: what is left of that is not a nearest centre."""
    features, centres = torch.tensor([[0.0], [10.0], [10.2]]), torch.tensor([[0.0], [10.0], [20.0]])
    distance = torch.zeros(len(features))
    for sample, row in enumerate(features):
        for centre in centres:
            distance[sample] = (row - centre).norm()
    wrong = int(distance.argmin())
    assert wrong != int(votes.nearest(features[:1], centres)), "its winner is the sample nearest to the last centre"
    assert votes.feature_votes(features, centres).tolist() == [1, 2, 0]


def test_samples_far_from_zero_keep_their_ties():
    """|a|^2 - 2ab + |b|^2 in float32 would lose these distances to rounding."""
    features = torch.tensor([[1e4, 0.0]])
    centres = torch.tensor([[1e4 + 1.0, 0.0], [1e4 - 1.0, 0.0], [1e4, 2.0]])
    assert votes.nearest(features, centres).tolist() == [0]


def test_class_means_and_a_class_without_examples():
    features, labels = torch.tensor([[0.0, 2.0], [2.0, 4.0], [9.0, 9.0]]), torch.tensor([0, 0, 2])
    centres = votes.class_means(features, labels, 3)
    assert centres[[0, 2]].tolist() == [[1.0, 3.0], [9.0, 9.0]]
    assert centres[1].isnan().all()
    assert votes.feature_votes(drawn(0, 20, 2), centres)[1] == 0, "nothing is near to what is not there"


def blobs(seed: int, count: int = 6, each: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count).repeat(each)
    return 20.0 * torch.eye(count)[labels] + drawn(seed, count * each, count), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_finds_clusters_that_are_there_and_numbers_them_by_their_first_members(seed):
    samples, labels = blobs(seed)
    centres, found = votes.kmeans(samples, 6, seed=seed)
    assert torch.equal(found, labels), "the first sample is of class 0, the second of class 1, and so on"
    assert torch.equal(centres, votes.class_means(samples, labels, 6))
    assert torch.equal(votes.nearest(samples, centres), found), "each sample is nearest to its own centre"


def test_kmeans_repeats_and_more_restarts_are_no_worse():
    samples = drawn(3, 200, 4)

    def error(restarts: int) -> float:
        centres, found = votes.kmeans(samples, 9, seed=5, restarts=restarts)
        return float((samples.double() - centres[found]).square().sum())

    assert torch.equal(votes.kmeans(samples, 9, seed=5)[1], votes.kmeans(samples, 9, seed=5)[1])
    assert error(8) <= error(1)
    assert error(1) < float((samples - samples.mean(0)).square().sum()) / 2


def test_kmeans_of_equal_samples():
    samples = torch.tensor([[1.0], [1.0], [1.0], [5.0]])
    centres, found = votes.kmeans(samples, 2)
    assert (centres.tolist(), found.tolist()) == ([[1.0], [5.0]], [0, 0, 0, 1])
    with pytest.raises(InfeasibleError, match="3 clusters of 2 different samples: ask for 1 to 2") as refused:
        votes.kmeans(samples, 3)
    assert refused.value.reachable == 2


def test_what_is_refused():
    with pytest.raises(InputError, match=r"logits of shape \[4, 3\], the source has 5 classes"):
        votes.label_votes(torch.zeros(4, 3), 5)
    with pytest.raises(DataError, match="the target is empty"):
        votes.label_votes(torch.zeros(0, 3), 3)
    with pytest.raises(DataError, match="the target is empty"):
        votes.feature_votes(torch.zeros(0, 3), torch.zeros(2, 3))
    with pytest.raises(DataError, match="the source is empty"):
        votes.kmeans(torch.zeros(0, 3), 2)
    with pytest.raises(InputError, match=r"\[4, 3\] and \[2, 5\]"):
        votes.nearest(torch.zeros(4, 3), torch.zeros(2, 5))
    with pytest.raises(DataError, match="no class of the source has a centre"):
        votes.nearest(torch.zeros(4, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(NumericalError, match="the surrogate's logits"):
        votes.label_votes(torch.full((2, 3), torch.nan), 3)
    with pytest.raises(NumericalError, match="the surrogate's features"):
        votes.feature_votes(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
    with pytest.raises(InputError, match="labels go from 0 to 7, there are 3 classes"):
        votes.class_means(torch.zeros(2, 3), torch.tensor([0, 7]), 3)
    with pytest.raises(InputError, match="give one label for each"):
        votes.class_means(torch.zeros(2, 3), torch.tensor([0]), 3)
