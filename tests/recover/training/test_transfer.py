"""Heads for other classes, and inputs that attack."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from recipes.vision import nets
from secateur.errors import InputError, UnsupportedError
from secateur.recover.training import transfer


def test_the_loss_is_the_mean_over_all_micro_batches():
    model, data = nets.vgg().eval(), nets.data(12)
    whole, parts = data.batch(), [data.take(range(5)).batch(), data.take(range(5, 12)).batch()]
    objective = transfer.classify(model)
    expected = functional.cross_entropy(model(data.inputs), data.labels)
    assert torch.allclose(objective(whole, {"examples": 12})[0], expected)
    assert torch.allclose(sum(objective(part, {"examples": 12})[0] for part in parts), expected)


def test_an_attack_stays_within_its_radius_and_hurts_more_than_chance():
    model, data = nets.vgg().eval(), nets.data(40)

    def loss(inputs):
        return functional.cross_entropy(model(inputs), data.labels, reduction="sum")

    moved = transfer.attack(loss, data.inputs, 0.1)
    assert float((moved - data.inputs).abs().max()) <= 0.1 + 1e-6
    assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 1.0
    noise = (data.inputs + 0.1 * torch.randn_like(data.inputs).sign()).clamp(0, 1)
    with torch.no_grad():
        assert loss(moved) > max(loss(noise), loss(data.inputs))
    assert all(parameter.grad is None for parameter in model.parameters()), "an attack leaves no gradient behind"


def test_an_attack_from_a_start_is_clipped_to_the_ball():
    inputs, start = torch.full((1, 3), 0.5), torch.tensor([[0.1, -0.1, 0.0]])
    moved = transfer.attack(lambda x: x.sum(), inputs, 0.1, start=start, step=0.125)
    assert torch.allclose(moved, torch.tensor([[0.6, 0.525, 0.6]]))


@pytest.mark.parametrize("start", [None, torch.full((40, 1, 8, 8), 0.05)])
def test_an_attack_on_normalised_inputs_is_the_same_attack_on_pixels(start):
    model, data = nets.vgg().eval(), nets.data(40)
    pixels = transfer.Pixels((0.3,), (0.2,))

    def loss(inputs):
        return functional.cross_entropy(model(inputs), data.labels, reduction="sum")

    plain = transfer.attack(loss, data.inputs, 0.1, start=start)
    moved = transfer.attack(lambda x: loss(0.2 * x + 0.3), (data.inputs - 0.3) / 0.2, 0.1, start=start, pixels=pixels)
    assert float((0.2 * moved + 0.3 - plain).abs().max()) < 1e-5
    assert float((moved - (data.inputs - 0.3) / 0.2).abs().max()) > 0.4, "a tenth of a pixel is half a deviation"


def test_training_under_attack_sees_other_inputs():
    model, batch, seen = nets.vgg().eval(), nets.data(8).batch(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    transfer.classify(model, radius=0.2)(batch, {"examples": 8})[0].backward()
    assert len(seen) == 2, "one pass for the attack, one to learn"
    assert 0.1 < float((seen[1] - batch["inputs"]).abs().max()) <= 0.2 + 1e-6


def test_a_new_head_leaves_the_rest_and_the_original_alone():
    model = nets.vgg().eval()
    path = transfer.head(model)
    before = model.get_submodule(path).weight.clone()
    other = transfer.with_head(model, path, 7, seed=3)
    assert other(nets.data(2).inputs).shape == (2, 7)
    assert torch.equal(model.get_submodule(path).weight, before)
    state = other.state_dict()
    same = [name for name, value in model.state_dict().items() if torch.equal(value, state[name])]
    assert set(model.state_dict()) - set(same) == {f"{path}.weight", f"{path}.bias"}
    again = transfer.with_head(model, path, 7, seed=3)
    assert torch.equal(again.get_submodule(path).weight, other.get_submodule(path).weight)
    assert transfer.with_head(nn.Linear(4, 3), "", 5).weight.shape == (5, 4)


def test_heads_are_found_or_named():
    assert transfer.head(nets.vit()) == "net.classifier"
    assert transfer.head(nets.vgg(), "") == [n for n, m in nets.vgg().named_modules() if isinstance(m, nn.Linear)][-1]
    with pytest.raises(InputError, match=r"head='net.classifer' is no linear layer.*did you mean 'net.classifier'"):
        transfer.head(nets.vit(), "net.classifer")
    with pytest.raises(UnsupportedError, match="Sequential has no linear layer"):
        transfer.head(nn.Sequential(nn.Conv2d(1, 4, 3)))
