"""Scores of examples: on sequences and points made by hand, against autograd, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from secateur.errors import DataError, InputError, NumericalError
from secateur.score import difficulty


def test_el2n_is_0_of_a_perfect_prediction_and_at_most_the_root_of_2():
    certain = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0], [0.0, 0.0, 0.0]])
    found = difficulty.el2n(certain, torch.tensor([0, 0, 0]))
    assert found[0] == 0
    assert found[1] == pytest.approx(math.sqrt(2))
    assert found[2] == pytest.approx(math.sqrt((2 / 3) ** 2 + 2 * (1 / 3) ** 2))
    assert (difficulty.el2n(torch.randn(500, 7) * 20, torch.randint(0, 7, (500,))) <= math.sqrt(2) + 1e-6).all()
    assert certain[0, 0] == 100.0  # what was given is left as it was


def test_grand_is_the_norm_of_the_last_layers_gradient():
    torch.manual_seed(0)
    layer, features, labels = torch.nn.Linear(5, 4), torch.randn(6, 5), torch.randint(0, 4, (6,))
    logits = layer(features)
    norms = []
    for index in range(6):
        loss = functional.cross_entropy(logits[index : index + 1], labels[index : index + 1])
        parts = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        norms.append(torch.cat([part.flatten() for part in parts]).norm())
    found = difficulty.grand(logits.detach(), labels, features)
    torch.testing.assert_close(found, torch.stack(norms))


@pytest.mark.parametrize(
    ("visits", "events"),
    [
        ([1, 0, 1, 0], 2),
        ([0, 1, 1, 1], 0),
        ([0, 1, 0, 0], 1),
        ([1, 1, 1, 1], 0),
        ([0, 0, 0, 0], 4),  # never learned: above all that were
        ([0, 0, 0, 1], 0),
    ],
)
def test_forgetting_counts_events_in_the_order_of_visits(visits, events):
    assert difficulty.forgetting(torch.tensor([visits]).T).item() == events


def test_what_was_never_learned_is_kept_first():
    right = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).T
    assert difficulty.forgetting(right).argsort(descending=True).tolist() == [1, 0, 2]


def test_moderate_keeps_the_central_band_of_each_class():
    # Class 0 at distances 0, 1, 2, 3, 4 of its median 0 along an axis of its own; class 1 further out, but as even.
    features = torch.tensor([[0.0, 0], [-1, 0], [2, 0], [-3, 0], [4, 0], [0, 50], [0, 40], [0, 70]])
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    found = difficulty.moderate(features, labels)
    assert found.tolist() == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0]
    assert difficulty.moderate(features[:1], labels[:1]).tolist() == [1.0]


def test_herding_follows_the_mean_of_the_class():
    features = torch.tensor([[3.0], [1.0], [2.0], [9.0], [0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = difficulty.herding(features, labels)
    # The mean is 2: w = 2 takes 3 first; w = 1 then takes 2, since 3 is taken; 1 is last.
    assert found.tolist() == pytest.approx([1.0, 1 / 3, 2 / 3, 1.0, 0.5])
    torch.manual_seed(0)
    cloud, one = torch.randn(40, 3) + 1.0, torch.zeros(40, dtype=torch.long)
    order = difficulty.herding(cloud, one).argsort(descending=True)
    far = (cloud[order[:10]].mean(0) - cloud.mean(0)).norm()
    chance = torch.stack([(cloud[torch.randperm(40)[:10]].mean(0) - cloud.mean(0)).norm() for _ in range(50)])
    assert far < chance.min()


def test_memorisation_is_the_difference_that_learning_from_an_example_makes():
    inside = torch.tensor([[True, True, False, False], [False, False, True, True]])
    right = torch.tensor([[True, True, True, False], [False, True, True, False]])
    found = [difficulty.memorisation(torch.stack([~one, one]), seen) for one, seen in zip(right, inside, strict=True)]
    assert difficulty.average(found).tolist() == [1.0, 0.0, 0.0, 0.0]  # the first is right only where it was learned
    with pytest.raises(InputError, match=r"inside \(3,\)"):
        difficulty.memorisation(right, torch.ones(3, dtype=torch.bool))


def test_scores_by_name_are_averaged_over_runs():
    labels = torch.tensor([0, 1])
    runs = [{"logits": torch.randn(2, 3), "labels": labels} for _ in range(3)]
    expected = sum(difficulty.el2n(run["logits"], labels) for run in runs) / 3
    torch.testing.assert_close(difficulty.by_name("el2n", runs), expected)
    assert set(difficulty.NEEDS) == {"el2n", "forgetting", "grand", "herding", "memorisation", "moderate"}


def test_what_can_not_be_scored_is_refused_in_a_line():
    with pytest.raises(InputError, match="did you mean 'forgetting'"):
        difficulty.by_name("forgeting", [])
    with pytest.raises(InputError, match="these are none"):
        difficulty.by_name("el2n", [])
    with pytest.raises(DataError, match="the label 3 is no class of the logits: they have 3"):
        difficulty.el2n(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(InputError, match=r"features of shape \(3,\) for 2 labels"):
        difficulty.herding(torch.zeros(3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="at least one visit"):
        difficulty.forgetting(torch.zeros(0, 3))
    with pytest.raises(NumericalError, match="EL2N: NaN"):
        difficulty.el2n(torch.full((1, 2), math.nan), torch.tensor([0]))
