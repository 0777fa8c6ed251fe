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


class Residual(nn.Module):
    """Convolutions with a residual around them, batch norms and dropout: what a pass may change is there."""

    def __init__(self, wide: int = 6, inner: int = 8) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, wide, 3, padding=1), nn.BatchNorm2d(wide)
        self.inner, self.bn2 = nn.Conv2d(wide, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.outer, self.drop, self.head = nn.Conv2d(inner, wide, 1), nn.Dropout(0.5), nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = x + self.outer(self.bn2(self.inner(x)).relu())
        return self.head(self.drop(x.relu().mean((2, 3))))


def residual(seed: int = 0) -> Residual:
    """One with scales and statistics that differ from channel to channel."""
    torch.manual_seed(seed)
    model = Residual()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def slices(model: Residual) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
    """What goes with each channel of the residual stream ("wide") and inside the block ("inner")."""
    wide, inner = torch.arange(model.stem.out_channels), torch.arange(model.inner.out_channels)
    rows = [model.stem.weight, model.stem.bias, model.bn.weight, model.bn.bias, model.outer.weight, model.outer.bias]
    inside = [model.inner.weight, model.inner.bias, model.bn2.weight, model.bn2.bias]
    return {
        "wide": [*((one, 0, wide) for one in rows), (model.inner.weight, 1, wide), (model.head.weight, 1, wide)],
        "inner": [*((one, 0, inner) for one in inside), (model.outer.weight, 1, inner)],
    }


def images(count: int = 3, size: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random images with classes."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(size, 2, 6, 6, generator=draw), "labels": torch.randint(3, (size,), generator=draw)}
        for _ in range(count)
    ]


def unit_of(parts: list[tuple[Tensor, int, Tensor]], unit: int, value=lambda weight: weight) -> Tensor:
    """All numbers of one unit as a vector, slice by slice: the plain form of what scores add up."""
    found = []
    for weight, dim, units in parts:
        mine = [index for index in range(weight.shape[dim]) if units[index] == unit]
        found += [value(weight).detach().select(dim, index).reshape(-1) for index in mine]
    return torch.cat(found)


def state(model: nn.Module) -> dict[str, object]:
    """All that scoring must leave alone."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "frozen": [p.requires_grad for p in model.parameters()],
        "hooks": hooks(model),
    }


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    """Whether two states are equal."""
    return (
        all(torch.equal(value, b["tensors"][name]) for name, value in a["tensors"].items())
        and all(
            (x is None) == (y is None) and (x is None or torch.equal(x, y))
            for x, y in zip(a["gradients"], b["gradients"], strict=True)
        )
        and all(a[key] == b[key] for key in ("modes", "frozen", "hooks"))
    )
