"""Tiny networks that the score tests share."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Linear:
    """A consumer as a subject describes it."""

    module: str
    block: int = 1
    conv1d: bool = False


class Block(nn.Module):
    """Two linears with a nonlinearity between: down's input columns are the neurons."""

    def __init__(self, width: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def batches(count: int = 3, size: int = 2, length: int = 5, width: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random inputs with ragged padding at the end."""
    draw = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        x = torch.randn(size, length, width, generator=draw)
        ends = torch.randint(1, length + 1, (size, 1), generator=draw)
        result.append({"x": x, "attention_mask": (torch.arange(length) < ends).long()})
    return result


def hooks(model: nn.Module) -> int:
    """How many hooks hang on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
