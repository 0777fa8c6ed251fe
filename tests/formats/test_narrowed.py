"""Modules that are given the sizes that a config names."""

from __future__ import annotations

import torch
from torch import nn

from secateur.formats.narrowed import narrow


def test_modules_get_their_shapes_and_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    narrow(model, {
        "0": {"shapes": {"weight": [3, 4], "bias": [3]}, "numbers": {"out_features": 3}},
        "1": {"shapes": {"weight": [2, 3]}, "numbers": {"in_features": 3}},
    })  # fmt: skip
    assert model(torch.ones(1, 4)).shape == (1, 2)
    assert isinstance(model[0].bias, nn.Parameter)
    assert (model[0].out_features, model[1].in_features) == (3, 3)
