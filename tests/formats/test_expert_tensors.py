"""Which modules hold experts in one of the two forms, and what their neurons give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.formats.expert_tensors import find_first, is_packed, run_first


def make(**shapes: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    module.act_fn = nn.SiLU()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    ("shapes", "first", "packed"),
    [
        ({"gate_up_proj": (2, 10, 4), "down_proj": (2, 4, 5)}, "gate_up_proj", True),
        ({"up_proj": (2, 5, 4), "down_proj": (2, 4, 5)}, "up_proj", True),
        ({"up_proj": (2, 10, 4), "down_proj": (2, 4, 5)}, "up_proj", False),
        ({"gate_up_proj": (2, 4, 10), "down_proj": (2, 5, 4)}, "gate_up_proj", False),  # inputs before outputs
        ({"gate_proj": (2, 5, 4), "up_proj": (2, 5, 4), "down_proj": (2, 4, 5)}, "", False),  # a gate of its own
        ({"up_proj": (5, 4), "down_proj": (4, 5)}, "", False),
        ({"up_proj": (2, 5, 4)}, "", False),
    ],
)
def test_experts_are_told_by_their_tensors(shapes: dict[str, tuple[int, ...]], first: str, packed: bool) -> None:
    module = make(**shapes)
    assert find_first(module) == first
    assert is_packed(module) == packed


def test_neurons_give_what_their_rows_read() -> None:
    states = torch.randn(3, 4)

    def act(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    gated = make(gate_up_proj=(2, 10, 4), down_proj=(2, 4, 5))
    gate, up = gated.gate_up_proj[1, :5], gated.gate_up_proj[1, 5:]
    torch.testing.assert_close(run_first(gated, 1, states), act(states @ gate.T) * (states @ up.T))
    plain = make(up_proj=(2, 5, 4), down_proj=(2, 4, 5))
    torch.testing.assert_close(run_first(plain, 1, states), act(states @ plain.up_proj[1].T))
