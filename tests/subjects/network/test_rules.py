"""Operators one by one: the classes of one weight's rows after it has gone through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network import labelling, rules
from secateur.subjects.network.coupling import couple
from secateur.subjects.network.recording import Example, record


class Through(nn.Module):
    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.step = nn.Conv2d(2, 12, 1), step

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.first(x))
        # Summed over whatever there is, so that no channel reaches the output.
        return x.float().pow(2).sum()


def units(step: Callable[[Tensor], Tensor]) -> int:
    run = record(Through(step).eval(), Example((torch.randn(1, 2, 4, 4),)))
    return sum(len(site.classes) for site in couple(run).sites.values())


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (torch.relu, 12),
        (lambda x: x.flip(1), 12),
        (lambda x: F.pad(x, (1, 1)), 12),
        (lambda x: F.interpolate(x, scale_factor=2), 12),
        (lambda x: F.pixel_shuffle(x, 2), 12),
        (lambda x: F.pixel_unshuffle(x, 2), 12),
        (lambda x: F.unfold(x, 3), 12),
        (lambda x: x.view(1, 3, 4, 4, 4), 4),
        (lambda x: sum(x.chunk(3, 1)), 4),
        (lambda x: torch.stack(x.chunk(2, 1)).sum(0), 6),
        (lambda x: torch.cat(list(x.chunk(2, 1))[::-1], 1), 6),
        (lambda x: F.glu(x, 1), 6),
        (lambda x: x.softmax(1), 12),
        (lambda x: x.max(1).values, 12),
        (lambda x: F.group_norm(x, 3), 4),
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (12,)), 12),
        (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), 12),
        (lambda x: x + torch.zeros_like(x), 12),
        (lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2), align_corners=False), 12),
        (lambda x: x.view(1, 12, 16).cumsum(2), 12),
        (lambda x: torch.linalg.solve_triangular(x, x, upper=False, unitriangular=True), 12),
        (lambda x: torch.linalg.solve_triangular(torch.eye(16), x.view(1, 12, 16), upper=True, left=False), 12),
        (lambda x: x.roll(1, 2), 12),
        (lambda x: x.mean((2, 3)).view(1, 12, 1) * x.flatten(2), 12),
        # What stays
        (lambda x: x.roll(1, 1), 0),
        (lambda x: x.cumsum(1), 0),
        (lambda x: x.sort(1).values, 0),
        (lambda x: x + torch.arange(12.0).view(1, 12, 1, 1), 0),
        (lambda x: x[:, torch.arange(11, -1, -1)], 0),
        (lambda x: torch.linalg.qr(x).Q, 0),
        (lambda x: torch.linalg.solve_triangular(torch.eye(12), x.view(1, 12, 16), upper=True), 0),
    ],
)
def test_units_that_may_go(step: Callable[[Tensor], Tensor], expected: int) -> None:
    assert units(step) == expected


def test_a_part_written_into_zeros_stays() -> None:
    def step(x: Tensor) -> Tensor:
        whole = torch.zeros(1, 14, 4, 4)
        whole[:, :12] = x
        return whole

    assert units(step) == 0


def test_one_index_that_is_only_looked_at_does_not_keep_it() -> None:
    assert units(lambda x: x.view(1, 12, 16)[:, 0].new_ones(1) * x) == 12
    assert units(lambda x: x * x[:, :1]) == 11


class Recurrent(nn.Module):
    """A convolution before a recurrent layer, with as many inputs as it has gates, and what lies behind."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 24, 3, padding=1)
        self.rnn = kind(24, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.conv(x).relu().transpose(1, 2))[0].mean(1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_convolutions_before_a_recurrent_layer_are_cut(kind: type[nn.RNNBase]) -> None:
    small, cut = secateur.prune(Recurrent(kind), torch.randn(2, 4, 10))
    assert cut.removed == {"conv.channels": (12, 24)}
    assert small.rnn.input_size == 12
    assert small.rnn.weight_hh_l0.shape == (6 * (4 if kind is nn.LSTM else 3), 6)


def test_deformable_convolutions_are_cut_and_their_places_stay() -> None:
    torchvision = pytest.importorskip("torchvision")

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.places = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 18, 3, padding=1)
            self.bent, self.out = torchvision.ops.DeformConv2d(8, 12, 3, padding=1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.out(self.bent(x, self.places(x)).relu().mean((2, 3)))

    small, cut = secateur.prune(Deformable(), torch.randn(2, 3, 8, 8))
    assert cut.removed == {"stem.channels": (4, 8), "bent.channels": (6, 12)}
    assert small.places.weight.shape == (18, 4, 3, 3)
    assert small.bent.weight.shape == (6, 4, 3, 3)


class Blocks(nn.Module):
    """Gates that blocks of channels compute, each by a matrix of its own, as those of an RG-LRU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.blocks = nn.Linear(4, 12), nn.Linear(12, 3), 3
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(3, 4))
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        blocks = x.view(x.shape[0], self.blocks, 4).permute(1, 0, 2)
        gates = torch.baddbmm(self.bias[:, None], blocks, self.weight).transpose(0, 1).reshape(x.shape)
        return self.out(x * gates.sigmoid() * self.scale)


def test_blocks_with_matrices_of_their_own_go_as_wholes() -> None:
    small, cut = secateur.prune(Blocks(), torch.randn(2, 4))
    assert cut.removed == {"weight.channels": (2, 3)}
    assert (small.blocks, small.weight.shape, small.scale.shape) == (1, (1, 4, 4), (4,))


def test_a_rule_of_ones_own_for_an_unknown_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("secateur_test::squash", mutates_args=())
    def squash(x: Tensor) -> Tensor:
        return x.tanh() * 2

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(squash(self.first(x)))

    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    monkeypatch.setattr(labelling, "RULES", rules.RULES)
    with pytest.raises(UnsupportedError, match="squash is not known"):
        secateur.prune(Own(), torch.randn(2, 4))
    with pytest.raises(InputError, match="is no operator of torch"):
        secateur.rule("secateur_test::squish", "elementwise")
    with pytest.raises(InputError, match="'elementwise' or 'spatial'"):
        secateur.rule("secateur_test::squash", "pointless")
    secateur.rule("secateur_test::squash", "elementwise")
    assert secateur.prune(Own(), torch.randn(2, 4)).cut.removed == {"first.channels": (4, 8)}
    secateur.rule("secateur_test::squash", lambda flow, call: flow.labels(call.args[0]))
    assert secateur.prune(Own(), torch.randn(2, 4)).cut.removed == {"first.channels": (4, 8)}


def test_an_operator_that_is_named_as_one_of_torchs_has_neither_its_rule_nor_gives_it_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @torch.library.custom_op("secateur_test::mean", mutates_args=())
    def mean(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) / 2

    class Own(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.first, self.second, self.own = nn.Conv2d(3, 8, 1), nn.Linear(8, 3), own

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second((mean(x) if self.own else x).mean((2, 3)))

    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    monkeypatch.setattr(labelling, "RULES", rules.RULES)
    with pytest.raises(UnsupportedError, match="secateur_test::mean is not known to the analysis"):
        secateur.prune(Own(True), torch.randn(2, 3, 4, 4))
    secateur.rule("secateur_test::mean", "spatial")
    for own in (True, False):
        assert secateur.prune(Own(own), torch.randn(2, 3, 4, 4)).cut.removed == {"first.channels": (4, 8)}
