"""Gates: binary, open at the start, exactly zero where off, with a gradient; losses that are zero when all agree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import processes
from secateur.errors import InputError, UnsupportedError
from secateur.recover.sparsity import gates
from secateur.vocabulary import Site, Term, Units


class Net(nn.Module):
    """A branch on a sum, and inner channels."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x + self.outer(self.norm(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))


def made(kind, **how):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 4, 6, 6)
    acts = {"outer": None} if kind == "layer" else {"outer": torch.arange(6)}
    place = gates.Place("inner", 4, 1 if kind == "layer" else 6, acts)
    return net, x, gates.Gates({"it": place}, **how)


def test_decisions_are_binary_and_the_gradient_is_the_slope_of_the_bounded_activation():
    pre = torch.tensor([-2.0, -0.1, 0.0, 0.2, 0.5, 0.6, 0.999, 1.0, 3.0], requires_grad=True)
    decided = gates.binarise(pre)
    assert decided.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    decided.sum().backward()
    assert pre.grad.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    leaky = pre.detach().clone().requires_grad_()
    (gates.binarise(leaky, 0.01) * torch.arange(9.0)).sum().backward()
    expected = torch.arange(9.0) * torch.tensor([0.01] * 3 + [1.0] * 4 + [0.01] * 2)
    assert torch.allclose(leaky.grad, expected)


def test_pooling_is_a_mean_over_places_and_over_real_tokens():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.allclose(gates.pool(maps), maps.mean((2, 3)))
    tokens, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.allclose(gates.pool(tokens, 2), tokens.mean(1))
    pooled = gates.pool(tokens, 2, mask)
    assert torch.allclose(pooled[0], tokens[0, :2].mean(0))
    assert torch.allclose(pooled[1], tokens[1].mean(0), atol=1e-6)
    row = torch.randn(2, 3)
    assert torch.equal(gates.pool(row, 1), row)


def test_a_gate_starts_open_and_says_what_it_was_given():
    torch.manual_seed(0)
    gate = gates.Gate(4, 7)
    assert bool((gate(torch.zeros(3, 4, 2, 2)) == 1).all())
    assert gate.flops() == 2 * (4 * 16 + 16 * 7)
    with pytest.raises(InputError, match="expected 4 channels"):
        gate(torch.zeros(3, 5, 2, 2))


@pytest.mark.parametrize("kind", ["layer", "channel"])
@pytest.mark.parametrize("training", [True, False])
def test_open_gates_change_nothing(kind, training):
    net, x, doors = made(kind)
    net.train(training)
    expected = net(x)
    for fixed in ({}, None):
        doors.fixed = fixed
        with doors.on(net):
            assert torch.equal(net(x), expected)
            assert doors.values["it"].shape == (5, doors.places["it"].units)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_closed_branch_gives_its_shortcut_and_a_closed_channel_what_its_reader_gives_without_it():
    net, x, doors = made("layer")
    net.eval()
    doors.fixed = {"it": torch.zeros(1)}
    with doors.on(net):
        assert torch.equal(net(x), net.head(x.mean((2, 3))))
    net, x, doors = made("channel")
    net.eval()
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    doors.fixed = {"it": mask}
    with doors.on(net):
        given = net(x)
    with torch.no_grad():
        net.outer.weight[:, mask == 0] = 0
    assert torch.allclose(given, net(x), atol=1e-6)


def test_each_example_has_its_own_mask():
    net, x, doors = made("layer")
    net.eval()
    with torch.no_grad():
        doors.each[0].decide.weight.zero_()
        doors.each[0].decide.bias.zero_()
        doors.each[0].decide.weight[0, 0] = 100.0
        doors.each[0].look.weight.zero_()
        doors.each[0].look.bias.zero_()
        doors.each[0].look.weight[0, 0] = 1.0  # on where the mean of channel 0 is above 1/200
    with doors.on(net):
        given, on = net(x), doors.values["it"][:, 0] > 0
    assert 0 < int(on.sum()) < 5, "the example must hold both"
    assert torch.equal(on, x.mean((2, 3))[:, 0] > 0.005)
    assert torch.allclose(given[on], net(x)[on], atol=1e-6)
    assert torch.allclose(given[~on], net.head(x.mean((2, 3)))[~on], atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_the_gradient_of_the_task_reaches_the_gates(kind):
    net, x, doors = made(kind, bias=0.7)
    with doors.on(net):
        net(x).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in doors.parameters())


def test_modules_that_return_tuples_and_take_keywords_can_be_gated():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(3, 3)

        def forward(self, hidden):
            return self.inside(hidden), None

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return x + self.pair(hidden=x)[0]

    net, x = Whole(), torch.randn(2, 4, 3)
    doors = gates.Gates({"a": gates.Place("pair", 3, 1, {"pair": None}, dim=2)})
    doors.fixed = {"a": torch.tensor([0])}
    with doors.on(net):
        assert torch.equal(net(x), x)
    with (
        pytest.raises(InputError, match="no module 'pear'"),
        gates.Gates({"a": gates.Place("pear", 3, 1, {"pair": None})}).on(net),
    ):
        pass
    with pytest.raises(InputError, match="no place"):
        gates.Gates({})


def test_polarization_is_zero_for_unanimity_a_quarter_at_half_and_blind_to_which_side():
    on, off, half = torch.ones(3), torch.zeros(2), torch.full((4,), 0.5)
    assert float(gates.polarization([on, off])) == 0
    assert float(gates.polarization([half])) == 0.25
    some = [torch.rand(5), torch.rand(3)]
    assert float(gates.polarization(some)) == pytest.approx(float(gates.polarization([1 - one for one in some])))
    assert float(gates.polarization(some)) == pytest.approx(float((torch.cat(some) * (1 - torch.cat(some))).mean()))


def units():
    sites = {
        "a": Site("a", 3, {"flops": np.array([1.0, 2.0, 4.0]), "channels": np.ones(3)}),
        "b": Site("b", 2, {"channels": np.ones(2)}),
    }
    return Units(sites, (Term("flops", 10.0, ("a", "b")), Term("flops", 3.0, ("b",))), {"flops": 5.0})


@pytest.mark.parametrize("a", [(1, 1, 1), (0, 0, 0), (1, 0, 1)])
@pytest.mark.parametrize("b", [(1, 1), (0, 1), None])
@pytest.mark.parametrize("measure", ["flops", "channels"])
def test_the_cost_of_binary_means_is_the_cost_of_the_units(a, b, measure):
    masks = {"a": np.array(a, bool)} | ({} if b is None else {"b": np.array(b, bool)})
    means = {name: torch.tensor(mask).float() for name, mask in masks.items()}
    assert float(gates.cost(units(), means, measure)) == pytest.approx(units().cost(masks)[measure])


def owned_units():
    """Two layers with heads in groups, neurons, and terms with every kind of condition."""
    every = np.arange(2)
    sites = {"layers": Site("layers", 2), "ffn": Site("ffn", 2, owner=("layers", every))}
    terms = [Term("params", 7.0, units=(("layers", 1),))]
    for layer in range(2):
        groups, heads, neurons = (f"layers.{layer}.{kind}" for kind in ("kv_groups", "heads", "neurons"))
        sites[groups] = Site(groups, 2, {"params": np.array([1.0, 2.0])}, owner=("layers", np.full(2, layer)))
        sites[heads] = Site(heads, 4, owner=(groups, np.repeat(np.arange(2), 2)))
        sites[neurons] = Site(neurons, 3, owner=("ffn", np.full(3, layer)))
        with_layer = (("layers", layer),)
        terms += [
            Term("params", 5.0, (heads, neurons), units=with_layer),
            Term("params", 2.0, (neurons,), (heads,), with_layer),
            Term("params", 3.0, (heads,), per=(neurons,)),
        ]
    return Units(sites, tuple(terms), {"params": 1.0})


@pytest.mark.parametrize("seed", range(12))
def test_the_cost_with_owners_and_conditions_is_that_of_the_units(seed):
    draw = np.random.default_rng(seed)
    found = owned_units()
    masks = {name: draw.random(site.count) < 0.6 for name, site in found.sites.items() if draw.random() < 0.8}
    masks.setdefault("layers", np.array([True, False]))
    means = {name: torch.tensor(mask).float() for name, mask in masks.items()}
    assert float(gates.cost(found, means, "params")) == pytest.approx(found.cost(masks)["params"])


def test_a_layer_that_may_go_counts_once_for_all_that_it_owns():
    """With probability p that it stays, the layer's product of heads and neurons costs p times as much, not p^2."""
    found = owned_units()
    share = torch.tensor([1.0, 0.5], requires_grad=True)
    half = gates.cost(found, {"layers": share}, "params")
    whole, without = found.cost()["params"], found.cost({"layers": np.array([True, False])})["params"]
    assert float(half.detach()) == pytest.approx((whole + without) / 2)
    half.backward()
    assert float(share.grad[1]) == pytest.approx(whole - without)


def test_the_cost_has_a_gradient_and_names_what_it_can_not_price():
    mean = torch.full((3,), 0.5, requires_grad=True)
    gates.cost(units(), {"a": mean}, "flops").backward()
    assert mean.grad.tolist() == [21.0, 22.0, 24.0]
    with pytest.raises(InputError, match="no cost in latency"):
        gates.cost(units(), {"a": mean}, "latency")
    timed = units().with_table("latency", {"a": np.arange(4.0)}, 1.0)
    with pytest.raises(UnsupportedError, match="table of counts"):
        gates.cost(timed, {"a": mean}, "latency")


def test_the_share_that_is_on_is_charged_by_form():
    assert float(gates.activation(torch.tensor(1.0))) == 1.0
    assert float(gates.activation(torch.tensor(0.0))) == 0.0
    assert float(gates.activation(torch.tensor(0.4), 0.5)) == 0.0
    assert float(gates.activation(torch.tensor(0.7), 0.5)) == pytest.approx(0.2)
    assert float(gates.activation(torch.tensor(0.4), 0.5, "absolute")) == pytest.approx(0.1)
    assert float(gates.activation(torch.tensor(0.4), 0.5, "absolute", 0.15)) == 0.0
    with pytest.raises(InputError, match="band, hinge, absolute"):
        gates.activation(torch.tensor(0.4), 0.5, "square")


def test_a_band_charges_below_it_in_the_measure_that_is_nearest_to_its_target():
    def charged(*shares, target=(0.5, 0.8)):
        given = torch.tensor(shares, requires_grad=True)
        value = gates.activation(given, torch.tensor(target[: len(shares)]), "band", 0.1)
        value.backward()
        return round(float(value.detach()), 6), given.grad.tolist()

    assert charged(0.45) == (0.0, [0.0])
    assert charged(0.7) == (0.2, [1.0])
    assert charged(0.3) == (0.1, [-1.0])
    assert charged(0.3, 0.2) == (0.1, [-1.0, 0.0])
    assert charged(0.45, 0.2) == (0.0, [0.0, 0.0])  # more of the second would be too much of the first
    assert charged(0.6, 0.9) == (0.2, [1.0, 1.0])


def test_the_largest_unit_is_the_dearest_where_all_others_stay():
    whole, dearest = units().cost()["flops"], np.array([1, 1, 0], bool)
    without = units().cost({"b": np.array([0, 1], bool)})["flops"]  # 33 of one of b, 24 of the dearest of a
    assert units().cost({"a": dearest})["flops"] > without
    assert gates.largest(units(), "flops") == pytest.approx((whole - without) / (whole - 5.0))
    frozen = replace(units(), sites={n: replace(s, frozen=n == "b") for n, s in units().sites.items()})
    gone = units().cost({"a": np.zeros(3, bool)})["flops"]
    assert gates.largest(frozen, "flops") == pytest.approx(24.0 / (whole - gone))


def consensus(rows: slice) -> list[Tensor]:
    """Mean decisions over all processes, their loss, and its gradient in this one, which sees `rows` of the batch."""
    torch.manual_seed(0)
    gate, x = gates.Gate(4, 3, bias=0.5), torch.randn(8, 4)
    mean = gates.batch_mean(gate(x[rows]))
    loss = gates.once(gates.polarization([mean]))
    loss.backward()
    return [mean.detach(), loss.detach(), gate.decide.weight.grad]


def test_the_mean_over_processes_and_its_gradient_are_those_of_one_big_batch(tmp_path):
    def share() -> None:
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        mean, loss, gradient = consensus(slice(0, 2) if rank == 0 else slice(2, 8))
        for part in (loss, gradient):
            torch.distributed.all_reduce(part)
        torch.save([mean, loss, gradient], tmp_path / str(rank))
        torch.distributed.destroy_process_group()

    processes.both(share)
    whole = consensus(slice(0, 8))
    assert bool(((whole[0] > 0) & (whole[0] < 1)).any()), "some gates must differ over the batch"
    assert whole[1] > 0
    for rank in "01":
        for part, wanted in zip(torch.load(tmp_path / rank, weights_only=True), whole, strict=True):
            torch.testing.assert_close(part, wanted, atol=1e-6, rtol=1e-5)
