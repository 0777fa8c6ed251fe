"""Sharpness-aware steps: the gradient at w + rho g / |g|, weights and statistics put back, almost no rho is SGD."""

import copy

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.recover.training import loop, sharpness
from secateur.vocabulary import Training

X, Y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def objective(model):
    def loss(batch, totals):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum") / totals["examples"], {}

    return loss


def train(model, **settings):
    batches = [{"x": X, "y": Y}]
    given = {"steps": 3, "lr": 0.1, "schedule": "constant", "optimizer": "sgd", "momentum": 0.0, "clip": None}
    count = lambda batch: {"examples": len(batch["y"])}  # noqa: E731
    return loop.train(model, batches, objective(model), count=count, **{**given, "weight_decay": 0.0, **settings})


def test_a_step_goes_along_the_gradient_where_the_loss_is_higher():
    ours, theirs = network(), network()
    train(ours, sam=0.3, steps=1)
    theirs.train()
    parameters = list(theirs.parameters())
    first = torch.autograd.grad(nn.functional.cross_entropy(theirs(X), Y), parameters)
    statistics = {name: one.clone() for name, one in theirs.named_buffers()}
    length = torch.sqrt(sum(one.square().sum() for one in first))
    there = copy.deepcopy(theirs)
    with torch.no_grad():
        for parameter, gradient in zip(there.parameters(), first, strict=True):
            parameter.add_(0.3 * gradient / length)
    second = torch.autograd.grad(nn.functional.cross_entropy(there(X), Y), list(there.parameters()))
    for parameter, one, gradient in zip(ours.parameters(), parameters, second, strict=True):
        assert torch.allclose(parameter, one - 0.1 * gradient, atol=1e-6)
    for name, one in ours.named_buffers():
        assert torch.equal(one, statistics[name]), f"{name}: the batch is counted once"


def test_a_radius_of_almost_nothing_is_the_plain_training():
    plain, sharp, wide = network(), network(), network()
    train(plain)
    train(sharp, sam=1e-9)
    train(wide, sam=0.5)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(sharp.state_dict()[name].float(), tensor.float(), atol=1e-6), name
    assert not torch.allclose(wide[0].weight, plain[0].weight, atol=1e-4)


def test_weights_and_momentum_come_back_where_the_block_fails():
    model = network()
    model(X).sum().backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def fail():
        with sharpness.climb([model], list(model.parameters()), 0.5):
            assert not torch.equal(model[0].weight, before[0])
            assert model[0].weight.grad is None
            raise RuntimeError("no second pass")

    with pytest.raises(RuntimeError, match="no second pass"):
        fail()
    assert all(map(torch.equal, model.parameters(), before))
    assert model[1].momentum == 0.1


def test_it_is_told_in_the_settings_and_counts_twice():
    done = train(network(), sam=0.1, flops_per_token=5.0)
    assert done.settings["sam"] == 0.1
    assert done.flops == 2 * 5.0 * 3 * len(X), "two passes"
    with pytest.raises(InputError, match=r"sam=0\.0: give a number above 0"):
        Training(sam=0.0)
