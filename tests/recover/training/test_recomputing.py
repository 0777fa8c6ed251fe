"""Gradient checkpointing: the same gradients, statistics and draws, and fewer activations."""

import copy
import warnings
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2
from transformers import T5Config, T5Model

from recover.students import bert, llama
from secateur.errors import TrainingWarning
from secateur.recover.training import recomputing
from secateur.recover.training.recomputing import find_blocks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        return x + self.inner(x)


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), nn.ReLU())
    )


def flat() -> nn.Module:
    layers = [part for _ in range(3) for part in (nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU())]
    return nn.Sequential(*layers, nn.Dropout(0.5))


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2, 2, 1)
        self.layers = nn.ModuleList(Residual() for _ in range(depth))

    def forward(self, x):
        x = self.reduce(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Twice(nn.Module):
    """A block with two parts of one class, as a decoder that attends to itself and to an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(), Residual()


class Dense(nn.ModuleDict):
    """Blocks in a container of its own class, as DenseNet's."""

    def __init__(self) -> None:
        super().__init__({"first": Residual(), "second": Residual()})


def staged() -> nn.Module:
    return nn.Sequential(Stage(2), Stage(3))


def test_within_stages_that_repeat_blocks_are_those_that_repeat_in_each():
    network = staged()
    assert find_blocks(network) == [*network[0].layers, *network[1].layers]
    network = nn.Sequential(Stage(1), Stage(1))
    assert find_blocks(network) == list(network), "a stage of one block is one"
    network = nn.Sequential(Twice(), Twice())
    assert find_blocks(network) == list(network)
    network = nn.Sequential(Dense(), Dense())
    assert find_blocks(network) == [block for one in network for block in one.values()]
    both = T5Model(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    assert find_blocks(both) == [*both.encoder.block, *both.decoder.block]
    mobile = mobilenet_v2(width_mult=0.1)
    assert {type(block).__name__ for block in find_blocks(mobile)} == {"InvertedResidual", "Conv2dNormActivation"}
    assert len(find_blocks(mobile)) == len(mobile.features)


def test_blocks_are_the_outermost_that_repeat():
    model = llama()
    assert find_blocks(model) == list(model.model.layers)
    encoder = bert()
    assert find_blocks(encoder) == list(encoder.base_model.encoder.layer)
    network = residual()
    assert find_blocks(network) == [network[1][0], network[1][1], network[2][0]]
    assert find_blocks(flat()) == []


@pytest.mark.parametrize("make", [residual, flat, staged])
@pytest.mark.parametrize("narrow", [False, True])
def test_gradients_statistics_and_draws_are_the_same(make, narrow):
    torch.manual_seed(0)
    plain = make()
    other, x = copy.deepcopy(plain), torch.randn(4, 2, 9, 9)
    kept = []
    for model, context in ((plain, torch.enable_grad()), (other, recomputing.recomputing(other))):
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        torch.manual_seed(1)
        with context, torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(x).square().mean()
            loss.backward()
        kept.append(sum(saved))
    for (name, one), two in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name
    assert kept[1] < kept[0] / 2
    assert all("forward" not in vars(module) for module in other.modules())


def test_nothing_is_run_again_without_gradients():
    model = residual()
    with (
        patch.object(recomputing, "checkpoint", side_effect=AssertionError),
        recomputing.recomputing(model),
        torch.no_grad(),
    ):
        model(torch.zeros(1, 2, 3, 3))


def test_a_network_without_blocks_keeps_all_and_says_so():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(x)

    def run(model):
        with recomputing.recomputing(model):
            model(torch.ones(1, 2)).sum().backward()

    with pytest.warns(TrainingWarning, match="checkpointing: Odd has no repeated blocks"):
        run(Odd())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(nn.Linear(2, 2))
