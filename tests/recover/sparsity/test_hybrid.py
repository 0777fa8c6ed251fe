"""Hybrid sparsification modules: nothing changes at first, and what they do is in plain weights afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.errors import InputError
from secateur.recover.sparsity import hybrid
from secateur.recover.sparsity.hybrid import Hybrid, Operator
from secateur.recover.sparsity.unified_mask import UnifiedMask

D = 12


class Stream(nn.Module):
    """A table and two linears, one of them stored the other way round, that add into D channels with a norm between."""

    def __init__(self, norm):
        super().__init__()
        self.table, self.up, self.out = nn.Embedding(9, D, padding_idx=0), Conv1D(20, D), nn.Linear(20, D)
        self.norm, self.other = norm, Conv1D(D, D)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.table.weight.data[0] = 0

    def forward(self, tokens):
        states = self.table(tokens)
        states = states + self.out(self.up(self.norm(states)).relu())
        return states + self.other(self.norm(states))


def make(norm=None, *, variant="paper", shake=True, **how):
    torch.manual_seed(0)
    net = Stream(norm or nn.RMSNorm(D))
    modules = Hybrid(["table", "out", "other"], UnifiedMask(D, 7, settled=10, steps=30), rank=3, variant=variant, **how)
    if shake:
        with torch.no_grad():
            modules.mask.proxy.normal_()
            for operator in modules.operators:
                operator.L1.normal_(std=0.3)
                operator.scale.uniform_(0.5, 1.5)
    return net, modules, torch.arange(9)[None]


def centred(**how):
    return make(nn.LayerNorm(D), centred=True, norms=["norm"], **how)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_first_step_changes_nothing_and_nothing_is_left_behind(variant):
    net, modules, tokens = make(variant=variant, shake=False)
    expected = net(tokens)
    with modules.on(net):
        modules.set_step(0)
        assert torch.equal(net(tokens), expected)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_mean_that_norms_subtract_is_left_out_of_what_is_written():
    net, modules, tokens = centred(shake=False)
    expected = nn.functional.layer_norm(net(tokens), (D,))
    with modules.on(net):
        modules.set_step(0)
        states = net(tokens)
    assert states.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(nn.functional.layer_norm(states, (D,)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [make, centred])
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_folded_weights_say_what_the_modules_said_with_zeros_where_channels_go(build, variant):
    net, modules, tokens = build(variant=variant)
    plain = copy.deepcopy(net)
    with modules.on(net):
        modules.harden()
        expected = net(tokens)
    modules.fold(net)
    torch.testing.assert_close(net(tokens), expected, rtol=1e-4, atol=1e-4)
    gone = ~modules.mask.keep()
    assert int(gone.sum()) == D - 7
    assert not net(tokens)[..., gone].any()
    assert net.norm(net.table(tokens))[..., gone].abs().max() < 1e-6, "zero channels stay zero through the norm"
    assert not net.table.weight[0].any(), "padding is padding"
    assert (net(tokens) - plain(tokens)).abs().max() > 0.1


def test_the_operator_is_the_identity_plus_low_rank_with_its_scale_inside_or_behind():
    states, mask = torch.randn(4, D, dtype=torch.float64), torch.rand(D)
    for variant in ("paper", "code"):
        torch.manual_seed(0)
        operator = Operator(D, 3, variant=variant)
        nn.init.normal_(operator.L1)
        nn.init.uniform_(operator.scale)
        low, high, scale = (one.detach().double() for one in (operator.L0, operator.L1, operator.scale))
        inner = torch.diag(scale) if variant == "paper" else torch.eye(3, dtype=torch.float64)
        matrix = torch.diag(mask.double()) @ (high @ inner @ low + torch.eye(D, dtype=torch.float64))
        matrix = matrix if variant == "paper" else torch.diag(scale) @ matrix
        torch.testing.assert_close(operator(states, mask), states @ matrix.T)
        assert operator(states.bfloat16(), mask).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                operator(states.float(), mask), (states @ matrix.T).float(), rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(hybrid.orthogonality(operator.L0), _square(low).float(), rtol=1e-5, atol=1e-5)


def _square(rows):
    return (rows @ rows.T - torch.eye(len(rows))).square().sum()


def test_the_identity_loss_makes_rows_orthonormal():
    _, modules, _ = make(shake=False)
    before = float(modules.orthogonality().detach())
    adam = torch.optim.Adam(modules.parameters(), lr=1e-2)
    for _ in range(200):
        adam.zero_grad()
        modules.orthogonality().backward()
        adam.step()
    assert float(modules.orthogonality().detach()) < 0.05 * before
    rows = torch.linalg.qr(torch.randn(D, 3))[0].T
    assert float(hybrid.orthogonality(rows)) < 1e-5
    for distance, value in {"square": 27, "norm": 27**0.5, "mean": 3}.items():
        assert float(hybrid.orthogonality(2 * rows, distance)) == pytest.approx(value, rel=1e-4)
    near = (1.0001 * rows).requires_grad_()
    slopes = [
        torch.autograd.grad(hybrid.orthogonality(near, distance), near)[0].norm() for distance in ("square", "norm")
    ]
    assert slopes[0] < 0.01 < 1 < slopes[1], "the square's gradient fades beside the optimum"
    grown = modules.orthogonality()
    for operator in modules.operators:
        operator.L0.data *= 2
    assert float((modules.orthogonality() - grown).detach()) > 3 * 3, "all places count"


def test_every_place_and_the_mask_learn_also_where_blocks_run_again():
    net, modules, tokens = make()
    with modules.on(net):
        modules.set_step(3)
        torch.utils.checkpoint.checkpoint(net, tokens, use_reentrant=False).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in modules.parameters())


def test_the_seed_decides_and_the_callers_randomness_is_left_alone():
    torch.manual_seed(7)
    first = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = (make(seed=seed)[1].operators[0].L0 for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(7)
    Hybrid(["a"], UnifiedMask(D, 7, settled=10, steps=30), rank=3)
    assert torch.equal(torch.rand(1), first)


def test_what_cannot_be_is_refused():
    net, modules, _ = make()
    modules.writers[1] = "nowhere"
    with pytest.raises(InputError, match="no module 'nowhere'"), modules.on(net):
        pass
    with pytest.raises(InputError, match="rank 13 on 12 channels"):
        Operator(D, 13)
    with pytest.raises(InputError, match="nothing writes into a residual stream"):
        Hybrid([], modules.mask, rank=1)
