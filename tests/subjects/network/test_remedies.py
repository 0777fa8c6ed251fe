"""Code that computes one width from another: what is bound, what stays whole, and what stays."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import ModelError
from secateur.methods.pruning import prune
from secateur.subjects.network.proof import Fault
from secateur.subjects.network.remedies import Constraints, find_remedy, keep_site, trial_selection
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets


def test_what_cannot_be_proved_stays_and_the_rest_goes() -> None:
    """4 channels per head, whatever comes in: a number that the analysis can't see."""
    torch.manual_seed(0)
    small, cut = prune(nets.chain(lambda x: x.view(x.shape[0], 2, 4).flatten(1)), torch.randn(4, 6))
    assert small.a.out_features == 8
    assert small.b.out_features == 5
    assert any("a cut of it fails" in note for note in cut.notes)


def test_a_number_that_is_as_large_as_the_inputs_are_long_is_told_by_what_lies_inside() -> None:
    torch.manual_seed(0)

    def run(net, x):
        first, second = net.a(x).split([net.value_dim, net.value_dim], -1)
        heads = (first * second).reshape(*x.shape[:2], -1, 4).softmax(-1)
        return net.b(heads.flatten(2))

    inner = nets.Net(run, a=nn.Linear(6, 16), b=nn.Linear(8, 3), value_dim=8)
    small, cut = prune(nn.Sequential(nn.Linear(6, 6), inner), torch.randn(2, 8, 6))
    assert (small[1].a.out_features, small[1].b.in_features, small[1].value_dim) == (8, 4, 4)
    assert not any("a cut of it fails" in note for note in cut.notes)


def literal(fused: bool) -> nets.Net:
    """Its code names the number of heads, so that none can go; each has as many dimensions."""

    def run(net, x):
        b, n, _ = x.shape
        q, k, v = (one.reshape(b, n, 4, -1).transpose(1, 2) for one in net.qkv(x).chunk(3, -1))
        if fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * net.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return net.out(y.transpose(1, 2).reshape(b, n, -1))

    return nets.Net(run, qkv=nn.Linear(6, 48), out=nn.Linear(16, 3), num_heads=4, scale=4**-0.5)


@pytest.mark.parametrize("fused", [True, False])
def test_where_heads_stay_the_same_dimensions_of_each_go(fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = literal(fused).eval(), torch.randn(2, 5, 6)
    subject = open_traced(model, x)
    (site,) = subject.coupling.sites.values()
    assert (len(site.classes), site.width, site.name) == (4, 12, "qkv.channels")
    small, cut = subject.cut(Selection({site.name: np.array([True, False, False, False])}))
    assert small.model.qkv.weight.shape == (12, 6)
    assert (small.model.num_heads, small.model.scale) == (4, 1.0 if fused else 0.5)
    assert cut.after["params"] == 7 * 12 + 15
    rows = np.arange(48) % 4 == 0
    expected = model.qkv.weight[rows].clone()
    expected[:4] *= 0.5 if fused else 1.0
    torch.testing.assert_close(small.model.qkv.weight, expected, msg="only queries make up for the scale")
    copied = subject.copy()
    assert copied.cut(nets.half(copied))[0].error <= 1e-5
    small.save(tmp_path)
    torch.testing.assert_close(reload_traced(tmp_path, model, x).forward(), small.forward())


def test_a_fault_constrains_the_sites_near_it_and_one_without_a_place_half_of_all() -> None:
    subject = open_traced(*nets.make("residual"))
    trial = trial_selection(subject, 0.0)
    shares = {name: np.asarray(mask).mean() for name, mask in trial.keep.items()}
    assert len(set(shares.values())) == len(shares), "no two sites lose the same share"
    assert find_remedy(subject, Fault("outer", "differs"), trial_selection(subject, None)) == ["inner.channels"]
    assert subject.reasons["outer.weight[1]"] == "a cut of it fails: differs (in outer)"
    assert find_remedy(subject, Fault("", "differs"), trial_selection(subject, None)) == ["stem.channels"]
    with pytest.raises(ModelError, match="can't be proved: differs"):
        find_remedy(subject, Fault("", "differs"), trial_selection(subject, None))


@pytest.mark.parametrize("turn", [None, 0.0, 0.5])
def test_a_trial_keeps_whole_steps_of_a_site_that_is_cut_in_steps(turn: float | None) -> None:
    subject = open_traced(*nets.make("residual"), prove=False)
    plain = trial_selection(subject, turn).keep
    name, site = "inner.channels", subject.coupling.sites["inner.channels"]
    rounded = dict[int, np.ndarray]()
    for step in (2, 5, 8, 100):
        stepped = {**subject.coupling.sites, name: replace(site, step=step)}
        subject.coupling = replace(subject.coupling, sites=stepped)
        keep = trial_selection(subject, turn).keep
        rounded[step] = np.asarray(keep.pop(name))
        assert all(np.array_equal(mask, plain[other]) for other, mask in keep.items()), "others are cut as before"
    count, wanted = len(site.classes), int(np.asarray(plain[name]).sum())
    assert count == 16
    assert {step: int(mask.sum()) for step, mask in rounded.items()} == {
        step: min(count, max(step, wanted // step * step)) for step in rounded
    }
    assert not (rounded[2] & ~np.asarray(plain[name])).any() or wanted < 2, "what a trial would cut goes first"


def test_constraints_are_copied_with_what_they_hold() -> None:
    subject = open_traced(*nets.make("mlp"))
    keep_site(subject, "0.channels", "asked")
    other = subject.constraints.copy()
    assert other == subject.constraints != Constraints()
    other.atoms.clear()
    other.parameters["x"] = "asked"
    assert subject.constraints.atoms
    assert not subject.constraints.parameters


def test_sites_that_can_be_cut_alone_go_where_the_remedies_left_none() -> None:
    """What touches least stayed first, and so all the innocent before the guilty one."""

    class Mixture(nn.Module):
        """Its experts write into zeros of a width that the code says."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 12)) for _ in range(2)
            )
            self.head = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, rows = torch.zeros(len(x), 12), torch.arange(len(x))
            for expert in self.experts:
                out.index_add_(0, rows, expert(x))
            result: torch.Tensor = self.head(out)
            return result

    wanted = {"experts.0.0.channels": (8, 16), "experts.1.0.channels": (8, 16)}
    inputs = torch.randn(8, 7)
    assert prune(Mixture(), inputs).cut.removed == wanted
    subject = open_traced(Mixture(), inputs)
    assert set(subject.coupling.sites) == set(wanted)
    assert any("a cut of it fails" in reason for reason in subject.reasons.values())


class Picky(nn.Module):
    """One width is fixed by the code; others are refused once the network was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = set[int]()
        self.a, self.b, self.e, self.c, self.d = (
            nn.Linear(*pair) for pair in ((6, 8), (8, 16), (16, 10), (10, 12), (12, 3))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.e(self.b(self.a(x).view(len(x), 2, 4).flatten(1)).relu()).relu()
        if h.shape[1] in self.refused:
            raise RuntimeError("no such width")
        result: torch.Tensor = self.d(self.c(h).relu())
        return result


@pytest.fixture
def picky() -> Traced:
    torch.manual_seed(0)
    subject = open_traced(Picky().eval(), torch.randn(4, 6))
    assert "a cut of it fails" in subject.reasons["a.weight[0]"]
    assert {"e.channels", "c.channels"} <= set(subject.coupling.sites)
    return subject


def sites_after_faults(subject: Traced) -> set[str]:
    """Names of sites that were ever there while more widths are refused, until nothing explains a fault."""
    seen = set[str]()
    with suppress(ModelError):
        subject.model.refused.update(range(2, 10))
        for _ in range(8):
            subject.without(Fault("e", "no such width"), trial_selection(subject, None))
            seen |= set(subject.coupling.sites)
    return seen


def test_what_is_protected_later_stays_where_innocent_sites_are_freed(picky: Traced) -> None:
    subject = picky.copy()
    subject.protect("d")
    assert "c.channels" not in sites_after_faults(subject)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_protected_in_a_copy_or_beside_one_is_free_in_the_other(picky: Traced, first: bool) -> None:
    other = picky.copy()
    (picky if first else other).protect("d")
    free = other if first else picky
    assert sites_after_faults(free)
    assert "is protected by the caller" not in free.reasons.values()
