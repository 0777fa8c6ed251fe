"""A small network whose layers compute with integers."""

from __future__ import annotations

import torch
from torch import nn

from secateur.formats import integers
from secateur.formats.integers import Scales
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import Traced


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 2, 2), nn.Flatten(2), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)).eval()


IMAGES = rand(4, 1, 8, 8)


def made(bits=8, masks=None, form=None):
    """The network of integers, as a subject, with masks for the layer "2"."""
    model = net()
    for name, mask in (masks or {}).items():
        model.get_parameter(name).data.mul_(mask)
    half = 2 ** (bits - 1)
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "weight")}
    tops = {path: layer.weight.detach().flatten(1).abs().amax(1) for path, layer in layers.items()}
    scales = {path: Scales(bits, torch.tensor(3.0 / half), top / half) for path, top in tops.items()}
    integers.install(model, scales)
    result = Traced(model, Example.of(IMAGES[:2]), (Plan(bits=tuple((path, bits) for path in scales)),))
    result.masks, result.forms = dict(masks or {}), dict.fromkeys(masks or {}, form)
    return result
