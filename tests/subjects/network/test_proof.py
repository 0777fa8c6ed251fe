"""A right cut is proved, a wrong one is found where it is wrong; and zeros that stand for a cut."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.subjects.network import proof
from secateur.subjects.network.coupling import couple
from secateur.subjects.network.proof import compare, compare_redrawn, one_line, reading_dims, same, silence, trains
from secateur.subjects.network.recording import Example, record
from secateur.subjects.network.shrinking import plan, shrink, twin
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Selection
from subjects import nets


def prepare(model: nn.Module, inputs: Any):
    """(model, example, atoms that stay, plan) of a cut of every second unit."""
    example = Example.of(inputs)
    run = record(model.eval(), example)
    coupling = couple(run)
    kept = coupling.keep_atoms({name: np.arange(len(site.classes)) % 2 == 0 for name, site in coupling.sites.items()})
    return model, example, kept, plan(model, coupling, kept, run.flow)


def test_a_right_cut_is_proved_and_a_wrong_one_is_found_where_it_is_wrong() -> None:
    model, example, kept, made = prepare(*nets.make("residual"))
    small = shrink(model, made)
    worst, fault = compare(small, silence(model, kept), example)
    assert fault is None
    assert worst <= 1e-5
    assert trains(small, example) is None
    assert same(model, model, example) == (0.0, None)
    with torch.no_grad():
        small.inner.weight.mul_(1.5)
    worst, fault = compare(small, silence(model, kept), example)
    assert fault is not None
    assert fault.where == "inner"
    assert worst > 1e-5
    assert same(small, model, example)[1] is not None


def test_a_cut_that_cannot_run_is_found_where_it_stops() -> None:
    model, example, kept, made = prepare(*nets.make("joined"))
    small = shrink(model, made)
    small.head.weight = torch.nn.Parameter(torch.zeros(5, 3))
    worst, fault = compare(small, silence(model, kept), example)
    assert worst == float("inf")
    assert fault is not None
    assert fault.where == "head"
    assert "RuntimeError" in fault.what
    assert trains(small, example) == fault
    assert same(small, model, example) == (worst, fault)
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"


def test_zero_last_weights_prove_nothing_so_the_inside_is_looked_at() -> None:
    model, example, kept, made = prepare(*nets.make("mlp"))
    small = shrink(model, made)
    with torch.no_grad():
        for one in (model, small):
            one[4].weight.zero_()
        small[0].weight.mul_(2)
    worst, fault = compare(small, silence(model, kept), example)
    assert fault is not None
    assert fault.where == "0"
    assert worst >= 1


def test_where_outputs_tell_nothing_the_cut_is_proved_under_weights_drawn_anew() -> None:
    model, inputs = nets.make("mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-6)
        model[4].weight.zero_()
    model, example, kept, made = prepare(model, inputs)
    other = {name: {dim: [*index[1:], index[0]] for dim, index in dims.items()} for name, dims in made.tensors.items()}
    wrong = replace(made, tensors={**made.tensors, "2.weight": other["2.weight"]})
    assert compare(shrink(model, wrong), silence(model, kept), example) == (0.0, None)
    worst, fault = compare_redrawn(model, wrong, kept, example)
    assert fault is not None
    assert worst > 1e-2
    worst, fault = compare_redrawn(model, made, kept, example)
    assert fault is None
    assert worst <= 1e-5


def test_a_rounding_is_told_from_a_difference_in_double_precision() -> None:
    """A network that adds so much that little of its sums is left in single precision."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 64), "norm": nn.LayerNorm(64), "last": nn.Linear(64, 8)}
    rounded = nets.Net(lambda net, x: net.last(net.norm(net.first(x))) + 1000 - 1000, **layers)
    model, example, kept, made = prepare(rounded, torch.randn(10_000, 6))  # few are rounded the other way
    redrawn = twin(model, proof._draw_weights(model), share=True)
    assert compare(shrink(redrawn, made), silence(redrawn, kept), example)[0] > 1e-5, "nothing is rounded"
    worst, fault = compare_redrawn(model, made, kept, example)
    assert fault is None
    assert worst < 1e-10
    wrong = replace(made, scaled=(("last.weight", 0, (0, 1, 2), 1.01),))
    assert compare_redrawn(model, wrong, kept, example)[1] is not None


# ------------------------------------------------------------------------------------------- zeros in place of a cut


def with_zeros(subject: Traced, gone: dict[str, np.ndarray]) -> nn.Module:
    """A copy of the network with what makes the units that are gone set to zero."""
    model = copy.deepcopy(subject.model)
    names = {id(p): name for name, p in subject.model.named_parameters()}
    parameters = dict(model.named_parameters())
    for site, parts in subject.producers().items():
        for parameter, dim, unit in parts:
            places = torch.nonzero((unit >= 0) & torch.from_numpy(gone[site])[unit.clamp(min=0)]).flatten()
            parameters[names[id(parameter)]].data.index_fill_(dim, places, 0.0)
    return model


@pytest.mark.parametrize("name", nets.NETS)
def test_zeros_where_units_are_made_equal_a_cut_and_every_index_belongs_to_one_unit(name: str) -> None:
    model, inputs = nets.make(name)
    subject = open_traced(model, inputs)
    slices = subject.producers()
    gone = {site: np.arange(subject.units()[site].count) % 3 == 1 for site in slices}
    small, _ = subject.cut(Selection({site: ~mask for site, mask in gone.items()}))
    full = with_zeros(subject, gone).eval()
    with torch.no_grad():
        torch.testing.assert_close(nets.outputs(small.model.eval()(inputs)), nets.outputs(full(inputs)))
    counted = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for site, parts in slices.items():
        assert {n for _, _, unit in parts for n in unit.tolist()} - {-1} == set(range(len(gone[site]))), site
        for parameter, dim, unit in parts:
            shape = [-1 if place == dim else 1 for place in range(parameter.dim())]
            counted[id(parameter)] += (unit >= 0).float().view(shape)
    assert all(float(one.max()) <= 1 for one in counted.values())


def test_a_site_takes_every_row_once_and_auxiliary_slices_with_their_offset() -> None:
    model, inputs = nets.make("joined")
    names = {id(p): name for name, p in model.named_parameters()}
    covered = {name: torch.zeros(len(p)) for name, p in model.named_parameters()}
    joint = {}
    for site, parts in open_traced(model, inputs).producers().items():
        for parameter, dim, unit in parts:
            assert dim == 0
            covered[names[id(parameter)]] += (unit >= 0).float()
            if names[id(parameter)] == "bn.weight":
                joint[site] = unit.tolist()
    assert all(bool((row == 1).all()) != name.startswith("head") for name, row in covered.items())
    assert not covered["head.weight"].any(), "what reads channels makes none"
    assert joint == {"a.channels": [*range(6), *[-1] * 10], "b.channels": [*[-1] * 6, *range(10)]}


def test_a_zero_group_gives_exact_zeros_to_all_that_read_it() -> None:
    model, inputs = nets.make("residual")
    subject = open_traced(model, inputs)
    gone = {site: np.arange(subject.units()[site].count) == 2 for site in subject.producers()}
    zeroed = with_zeros(subject, gone)
    seen: dict[str, Tensor] = {}
    for name in ("inner", "outer", "head"):
        layer = zeroed.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0]))
    for mode in (False, True):
        zeroed.train(mode)(inputs)
        for name, given in seen.items():
            assert not given[:, 2].any(), name
            assert given[:, 3].any(), name


def test_heads_and_what_is_not_exact() -> None:
    slices = open_traced(*nets.make("fused attention")).producers()
    assert list(slices) == ["qkv.heads"], "an RMS norm runs over the channels of the stream"
    assert len(set(slices["qkv.heads"][0][2].tolist())) == 4
    assert set(open_traced(*nets.make("normalised")).producers()) == {"wide.channels", "gate.channels"}
    layers = {**nets.linears(4, 6, 8, 2), "norm": nn.BatchNorm1d(6, affine=False)}
    shifted = nets.Net(lambda net, x: net.c(net.b(net.norm(net.a(x))).sigmoid()), **layers)
    subject = open_traced(shifted, torch.randn(3, 4))
    assert set(subject.units()) == {"a.channels", "b.channels"}
    assert not subject.producers(), "0.5 is no zero, and a norm without a scale moves zeros"


def test_what_reads_and_what_makes() -> None:
    layers = {
        "conv": nn.Conv2d(3, 4, 1),
        "deep": nn.Conv2d(4, 8, 1, groups=4),
        "back": nn.ConvTranspose2d(8, 4, 2),
        "linear": nn.Linear(4, 5),
        "table": nn.Embedding(7, 5),
        "norm": nn.BatchNorm2d(4),
    }
    reading = {("conv.weight", 1), ("deep.weight", 1), ("back.weight", 0), ("linear.weight", 1)}
    assert reading_dims(nn.ModuleDict(layers)) == reading
