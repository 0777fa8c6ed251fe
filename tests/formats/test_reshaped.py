"""The code that gives tensors and modules of a model sizes of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.formats.reshaped import reshape


class Shared(nn.Module):
    """Two linears of one weight, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(4, 6, bias=False)
        self.second.weight = self.first.weight
        self.sizes = [6, 6]
        self.register_buffer("places", torch.arange(6), persistent=False)


def test_tensors_get_shapes_and_modules_numbers() -> None:
    model = Shared()
    numbers = [["first", "out_features", 3], ["", "sizes", (3, 6)]]
    shapes = {"first.weight": [3, 4], "second.weight": [3, 4], "first.bias": [3], "places": [2]}
    reshape(model, {"shapes": shapes, "numbers": numbers, "buffers": ["places"]})
    assert model.second.weight is model.first.weight
    assert {name: list(one.shape) for name, one in model.state_dict().items()} == {
        "first.weight": [3, 4], "first.bias": [3], "second.weight": [3, 4], "places": [2],
    }  # fmt: skip
    assert (model.first.out_features, model.sizes, model.places.dtype) == (3, [3, 6], torch.int64)
    assert model.first(torch.ones(1, 4)).shape == (1, 3)


@pytest.mark.parametrize(("name", "value"), [("_modules", {}), ("second", 3), ("sizes", "few"), ("sizes", [[6]])])
def test_nothing_but_numbers_of_modules_is_set(name: str, value: object) -> None:
    model = Shared()
    with pytest.raises(ValueError, match=rf'"numbers" of "secateur" name .*{name}, which is no number'):
        reshape(model, {"shapes": {}, "numbers": [["", name, value]], "buffers": []})
    assert model.second.out_features == 6
