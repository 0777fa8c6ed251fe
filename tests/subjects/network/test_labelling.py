"""What the recorded pass does with operators that it does not know, and with tensors of one value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.methods.pruning import prune
from secateur.subjects.network.labelling import RECURRENT
from secateur.subjects.network.recording import Example, record
from secateur.subjects.network.traced import open_traced
from subjects import nets


class Mirrored(torch.autograd.Function):
    """Channels change places in code that autograd can't look into."""

    @staticmethod
    def forward(ctx, x):
        return x.flip(1) * 2


class Outside(torch.autograd.Function):
    """A detour through NumPy."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.numpy()[:, ::-1].copy())


@torch.library.custom_op("secateur_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (doubled, "doubled is not known to the analysis, in Net"),
        (lambda x: torch.fft.rfft(x).abs().repeat(1, 2)[:, :8], "is Fourier-transformed"),
        (Outside.apply, "leaves what is recorded"),
        (lambda x: x.sort(-1).values, "sort along the channels"),
        (Mirrored.apply, ""),
    ],
)
def test_an_unknown_operator_keeps_what_enters_it_and_is_named(between, reason: str) -> None:
    torch.manual_seed(0)
    small, cut = prune(nets.chain(between), torch.randn(4, 6))
    width = 8 if reason else 4
    assert (small.a.out_features, small.b.in_features, small.b.out_features) == (width, width, 5)
    found = any(reason in note and note.startswith("stays: a.weight[0]") for note in cut.notes)
    assert found == bool(reason), cut.notes


def test_a_module_that_is_not_known_is_named_with_its_class() -> None:
    class Doubling(nn.Module):
        def forward(self, x):
            return doubled(x)

    net = nn.Sequential(nn.Linear(6, 8), Doubling(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))
    _, cut = prune(net, torch.randn(4, 6))
    assert any(note.endswith("doubled is not known to the analysis, in 1 (Doubling)") for note in cut.notes), cut.notes


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_recurrent_layer_is_left_alone_with_a_reason_and_the_rest_is_cut(name: str) -> None:
    model, inputs = nets.make(name)
    small, cut = prune(model, inputs)
    assert small.middle.hidden_size == model.middle.hidden_size
    assert small.middle.weight_hh_l1_reverse.shape == model.middle.weight_hh_l1_reverse.shape
    assert (small.first.out_features, small.a.in_features, small.b.out_features) == (4, 4, 6)
    assert any(f"{RECURRENT}, in middle" in note and f"({name.upper()})" in note for note in cut.notes), cut.notes
    reasons = open_traced(model, inputs).reasons
    assert all("recurrent" in reasons[f"middle.{leaf}[0]"] for leaf in dict(model.middle.named_parameters()))


def test_zeros_that_the_pass_makes_take_on_labels_and_no_longer_once_a_part_is_written() -> None:
    free = nets.chain(lambda x: x + torch.zeros_like(x)[:, :].relu())
    written = nets.chain(lambda x: x + torch.zeros_like(x).index_fill_(1, torch.tensor([2]), 1.0))
    inputs = torch.randn(4, 6)
    assert "a.channels" in open_traced(free, inputs).coupling.sites
    assert "a.channels" not in open_traced(written, inputs).coupling.sites


def test_what_is_computed_from_parameters_is_used_where_it_meets_the_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.mix, self.odd = (nn.Parameter(torch.rand(*size)) for size in ((8, 6), (6, 10), (8, 10)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            odd = self.odd[:4].cummin(0).values  # is not known
            return x * (self.rows @ self.mix)[:3] + odd[:3]

    run = record(Net().eval(), Example.of(torch.rand(2, 3, 10)))
    reached = {
        (axis.tensor, axis.dim): int(run.reached[axis.start : axis.start + axis.size].sum())
        for axis in run.flow.atoms.axes
    }
    assert reached == {
        ("rows", 0): 3, ("rows", 1): 6, ("mix", 0): 6, ("mix", 1): 10, ("odd", 0): 4, ("odd", 1): 10,
    }  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
def test_parts_of_features_that_nothing_reads_take_no_part_whoever_made_the_inputs(own: bool) -> None:
    """They stayed only where the network made its own inputs, as of noise, for then all came of parameters."""

    class Means(nn.Module):
        """The mean of what an encoder gives; its log-variance is for training."""

        def __init__(self) -> None:
            super().__init__()
            self.encode, self.both, self.decode = nn.Linear(7, 32), nn.Linear(32, 24), nn.Linear(12, 5)
            self.unread = nn.Linear(32, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.encode(torch.randn(x.shape) if own else x).relu()
            mean, _ = self.both(h).chunk(2, -1)
            self.unread(h)
            out: torch.Tensor = self.decode(mean.relu())
            return out

    subject = open_traced(Means(), torch.randn(4, 7))
    assert {name: len(site.classes) for name, site in subject.coupling.sites.items()} == {"encode.channels": 32}
    for unread in ("both", "unread"):
        assert subject.reasons[f"{unread}.weight[0]"] == "takes no part in the forward pass"
    assert "reaches the output" in subject.reasons["decode.weight[0]"]


def test_channels_that_are_only_averaged_are_used() -> None:
    net = nets.chain(lambda x: x.mean(-1, keepdim=True).expand(-1, 8))
    assert record(net.eval(), Example.of(torch.randn(4, 6))).reached[1:].all()


def test_dimensions_of_heads_are_used_where_one_operator_looks_at_them_together() -> None:
    """Queries, keys and values are taken one by one, and the dimensions of a head go on as one."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 72), nn.Linear(24, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            each = self.qkv(x).view(len(x), 3, -1, 6)
            weights = each[:, 0].softmax(-1) * each[:, 1].softmax(-1)
            out: torch.Tensor = self.out((weights.sum(-1, keepdim=True) * each[:, 2]).flatten(1))
            return out

    sites = open_traced(Mixed(), torch.randn(3, 6)).coupling.sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"qkv.channels": 4}
