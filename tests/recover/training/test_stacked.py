"""Models in a stack learn as each would alone, and answer as each does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from recipes.vision import nets
from secateur.data import examples
from secateur.recover.training import loop, stacked, transfer
from secateur.vocabulary import Training


def ask(model, batch):
    return model(batch["inputs"])


def build(seed):
    """No bias before the norm: its gradient is rounding alone, of which AdamW makes whole steps."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)
    )


def models(count=3):
    return [build(seed) for seed in range(count)]


def objective(stack):
    def sums(batch, totals):
        answers = stack(batch)
        losses = nn.functional.cross_entropy(
            answers.flatten(0, 1), batch["labels"].repeat(len(answers)), reduction="sum"
        )
        return losses / totals["examples"], {}

    return sums


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stack_learns_as_each_model_alone_with_norms_and_decay(optimizer):
    data, alone = nets.data(64), models()
    feed = examples.batches(data, batch=16, seed=1)
    training = Training(steps=6, lr=0.01, weight_decay=0.1, clip=math.inf, optimizer=optimizer)
    stack = stacked.Stacked(alone, ask)
    make = stacked.adjust_optimizer(training, momentum=0.9, betas=(0.9, 0.999))
    loop.train(stack, feed, objective(stack), training, optimizer=make, count=examples.count)
    for number, model in enumerate(alone):
        loop.train(model, feed, transfer.classify(model), training, count=examples.count)
        for name, tensor in stack.unstack(number).state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_answers_are_those_of_each_model_and_the_models_stay():
    alone, batch = models(), nets.data(8).batch()
    before = copy.deepcopy([model.state_dict() for model in alone])
    stack = stacked.Stacked(alone, ask).eval()
    for number, model in enumerate(alone):
        torch.testing.assert_close(stack(batch)[number], model.eval()(batch["inputs"]), atol=1e-5, rtol=1e-5)
        assert all(torch.equal(before[number][name], tensor) for name, tensor in model.state_dict().items())
    assert stacked.stackable(alone, ask, batch)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if float(self.weight.sum()) > 0 else x


def test_tied_weights_stay_tied_and_what_can_not_be_stacked_is_said():
    batch = {"inputs": torch.randn(5, 4)}
    pair = [Tied(), Tied()]
    assert stacked.stackable(pair, ask, batch)
    stack = stacked.Stacked(pair, ask)
    assert len(list(stack.parameters())) == 3
    one = stack.unstack(1)
    assert one.first.weight is one.second.weight
    assert not stacked.stackable([nn.Linear(4, 3), nn.Linear(4, 2)], ask, batch), "two shapes"
    assert not stacked.stackable([Branching(4, 4), Branching(4, 4)], ask, batch), "its code follows its weights"


def test_settings_that_mix_models_are_named():
    assert stacked.why_not(Training(lr=0.1, clip=math.inf)) == ""
    assert stacked.why_not(Training(clip=1.0)) == "clip"
    assert stacked.why_not(Training(sam=0.1)) == "sam"
    assert stacked.why_not(Training(optimizer="adamw8bit")) == "optimizer"
