from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.subjects.network import invariance
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection
from subjects import nets


def zeroed(model: nn.Module, slices: Any, gone: dict[str, np.ndarray]) -> nn.Module:
    """`model` with what makes the units that are gone set to zero, in place."""
    with torch.no_grad():
        for site, parts in slices.items():
            for parameter, dim, unit in parts:
                for place, number in enumerate(unit.tolist()):
                    if number >= 0 and gone[site][number]:
                        parameter.select(dim, place).zero_()
    return model


@pytest.mark.parametrize("name", nets.NETS)
def test_zeros_where_units_are_made_equal_a_cut_in_a_plain_forward_pass(name: str) -> None:
    model, inputs = nets.make(name)
    subject = open_traced(model, inputs)
    slices = subject.producers()
    gone = {site: np.arange(subject.units()[site].count) % 3 == 1 for site in slices}
    small, _ = subject.cut(Selection({site: ~mask for site, mask in gone.items()}))
    other = copy.deepcopy(model)
    full = zeroed(other, _of(slices, model, other), gone).eval()
    with torch.no_grad():
        torch.testing.assert_close(nets.outputs(small.model.eval()(inputs)), nets.outputs(full(inputs)))


def _of(slices: Any, model: nn.Module, other: nn.Module) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = dict(other.named_parameters())
    return {site: [(found[names[id(p)]], dim, unit) for p, dim, unit in parts] for site, parts in slices.items()}


@pytest.mark.parametrize("name", nets.NETS)
def test_groups_are_a_partition_of_what_they_touch(name: str) -> None:
    """Disjoint, each unit of a site there, and every index of what makes channels belongs to one group at most."""
    model, inputs = nets.make(name)
    subject = open_traced(model, inputs)
    counted = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for site, parts in subject.producers().items():
        count = subject.units()[site].count
        assert {n for _, _, unit in parts for n in unit.tolist()} - {-1} == set(range(count)), site
        for parameter, dim, unit in parts:
            shape = [1] * parameter.dim()
            shape[dim] = -1
            counted[id(parameter)] += (unit >= 0).float().view(shape)
    assert all(float(one.max()) <= 1 for one in counted.values())


def test_a_site_takes_every_row_once_and_auxiliary_slices_with_their_offset() -> None:
    model, inputs = nets.make("joined")
    subject = open_traced(model, inputs)
    slices = subject.producers()
    covered = {name: torch.zeros(len(p)) for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parts in slices.values():
        for parameter, dim, unit in parts:
            assert dim == 0
            covered[names[id(parameter)]] += (unit >= 0).float()
    for name in ("a.weight", "a.bias", "b.weight", "b.bias", "bn.weight", "bn.bias"):
        assert bool((covered[name] == 1).all()), name
    assert not covered["head.weight"].any(), "what reads channels makes none"
    joint = {site: unit for site, parts in slices.items() for p, _, unit in parts if names[id(p)] == "bn.weight"}
    assert joint["a.channels"].tolist() == [*range(6), *[-1] * 10]
    assert joint["b.channels"].tolist() == [*[-1] * 6, *range(10)]


def test_a_zero_group_gives_exact_zeros_to_all_that_read_it() -> None:
    model, inputs = nets.make("residual")
    subject = open_traced(model, inputs)
    slices = subject.producers()
    gone = {site: np.arange(subject.units()[site].count) == 2 for site in slices}
    zeroed(model, slices, gone)
    seen: dict[str, Tensor] = {}
    for name in ("inner", "outer", "head"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.__setitem__(name, given[0])
        )
    for mode in (False, True):
        model.train(mode)(inputs)
        for name in ("inner", "outer", "head"):
            assert not seen[name][:, 2].any(), name
            assert seen[name][:, 3].any(), name


def test_heads_and_what_is_not_exact() -> None:
    model, inputs = nets.make("fused attention")
    subject = open_traced(model, inputs)
    slices = subject.producers()
    assert list(slices) == ["qkv.heads"], "an RMS norm runs over the channels of the stream"
    assert len(set(slices["qkv.heads"][0][2].tolist())) == 4
    model, inputs = nets.make("normalised")
    assert set(open_traced(model, inputs).producers()) == {"wide.channels", "gate.channels"}

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)
            self.norm = nn.BatchNorm1d(6, affine=False)

        def forward(self, x):
            return self.c(self.b(self.norm(self.a(x))).sigmoid())

    subject = open_traced(Shifted(), torch.randn(3, 4))
    assert set(subject.units()) == {"a.channels", "b.channels"}
    assert not subject.producers(), "0.5 is no zero, and a norm without a scale moves zeros"


def test_what_reads_and_what_makes() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 1),
            "deep": nn.Conv2d(4, 8, 1, groups=4),
            "back": nn.ConvTranspose2d(8, 4, 2),
            "linear": nn.Linear(4, 5),
            "table": nn.Embedding(7, 5),
            "norm": nn.BatchNorm2d(4),
        }
    )
    assert invariance.reads(model) == {("conv.weight", 1), ("deep.weight", 1), ("back.weight", 0), ("linear.weight", 1)}
