"""Optimisers by name: eight bits as thirty-two to tolerance, and a state that goes through a checkpoint."""

import sys

import pytest
import torch
from torch import nn

from secateur.errors import InputError, MissingExtraError
from secateur.recover.training import optimizers
from secateur.recover.training.optimizers import make_optimizer

CPU = torch.device("cpu")


def fit(wanted, steps=6, stop=None):
    """The weights of a layer after some steps, whose optimiser is made anew from its state after `stop`."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), torch.randn(32, 64)

    def make():
        groups = optimizers.groups_of(model, 0.01)
        return make_optimizer(wanted, groups, CPU, lr=1.0, betas=(0.9, 0.99), momentum=0.9)

    optimizer = make()
    for step in range(steps):
        if step == stop:
            tensors, optimizer = optimizers.state_of(optimizer), make()
            optimizers.restore_state(optimizer, {name: tensor.clone() for name, tensor in tensors.items()})
        model(x).square().mean().backward()
        optimizers.set_rate(optimizer, 1e-2)
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.detach(), optimizer


@pytest.mark.parametrize("wanted", ["adamw", "adamw8bit", "sgd"])
def test_a_state_that_was_stored_goes_on_to_the_same_bytes(wanted):
    assert torch.equal(fit(wanted)[0], fit(wanted, stop=3)[0])


def test_eight_bits_train_as_thirty_two_and_take_a_byte_for_each_moment():
    pytest.importorskip("torchao")
    (exact, full), (near, small) = fit("adamw"), fit("adamw8bit")
    start = fit("adamw", 0)[0]
    assert float((near - exact).abs().max()) < 0.2 * float((exact - start).abs().max())
    held = [sum(t.nbytes for t in optimizers.state_of(one).values()) for one in (full, small)]
    assert held[1] < 0.3 * held[0]


def test_eight_bits_without_torchao_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(MissingExtraError, match=r"adamw8bit needs torchao: pip install 'secateur\[quantise\]'"):
        fit("adamw8bit")


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="optimizer='lion': give 'adamw', 'adamw8bit', 'sgd'"):
        fit("lion")


def test_a_group_has_a_rate_of_its_own_by_a_factor():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = make_optimizer(
        "adamw", [{"params": weights[:1]}], torch.device("cpu"), lr=1e-3, betas=(0.9, 0.999), momentum=0.0
    )
    optimizer.add_param_group({"params": weights[1:], "times": 100.0})
    for rate in (1e-3, 5e-4):
        optimizers.set_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, pytest.approx(100 * rate)]
