"""Small networks, one for each way in which channels hang together, with their example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.vocabulary import Selection

Made = tuple[nn.Module, Any]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.rand(12, 1, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x + self.scale * self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


class Joined(nn.Module):
    """Concatenation with offsets, flattened into a linear."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
        self.bn, self.head = nn.BatchNorm2d(16), nn.Linear(16 * 4, 5)

    def forward(self, x):
        x = self.bn(torch.cat([self.a(x), self.b(x)], 1)).relu()
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """Depth-wise, grouped (thin and thick), channel shuffle, squeeze-and-excitation, transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, groups=16)
        self.thin, self.thick = nn.Conv2d(32, 32, 1, groups=8), nn.Conv2d(32, 24, 1, groups=2)
        self.down, self.up = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.back = nn.ConvTranspose2d(24, 8, 2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.depth(self.stem(x).relu())
        x = self.thick(self.thin(x).relu())
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.back(x))


class Normalised(nn.Module):
    """Group norm, pixel shuffle, layer norm over channels, gated FFN."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.wide, self.narrow = nn.Conv2d(24, 32, 1), nn.Conv2d(8, 12, 1)
        self.layer = nn.LayerNorm(12)
        self.gate, self.down, self.head = nn.Linear(12, 40), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.wide(self.norm(self.stem(x)).relu())
        x = self.layer(self.narrow(F.pixel_shuffle(x, 2)).flatten(2).transpose(1, 2))
        a, b = self.gate(x).chunk(2, -1)
        return self.head(x + self.down(a * b.sigmoid()))


class Attention(nn.Module):
    """Embeddings, heads from reshapes, grouped keys and values, or one fused projection."""

    def __init__(self, kv: int = 0):
        super().__init__()
        self.heads, self.dim, self.kv = 4, 6, kv
        self.table, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 7, 16))
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, 20, bias=False)
        width = self.heads * self.dim
        if kv:
            self.q, self.kv_proj = nn.Linear(16, width), nn.Linear(16, 2 * kv * self.dim)
        else:
            self.qkv = nn.Linear(16, 3 * width)
        self.out = nn.Linear(width, 16)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids) + self.places
        y = self.norm(x)
        b, s, _ = y.shape
        if self.kv:
            q = self.q(y).view(b, s, -1, self.dim).transpose(1, 2)
            k, v = (one.view(b, s, -1, self.dim).transpose(1, 2) for one in self.kv_proj(y).chunk(2, -1))
            k, v = (one.repeat_interleave(self.heads // 2, 1) for one in (k, v))
        else:
            q, k, v = self.qkv(y).reshape(b, s, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * self.dim**-0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(b, s, -1)
        return self.head(x + self.out(y))


class Recurrent(nn.Module):
    """A recurrent layer in the middle; the rest is free."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM):
        super().__init__()
        self.first, self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(10, 12), nn.Linear(12, 3)
        self.middle = kind(8, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        x, _ = self.middle(self.a(self.first(x).relu()))
        return self.c(self.b(x).relu())


class Written(nn.Module):
    """A vector is written where a mask says so, as SpecAugment does, and numbers where places do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.mark = nn.Parameter(torch.randn(8))

    def forward(self, x):
        mask = x.sum(-1) > 0
        x = self.a(x).relu()
        x[mask] = self.mark
        x = self.b(x).relu()
        x[~mask] = 0.5
        return self.c(x)


class Net(nn.Module):
    """Layers by name, and a function of the network and its input."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def linears(*sizes: int) -> dict[str, nn.Linear]:
    """Linear layers a, b, c, ... from each size to the next."""
    return {name: nn.Linear(before, after) for name, before, after in zip("abcdefg", sizes, sizes[1:], strict=False)}


def chain(between: Callable[[Tensor], Tensor]) -> Net:
    """Three linears with something between the first and the second."""
    return Net(lambda net, x: net.c(net.b(between(net.a(x))).relu()), **linears(6, 8, 10, 3))


class Attentive(nn.Module):
    """Attention that adds what it was given itself, and asks for shapes on the way, as diffusers' does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (part(y).view(*x.shape[:2], 2, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], -1, q.shape[1] * q.shape[-1])) / 1.0 + x


class Blocks(nn.Module):
    """Segments that can be erased: two attentions, and two summands of a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Attentive(), Attentive()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.two(self.one(x))
        return self.head(self.left(x) + self.right(x.relu()))


def mlp() -> Made:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)), torch.randn(4, 6)


IMAGE = (2, 3, 10, 10)

NETS: dict[str, Callable[[], Made]] = {
    "mlp": mlp,
    "residual": lambda: (Residual(), torch.randn(IMAGE)),
    "joined": lambda: (Joined(), torch.randn(IMAGE)),
    "grouped": lambda: (Grouped(), torch.randn(IMAGE)),
    "normalised": lambda: (Normalised(), torch.randn(IMAGE)),
    "fused attention": lambda: (Attention(), torch.randint(0, 20, (2, 7))),
    "grouped queries": lambda: (Attention(kv=2), torch.randint(0, 20, (2, 7))),
    "sorted": lambda: (chain(lambda x: x.sort(-1).values), torch.randn(4, 6)),
    "lstm": lambda: (Recurrent(), torch.randn(2, 4, 6)),
    "gru": lambda: (Recurrent(nn.GRU), torch.randn(2, 4, 6)),
    "rnn": lambda: (Recurrent(nn.RNN), torch.randn(2, 4, 6)),
    "written": lambda: (Written(), torch.randn(2, 4, 6)),
}


def make(name: str) -> Made:
    """A network with statistics and scales that differ from channel to channel."""
    torch.manual_seed(0)
    model, inputs = NETS[name]()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model, inputs


def half(subject: Any) -> Selection:
    """Every second unit of each site."""
    return Selection({site.name: np.arange(site.count) % 2 == 0 for site in subject.units().free()})


def outputs(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else next(iter(value.values()))
