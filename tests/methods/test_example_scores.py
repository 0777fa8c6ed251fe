"""Scores of examples from trainings, and outputs of a teacher that fit into float16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.methods import example_scores
from secateur.recipes.data.kd_data_pruning import mixture
from secateur.score import difficulty
from secateur.subjects.dataset.examples import ExampleSet
from secateur.vocabulary import Training


def ask(network, batch):
    return network(batch["inputs"])


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_logits_beyond_float16_lose_no_class_and_give_no_nan(scale):
    net = nn.Linear(4, 4)
    with torch.no_grad():
        net.weight.copy_(torch.eye(4) * scale)
        net.bias.copy_(torch.tensor([3.0, -2.0, 1.0, 0.0]))
    found = example_scores.ask_teacher(net, ask, ExampleSet(Examples(torch.eye(4), torch.arange(4))), batch=3)["logits"]
    assert torch.isfinite(found).all()
    assert found.argmax(-1).tolist() == [0, 1, 2, 3]
    logits = torch.zeros(4, 4, requires_grad=True)
    batch = {"teacher_logits": found.float(), "labels": torch.arange(4)}
    loss, _ = mixture(lambda _: logits, 1.0, 4.0)(batch, {"examples": 4})
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_what_is_mislabelled_is_memorised():
    """No other example tells about a wrong label: a network is right about it only if it learned from it."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    inputs = functional.one_hot(labels, 3).float().repeat(1, 16) + 0.3 * torch.randn(60, 48)
    wrong = torch.arange(60) < 4
    data = Examples(inputs, torch.where(wrong, (labels + 1) % 3, labels), name="clouds")
    net = nn.Sequential(nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 3))
    found = difficulty.average([
        example_scores.score_by_training(
            net, data, ask, "memorisation",
            Training(batch=10, optimizer="adamw", lr=1e-2), epochs=40, seed=0, number=number,
        )["score"]
        for number in range(4)
    ])  # fmt: skip
    assert found[wrong].min() > found[~wrong].max()


@pytest.mark.parametrize(
    ("runs", "epochs", "words"), [(3, 1.0, "runs come in pairs"), (4, 0.0, "epochs=0"), (4, -1.0, "give 0 or more")]
)
def test_trainings_that_tell_nothing_of_memorisation_are_refused(runs, epochs, words):
    with pytest.raises(InputError, match=words):
        example_scores.check_scoring("memorisation", runs, epochs)
    example_scores.check_scoring("memorisation", 4, 1.0)
