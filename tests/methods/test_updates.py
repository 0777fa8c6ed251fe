"""Which entries of an update go: exact counts, stable ties, complements, one threshold over all tensors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

import updates_toy as toy
from secateur.errors import InputError, NumericalError
from secateur.methods import updates
from secateur.methods.updates import Rule
from secateur.subjects.delta.delta import SITE, Delta
from secateur.subjects.delta.tensors import InMemory

SHARES = (0.001, 0.07, 0.08, 0.29, 0.5, 1.0)


def masks(delta, rule):
    selection = updates.select(delta, rule)
    found = {name: np.asarray(selection.keep[f"{name}.{SITE}"]) for name in delta.sites}
    assert sum(mask.sum() for mask in found.values()) == selection.spent["update"]
    return found


def expected(delta, rule):
    """What a stable sort says of the first entries."""
    together = [delta.update(name) for name in delta.sites]
    parts = together if rule.scope == "tensor" else [torch.cat(together)]
    first = []
    for part in parts:
        count = Fraction(str(rule.share)) * len(part)
        order = part.abs().argsort(descending=rule.order == "largest", stable=True)
        mask = torch.zeros(len(part), dtype=torch.bool)
        mask[order[: count.numerator // count.denominator]] = True
        first.append(mask)
    whole = torch.cat(first)
    return (whole if rule.action == "keep" else ~whole).numpy()


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_the_first_floor_of_k_n_go_or_stay_as_a_stable_sort_has_them(order, scope, monkeypatch):
    delta = toy.delta()
    if order == "smallest":  # as if tensors were too large to be sorted
        monkeypatch.setattr(updates, "_AT_ONCE", 0)
        monkeypatch.setattr(updates, "_CHUNK", 1000)
    for share in SHARES:
        for action in ("drop", "keep"):
            rule = Rule(share, action, order, scope)
            assert (np.concatenate(list(masks(delta, rule).values())) == expected(delta, rule)).all()


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("order", ["largest", "smallest", "random"])
def test_what_is_dropped_and_what_is_kept_are_complements(order, scope):
    delta = toy.delta()
    for share in SHARES:
        dropped, kept = (masks(delta, Rule(share, action, order, scope)) for action in ("drop", "keep"))
        assert all((dropped[name] == ~kept[name]).all() for name in delta.sites)


def test_no_share_changes_nothing_and_all_of_it_undoes_training():
    delta, (before, after) = toy.delta(), toy.states()
    for scope in ("tensor", "global"):
        for share, wanted in ((0, after), (1, before)):
            small, _ = delta.cut(updates.select(delta, Rule(share, scope=scope)))
            assert all(torch.equal(small.tensor(name), wanted[name]) for name in wanted)


def test_counts_are_of_the_decimal_that_was_written():
    assert [Rule(0.08).count(100), Rule(1 - Fraction("0.92")).count(100), Rule(0.29).count(100)] == [8, 8, 29]
    with pytest.raises(InputError, match=r"share=1.5: give a share of the entries, from 0 to 1"):
        Rule(1.5)


def test_random_entries_follow_the_seed_and_the_name_alone():
    delta = toy.delta()
    one, again, other = (masks(delta, Rule(0.3, order="random", seed=seed)) for seed in (1, 1, 2))
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_a_sign_is_ranked_first():
    delta = toy.delta()
    name = max(delta.sites, key=lambda each: delta.sites[each])
    mask = masks(delta, Rule(0.1, sign="negative"))[name]
    assert (delta.update(name).numpy()[~mask] < 0).all()


def test_masks_of_updates_in_memory_are_those_of_the_same_update_read_by_tensor():
    delta = toy.delta()
    for scope in ("tensor", "global"):
        rule = Rule(0.08, scope=scope)
        held = updates.masks({name: delta.update(name).view(-1, 1) for name in delta.sites}, rule)
        assert all((held[name].flatten().numpy() == mask).all() for name, mask in masks(delta, rule).items())


def test_scaling_gives_an_update_of_the_same_length():
    delta = toy.delta()
    small, _ = delta.cut(updates.select(delta, Rule(0.08)))
    scaled = Delta(InMemory(toy.states()[0]), InMemory(updates.scale_to(delta, small)))
    assert scaled.norm() == pytest.approx(small.norm(), rel=1e-3)
    assert scaled.sites.keys() == delta.sites.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("order", ["largest", "smallest", "random"])
def test_an_update_that_is_not_finite_is_refused_in_every_order(order, scope, value):
    before, after = ({"w": torch.tensor(values)} for values in ([0.0, 1.0], [0.0, value]))
    with pytest.raises(NumericalError, match="the update of w holds NaN or infinity"):
        updates.select(Delta(InMemory(before), InMemory(after)), Rule(0.5, order=order, scope=scope))


@pytest.mark.parametrize(("size", "near"), [(1e-3, 0.002), (2e-4, 0.01)])
def test_scaling_in_a_narrow_number_type_corrects_what_rounding_makes_of_the_length(size, near):
    draw = torch.Generator().manual_seed(0)
    before = {"w": (torch.randn(400, 100, generator=draw) * 0.02).bfloat16()}
    after = {"w": (before["w"].float() + size * torch.randn(400, 100, generator=draw)).bfloat16()}
    delta = Delta(InMemory(before), InMemory(after))
    small, _ = delta.cut(updates.select(delta, Rule(0.5)))
    length = updates.measure_length(InMemory(before), updates.scale_to(delta, small))
    assert length == pytest.approx(small.norm(), rel=near)
    assert updates.measure_length(InMemory(before), after) == pytest.approx(delta.norm())
