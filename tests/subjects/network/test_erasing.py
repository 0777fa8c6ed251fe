"""What erasing leaves of a pass is told beforehand as it is measured afterwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.errors import InputError
from secateur.subjects.network import erasing
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection


class Attention(nn.Module):
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
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Attention(), Attention()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.two(self.one(x))
        return self.head(self.left(x) + self.right(x.relu()))


def test_flops_are_told_as_they_are_measured_where_attention_goes_too() -> None:
    subject = open_traced(Blocks(), torch.randn(2, 5, 8))
    names = [one.name for one in subject.graph.removable]
    assert names == ["one.out", "two.out", "left", "right"]
    told = set()
    for gone in ([0], [1], [2], [0, 1], [1, 3], [0, 1, 2]):
        selection = Selection({"segments": torch.tensor([place not in gone for place in range(4)])})
        _, cut = subject.cut(selection)
        assert erasing.flops(subject, selection) == cut.after["flops"] < cut.before["flops"]
        told.add(cut.after["flops"])
    assert len(told) == 5, "two blocks of a kind cost the same, all else does not"
    whole = Selection({"segments": torch.ones(4)})
    assert erasing.flops(subject, whole) == subject.flops()
    with pytest.raises(InputError, match="no way leads from the input to the output"):
        erasing.flops(subject, Selection({"segments": torch.tensor([True, True, False, False])}))
