from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network import segments
from secateur.subjects.network.absent import Absent
from secateur.subjects.network.segments import SITE
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets

X = torch.randn(2, 3, 8, 8)


class Branches(nn.Module):
    """A stem, two steps of two branches each, the second of which branches inside, and a head.

    a1 and b1 meet in a sum, then a2 (a chain) and b2 (a small U with a skip of its own) meet in another.
    """

    def __init__(self) -> None:
        super().__init__()
        conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o))  # noqa: E731
        self.stem = conv(3, 8)
        self.a1, self.b1 = conv(8, 8), conv(8, 8)
        self.a2 = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
        self.down, self.inner, self.up = conv(8, 8), conv(8, 8), conv(16, 8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.a1(x) + self.b1(x)
        y = self.pool(self.down(x).relu())
        y = torch.cat([self.inner(y), y], 1)
        y = self.up(F.interpolate(y, scale_factor=2))
        x = self.a2(x) + y
        return self.head(x.relu().mean((2, 3)))


def made(model: nn.Module, inputs: torch.Tensor = X) -> Traced:
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return Traced(model, segments.Example.of(inputs))


def without(subject: Traced, *names: str) -> Selection:
    found = [one.name for one in subject.graph.removable]
    assert set(names) <= set(found), found
    return Selection({SITE: np.array([name not in names for name in found])})


def test_chains_between_branches_and_joints_and_which_of_them_may_go() -> None:
    found = {one.name: one.reason for one in made(Branches()).graph.segments}
    assert found == {
        "stem.0..stem.1": "goes to several places",
        "a1.0..a1.1": "",
        "b1.0..b1.1": "",
        "down.0..down.1": "goes to several places",
        "inner.0..inner.1": "does not feed a sum (but cat)",
        "up.0..up.1": "",
        "a2.0.0..a2.2.1": "",
        "head": "gives the output",
    }


def test_reasons_of_what_stays() -> None:
    def run(net, x):
        x = x + net.a(x).sigmoid()
        x = net.b(x) - x
        x = x - net.c(x)
        x = x + net.row(x)
        x = x * net.gate(x)
        x = x + net.d(x)
        x = x + net.d(x)
        x = x + net.e(x).tanh()
        return net.out(x)

    layers = {**nets.linears(4, 4, 4, 4, 4, 4), "row": nn.Linear(4, 1), "gate": nn.Linear(4, 4), "out": nn.Linear(4, 2)}
    subject = made(nets.Net(run, **layers), torch.randn(3, 4))
    assert {one.name: one.reason for one in subject.graph.segments} == {
        "a": "gives more than zeros when its weights are zero",
        "b": "something is subtracted from it",
        "c": "",
        "row": "is summed with a tensor of another shape",
        "gate": "does not feed a sum (but mul)",
        "d": "shares all its weights with others",
        "d (2)": "shares all its weights with others",
        "e": "",
        "out": "gives the output",
    }
    small, _ = subject.cut(without(subject, "c", "e"))
    torch.testing.assert_close(small.forward(), subject.silence(without(subject, "c", "e")).forward())


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    "names", [("a1.0..a1.1",), ("a2.0.0..a2.2.1",), ("b1.0..b1.1", "a2.0.0..a2.2.1"), ("up.0..up.1", "a1.0..a1.1")]
)
def test_erased_equals_zeros_and_takes_less(names: tuple[str, ...], tmp_path: Path) -> None:
    model = Branches()
    subject = made(model)
    before = copy.deepcopy(model.state_dict())
    selection = without(subject, *names)
    small, cut = subject.cut(selection)
    torch.testing.assert_close(small.forward(), subject.silence(selection).forward(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small.forward(), subject.forward(), atol=1e-3), "the zeros changed nothing"
    assert cut.removed == {SITE: (len(names), 4)}
    predicted = subject.units(SITE).cost(selection.keep)
    assert cut.after["params"] == sum(p.numel() for p in small.model.parameters()) <= predicted["params"]
    assert small.flops() < subject.flops()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    small.save(tmp_path, program=True)
    again = reload_traced(tmp_path, model, X)
    assert torch.equal(again.forward(), small.forward())
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(X), small.forward())
    other = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(small.forward(other), subject.silence(selection).forward(other), rtol=1e-4, atol=1e-5)
    small.model.train()(other).sum().backward()
    narrow = small.cut(Selection({site.name: np.arange(site.count) % 2 == 0 for site in small.units().free()}))[0]
    assert narrow.flops() < small.flops()


@pytest.mark.parametrize("names", [("up.0..up.1",), ("up.0..up.1", "a1.0..a1.1"), ("b1.0..b1.1",)])
def test_every_vertex_of_an_erased_network_lies_between_input_and_output(names: tuple[str, ...]) -> None:
    subject = made(Branches())
    small, cut = subject.cut(without(subject, *names))
    graph = small.graph
    assert graph.useful | {0} == set(range(len(graph.vertices)))
    if "up.0..up.1" in names:
        note = "erased because only erased parts took their results: down.0..down.1, inner.0..inner.1"
        assert note in cut.notes
        for path in ("down", "inner", "up"):
            assert isinstance(small.model.get_submodule(path), Absent), path
        own = sum(p.numel() for n in names for p in _weights(subject, n))
        assert cut.before["params"] - cut.after["params"] > own


def _weights(subject: Traced, name: str) -> list[torch.Tensor]:
    parameters = dict(subject.model.named_parameters())
    return [parameters[n] for one in subject.graph.removable if one.name == name for n in one.parameters]


def test_a_broken_network_is_known_and_refused() -> None:
    subject = made(Branches())
    both = without(subject, "a1.0..a1.1", "b1.0..b1.1")
    assert subject.erasure(both) is None
    with pytest.raises(InputError, match="no way leads from the input to the output"):
        subject.cut(both)
    assert subject.erasure(without(subject, "a2.0.0..a2.2.1", "up.0..up.1")) is None
    assert subject.erasure(without(subject, "a2.0.0..a2.2.1", "a1.0..a1.1")) is not None
    with pytest.raises(InputError, match="is no segment that can be erased"):
        subject.graph.erase(["stem"])
    with pytest.raises(InputError, match="has shape"):
        subject.cut(Selection({SITE: np.ones(3, bool)}))
    with pytest.raises(InputError, match="segments and more"):
        subject.cut(Selection({SITE: np.ones(4, bool), "stem.0.channels": np.ones(8, bool)}))


def joined(inner) -> nets.Net:
    """Two branches meet, and what they give is itself a branch beside a shortcut."""
    layers = {"skip": nn.Linear(6, 6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "after": nn.Linear(6, 6)}
    return nets.Net(lambda net, x: net.head(net.skip(x) + inner(net, x)), **layers, head=nn.Linear(6, 3))


def test_what_gets_no_input_any_more_goes_too() -> None:
    """Without both branches, the chain after them starves."""
    subject = made(joined(lambda net, x: net.after((net.a(x) + net.b(x)).relu())), torch.randn(4, 6))
    assert [one.name for one in subject.graph.removable] == ["skip", "a", "b", "after"]
    erasure = subject.erasure(without(subject, "a", "b"))
    assert erasure is not None
    assert erasure.removed == ("a", "b", "after"), "its bias must be zero as well"
    small, _ = subject.cut(without(subject, "a", "b"))
    assert [name for name, _ in small.model.named_parameters()] == [
        "skip.weight", "skip.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    after = subject.erasure(without(subject, "after"))
    assert after is not None
    assert (after.removed, after.dead) == (("after",), ("a", "b"))
    assert subject.erasure(without(subject, "skip", "a", "b")) is None


class Spatial(nn.Module):
    """A branch of branches, as in a UNet: its code asks for the shape of what a block gave."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x):
            x = x + self.one(x)
            return x + self.two(x)

    def __init__(self) -> None:
        super().__init__()
        self.into, self.block, self.out = nn.Conv2d(6, 4, 1), self.Block(), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        y = self.block(self.into(x).flatten(2).transpose(1, 2))
        b, _, c = y.shape
        return x + self.out(y.transpose(1, 2).reshape(b, c, *x.shape[2:]))


def test_a_branch_that_holds_branches_goes_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Spatial(), nn.ReLU(), nn.Conv2d(6, 2, 1))
    subject = made(model, X)
    assert [one.name for one in subject.graph.removable] == [
        "1.block.one.0..1.block.one.1", "1.block.two.0..1.block.two.1", "1.out",
    ]  # fmt: skip
    small, cut = subject.cut(without(subject, "1.out"))
    assert {name.partition(".")[0] for name, _ in small.model.named_parameters()} == {"0", "3"}
    torch.testing.assert_close(small.forward(), model[3](model[0](X).relu()))
    assert cut.after["params"] == 4 * 6 + 7 * 2
    small.save(tmp_path)
    torch.testing.assert_close(reload_traced(tmp_path, model, X).forward(), small.forward())


def test_parameters_beside_modules_writes_in_place_and_constants() -> None:
    def run(net, x):
        x = net.first(x).relu_()
        y = F.conv2d(x, net.kernel, padding=1) * net.scale
        y += x
        kept = x
        return net.last((y.relu_() + kept).mean((2, 3)))

    raw = {"kernel": nn.Parameter(torch.randn(6, 6, 3, 3)), "scale": nn.Parameter(torch.rand(6, 1, 1))}
    subject = made(nets.Net(run, first=nn.Conv2d(3, 6, 1), last=nn.Linear(6, 2), **raw))
    assert [one.parameters for one in subject.graph.removable] == [("kernel", "scale")]
    (name,) = (one.name for one in subject.graph.removable)
    small, _ = subject.cut(without(subject, name))
    assert "kernel" not in dict(small.model.named_parameters())
    torch.testing.assert_close(small.forward(), subject.silence(without(subject, name)).forward())
    small.model.train()(X).sum().backward()


def test_protected_segments_stay_and_units_say_what_there_is() -> None:
    model = Branches()
    subject = open_traced(model, X, protect=["a1", "up.0"])
    assert [one.name for one in subject.graph.removable] == ["b1.0..b1.1", "a2.0.0..a2.2.1"]
    assert "is protected by the caller" in {one.reason for one in subject.graph.segments}
    units = made(model).units(SITE)
    assert units.cost()["segments"] == 4
    assert units.cost()["params"] == sum(p.numel() for p in model.parameters())
    with pytest.raises(UnsupportedError, match="segments are cut alone"):
        subject.units(SITE, "channels")
    with pytest.raises(UnsupportedError, match="no segment of this Sequential can be erased: gives the output"):
        open_traced(*nets.make("mlp")).units(SITE)
    small, cut = subject.cut(Selection({SITE: np.ones(2, bool)}))
    assert cut.is_noop
    assert torch.equal(small.forward(), subject.forward())


def test_a_copy_shares_the_graph_and_is_cut_by_its_own_weights() -> None:
    subject = made(Branches())
    subject.graph  # noqa: B018
    other = subject.copy()
    assert other.graph is subject.graph
    with torch.no_grad():
        other.model.head.bias.add_(1.0)
    small, _ = other.cut(without(other, "a1.0..a1.1"))
    assert torch.equal(small.model.head.bias, other.model.head.bias)
    assert not torch.equal(small.model.head.bias, subject.model.head.bias)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_out_of_the_box(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    subject = Traced(models.get_model(name, weights=None), segments.Example.of(torch.rand(1, 3, 64, 64)))
    count = len(subject.graph.removable)
    assert count >= 6
    keep = np.arange(count) % 2 == 0
    erasure = subject.erasure(Selection({SITE: keep}))
    assert erasure is not None
    small, cut = subject.cut(Selection({SITE: keep}))
    assert small.error <= 1e-5
    assert cut.after["params"] < 0.9 * cut.before["params"]
    assert small.flops() < subject.flops()


def test_the_receipt_says_what_was_predicted_and_what_is_left_can_be_cut_again() -> None:
    subject = made(Branches())
    selection = without(subject, "a1.0..a1.1")
    small, receipt = subject.cut(selection)
    predicted = subject.units(SITE).cost(selection.keep)
    for measure in ("segments", "params", "bytes"):
        assert receipt.after[measure] == predicted[measure], measure
    names = [one.name for one in small.graph.removable]
    assert sorted(names) == ["a2.0.0..a2.2.1", "up.0..up.1"], "the other branch is now the only way"
    twice, _ = small.cut(without(small, "up.0..up.1"))
    torch.testing.assert_close(twice.forward(), small.silence(without(small, "up.0..up.1")).forward())
    assert len(twice.plans) == 2


def test_a_starved_part_that_may_not_go_forbids_the_erasure() -> None:
    """Without both branches what follows them would still give its biases: here it may not be erased itself."""

    net = joined(lambda net, x: net.after((net.a(x) + net.b(x)).relu()).sigmoid())
    subject = made(net, torch.randn(4, 6))
    assert [one.name for one in subject.graph.removable] == ["skip", "a", "b"]
    assert subject.erasure(without(subject, "a")) is not None
    assert subject.erasure(without(subject, "a", "b")) is None


def test_silence_is_not_believed_from_first_statistics() -> None:
    """A norm without a scale leaves zero at zero only as long as its running mean is still zero."""

    layers = {"a": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6, affine=False), "head": nn.Linear(6, 2)}
    net = nets.Net(lambda net, x: net.head(x + net.norm(net.a(x))), **layers)
    graph = Traced(net, segments.Example.of(torch.randn(4, 6))).graph
    assert {one.name: one.reason for one in graph.segments}["a"] == "gives more than zeros when its weights are zero"


def fed() -> nets.Net:
    """A branch that alone takes what another chain, and a gate, give it; two branches that share what feeds them."""

    def run(net, x):
        x = net.stem(x).relu()
        x = x + net.one(net.feeds(x) * net.gate(x).sigmoid())
        both = net.shared(x)
        return net.head(x + net.left(both) + net.right(both))

    sizes = {"stem": (6, 8), "head": (8, 3), "one": (5, 8), "feeds": (8, 5), "gate": (8, 5), "shared": (8, 7)}
    sizes |= {"left": (7, 8), "right": (7, 8)}
    return nets.Net(run, **{name: nn.Linear(*size) for name, size in sizes.items()})


@pytest.mark.parametrize("names", [("one",), ("left",), ("left", "right"), ("one", "left", "right")])
def test_a_segment_is_priced_by_what_goes_with_it_and_the_receipt_says_what_went_beside(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    subject = open_traced(fed(), torch.randn(4, 6))
    selection = without(subject, *names)
    small, cut = subject.cut(selection)
    said = subject.units(SITE).cost(selection.keep)
    together = sum(p.numel() for p in fed().shared.parameters()) if {"left", "right"} <= set(names) else 0
    assert cut.after["params"] == sum(p.numel() for p in small.model.parameters()) == said["params"] - together
    assert cut.after["bytes"] == said["bytes"] - 4 * together
    wanted = (
        f"params: {cut.after['params']:.0f} are left, where prices of single segments said at most {said['params']:.0f}"
    )
    assert any(note.startswith(wanted) for note in cut.notes) == bool(together)
    assert cut.after["flops"] == small.flops() < cut.before["flops"]


def test_flops_are_predicted_as_they_are_measured_where_attention_goes_too() -> None:
    subject = open_traced(nets.Blocks(), torch.randn(2, 5, 8))
    names = [one.name for one in subject.graph.removable]
    assert names == ["one.out", "two.out", "left", "right"]
    costs = set()
    for gone in ([0], [1], [2], [0, 1], [1, 3], [0, 1, 2]):
        selection = Selection({"segments": torch.tensor([place not in gone for place in range(4)])})
        _, cut = subject.cut(selection)
        assert segments.flops_without(subject, selection) == cut.after["flops"] < cut.before["flops"]
        costs.add(cut.after["flops"])
    assert len(costs) == 5, "two blocks of a kind cost the same, all else does not"
    whole = Selection({"segments": torch.ones(4)})
    assert segments.flops_without(subject, whole) == subject.flops()
    with pytest.raises(InputError, match="no way leads from the input to the output"):
        segments.flops_without(subject, Selection({"segments": torch.tensor([True, True, False, False])}))
