from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.subjects.network import flops
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection
from subjects import nets


class Fused(nn.Module):
    """Attention by the fused operator, with two query heads for each head of keys and values."""

    def __init__(self, kv: int) -> None:
        super().__init__()
        self.kv, self.q, self.k = kv, nn.Linear(8, 24), nn.Linear(8, 6 * kv)
        self.v, self.out, self.head = nn.Linear(8, 6 * kv), nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (one(x).view(b, s, -1, 6).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.head(x.relu() + self.out(y.transpose(1, 2).reshape(b, s, -1)))


class Separable(nn.Module):
    """Depth-wise and point-wise convolutions in three dimensions, a residual, a transposed one with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv3d(2, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.point, self.up = nn.Conv3d(8, 8, 1), nn.ConvTranspose3d(8, 12, 2, stride=2, groups=4)
        self.head = nn.Conv3d(12, 3, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.up(x + self.point(self.depth(x))))


OTHERS = {
    "fused kernel": lambda: (Fused(4), torch.randn(2, 7, 8)),
    "fused kernel, grouped": lambda: (Fused(2), torch.randn(2, 7, 8)),
    "separable": lambda: (Separable(), torch.randn(2, 2, 4, 4, 4)),
    "sequence": lambda: (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 5, 4)),
    "multihead": lambda: (nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), torch.randn(2, 5, 16)),
}


def selections(units):
    for seed in range(3):
        draw = np.random.default_rng(seed)
        keep = {}
        for site in units.free():
            step = site.multiple
            kept = step * int(draw.integers(max(1, -(-site.minimum // step)), site.count // step + 1))
            mask = np.zeros(site.count, bool)
            mask[draw.permutation(site.count)[:kept]] = True
            keep[site.name] = mask
        yield Selection(keep)


@pytest.mark.parametrize("name", [*nets.NETS, *OTHERS])
def test_predicted_flops_are_those_counted_on_the_cut_network(name: str) -> None:
    model, inputs = nets.make(name) if name in nets.NETS else OTHERS[name]()
    subject = open_traced(model, inputs)
    units = subject.units()
    whole = units.cost()["flops"]
    assert whole == subject.flops() > 0
    assert any(term.measure == "flops" for term in units.terms)
    for selection in selections(units):
        predicted = units.cost(selection.keep)["flops"]
        small, cut = subject.cut(selection)
        assert predicted == pytest.approx(small.flops(), rel=1e-12)
        assert cut.after["flops"] == small.flops()
        assert cut.before["flops"] == whole
        if cut.removed:
            assert predicted < whole


def test_what_counts_is_what_torch_counts_and_attention_on_a_cpu() -> None:
    model, inputs = nets.make("residual")
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    assert open_traced(model, inputs).flops() == counter.get_total_flops()
    fused = Fused(4).eval()
    x = torch.randn(2, 7, 8)
    linear = sum(2 * 2 * 7 * one.weight.numel() for one in (fused.q, fused.k, fused.v, fused.out, fused.head))
    with torch.no_grad(), flops.Counter() as counted:
        fused(x)
    assert counted.total == linear + 2 * 2 * 4 * 7 * 7 * (6 + 6)


def test_an_operator_that_does_not_shrink_counts_as_it_is() -> None:
    def run(net, x):
        mixed = torch.ones(5, 6) @ torch.ones(6, 7)
        return net.b(net.a(x).relu()) + mixed.mean()

    subject = open_traced(nets.Net(run, **nets.linears(4, 8, 3)), torch.randn(2, 4))
    assert subject.units().base["flops"] == 2 * 5 * 6 * 7
    half = {"a.channels": np.arange(8) < 4}
    assert subject.units().cost(half)["flops"] == 2 * 5 * 6 * 7 + 2 * 2 * (4 * 4 + 4 * 3)
