"""Nested masks on a small network of our own: masked = sliced, reversible, differentiable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.recover.sparsity import nested

EPS = 0.1  # large, so that an epsilon that is not corrected shows


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


class Layer(nn.Module):
    def __init__(self, channels: int, neurons: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(channels), nn.Linear(channels, neurons), nn.Linear(neurons, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self, channels: int = 8, neurons: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, channels)
        self.layers = nn.ModuleList(Layer(channels, neurons) for _ in range(layers))
        self.norm, self.head = Norm(channels), nn.Linear(channels, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return out


TOKENS = torch.tensor([[0, 3, 1, 4]])


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def masks(*, correct: bool = True) -> nested.Nested:
    every = torch.arange(8)
    prefixes = {"channels": nested.Prefix(every, (8, 6, 3)), "layers": nested.Prefix(torch.tensor([-1, 2, 1]), (3, 2))}
    places: list[nested.Place] = [nested.Mask("embed", "output", "channels", every), nested.Norm("norm", ("channels",))]
    for index in range(3):
        path, site = f"layers.{index}", f"neurons.{index}"
        prefixes[site] = nested.Prefix(torch.arange(6), (6, 4, 2))
        places += [
            nested.Norm(f"{path}.norm", ("channels",)),
            nested.Mask(f"{path}.down", "input", site, torch.arange(6)),
            nested.Mask(f"{path}.down", "output", "channels", every),
            nested.Gate(path, "layers", index),
        ]
    return nested.Nested(prefixes, places, correct=correct)


def cut(model: Net, channels: int, neurons: list[int], layers: list[int]) -> Net:
    """The first units of every axis, with weights as they are: no gain and no epsilon changes."""
    small, state = Net(channels, 1, len(layers)), model.state_dict()
    for new, old in enumerate(layers):
        small.layers[new] = Layer(channels, neurons[old])
        for name, tensor in small.layers[new].state_dict().items():
            tensor.copy_(state[f"layers.{old}.{name}"][tuple(slice(size) for size in tensor.shape)])
    for name in ("embed.weight", "norm.weight", "head.weight", "head.bias"):
        tensor = small.state_dict()[name]
        tensor.copy_(state[name][tuple(slice(size) for size in tensor.shape)])
    return small


SIZES = [(0, [0, 0, 0], 0), (1, [1, 2, 0], 0), (2, [2, 2, 2], 1), (0, [1, 1, 1], 1)]


@pytest.mark.parametrize(("channels", "neurons", "depth"), SIZES)
@torch.no_grad()
def test_masked_is_sliced_and_not_without_the_correction_of_norms(channels, neurons, depth):
    model, whole = net(), net()(TOKENS)
    small = cut(model, (8, 6, 3)[channels], [(6, 4, 2)[k] for k in neurons], [0, 2] if depth else [0, 1, 2])
    chosen = {"channels": channels, "layers": depth, **{f"neurons.{k}": n for k, n in enumerate(neurons)}}
    for corrected in (True, False):
        found = masks(correct=corrected)
        with found.on(model):
            found.choose(chosen)
            masked = model(TOKENS)
            with found.off():
                assert torch.equal(model(TOKENS), whole)
            assert torch.equal(model(TOKENS), masked)
            found.choose(dict.fromkeys(chosen, 0))
            assert torch.equal(model(TOKENS), whole)
        assert torch.equal(model(TOKENS), whole)  # bit by bit
        assert torch.allclose(masked, small(TOKENS), atol=1e-5) == (corrected or channels == 0)


def test_smaller_choices_are_inside_larger_ones():
    for prefix in masks().prefixes.values():
        stays = prefix.stays()
        assert stays[0].all()
        assert (stays[1:] <= stays[:-1]).all()


def test_weights_of_choices_blend_masks_and_norms_and_get_gradients():
    model, found = net(), masks()
    weights = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    with found.on(model):
        found.choose({"channels": weights})
        assert torch.allclose(found.shares["channels"], torch.tensor([1, 1, 1, 0.8, 0.8, 0.8, 0.5, 0.5]))
        x = torch.randn(1, 8)
        parts = torch.tensor([1, 6 / 8, 3 / 8])
        mean, root = (weights * parts).sum(), (weights * parts.sqrt()).sum()
        plain = model.norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS * mean) * root
        assert torch.allclose(model.norm(x), plain, atol=1e-6)  # the epsilon and the root are blended, as published
        model(TOKENS).square().sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).all()


def test_one_hot_weights_are_the_choice():
    model, found = net(), masks()
    with found.on(model), torch.no_grad():
        found.choose({"channels": 1, "layers": 1})
        chosen = model(TOKENS)
        found.choose({"channels": torch.tensor([0.0, 1.0, 0.0]), "layers": torch.tensor([0.0, 1.0])})
        assert torch.allclose(model(TOKENS), chosen, atol=1e-6)


def test_a_barred_expert_gets_no_token_and_no_gradient_is_lost():
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight).softmax(-1)

    router = Router()
    found = nested.Nested({"experts": nested.Prefix(torch.arange(4), (4, 2))}, [nested.Bar("", "experts")])
    x, hard = torch.randn(5, 3), torch.tensor([0.0, 1.0], requires_grad=True)
    with found.on(router):
        found.choose({"experts": hard})
        shares = router(x)
        assert (shares[:, 2:] == 0).all()
        assert torch.allclose(shares[:, :2], nn.functional.linear(x, router.weight[:2]).softmax(-1))
        shares[:, 0].sum().backward()
    assert torch.isfinite(hard.grad).all()
    assert torch.equal(router(x), nn.functional.linear(x, router.weight).softmax(-1))


def test_what_can_not_be_chosen_is_refused():
    with pytest.raises(InputError, match="falling counts"):
        nested.Prefix(torch.arange(4), (2, 4))
    found = masks()
    for wrong in ({"heads": 1}, {"channels": 3}, {"channels": torch.ones(2)}):
        with pytest.raises(InputError, match=r"has \d choices"):
            found.choose(wrong)
    found.places.append(nested.Norm("nowhere", ("channels",)))
    with pytest.raises(InputError, match="no module 'nowhere'"), found.on(net()):
        pass
