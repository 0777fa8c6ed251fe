import math

import pytest
import torch
from torch import nn

from secateur.errors import NumericalError
from secateur.score import ablation


def test_the_layer_that_matters_most_scores_highest():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    with torch.no_grad():
        for scale, layer in zip((0.1, 3.0, 1.0), layers, strict=True):
            layer.weight.mul_(scale)
    x = torch.randn(16, 4)

    def run(without):
        y = x
        for i, layer in enumerate(layers):
            y = y if i == without else y + layer(y)
        return y.detach()

    scores = ablation.without(lambda i: (run(i) - run(None)).square().mean().item(), range(3))
    assert scores.argsort().tolist() == [0, 2, 1]


def test_nan_is_named():
    with pytest.raises(NumericalError, match="without 'layer 1' is NaN"):
        ablation.without(lambda c: math.nan if c == "layer 1" else 0.0, ["layer 0", "layer 1"])
