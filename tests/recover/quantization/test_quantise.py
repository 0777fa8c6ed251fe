"""Zeros stay zeros, what was trained is what is quantised, and what is quantised already is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from secateur.errors import InputError, MissingExtraError
from secateur.recover.quantization import quantise
from secateur.recover.sparsity import masks
from secateur.select.pattern import n_of_m

pytest.importorskip("torchao", reason="the extra `quantise`")


class Net(nn.Module):
    """Two linears of a multiple of 32 inputs, one of 20, and an output embedding."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 20), nn.GELU(), nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 8, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, x):
        return self.head(self.body(x))


def net(seed=0):
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        for module in made.body:
            if isinstance(module, nn.Linear):
                module.weight.mul_(n_of_m(module.weight.abs(), 2, 4))
    return made


@pytest.mark.parametrize("bits", quantise.BITS)
def test_zeros_stay_zeros_and_values_are_on_the_grid(bits):
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen, left = quantise.weight_only(model, bits)
    assert chosen == (["body.0", "body.2", "body.4"] if bits == 8 else ["body.0", "body.4"])
    assert left["head"] == "output embedding"
    for name in chosen:
        weight, old = model.get_submodule(name).weight, before[f"{name}.weight"]
        values = quantise.dense(weight)
        assert torch.count_nonzero(values[old == 0]) == 0
        assert weight.qdata.dtype == torch.int8
        assert weight.qdata.min() >= -(2 ** (bits - 1))
        assert weight.qdata.max() <= 2 ** (bits - 1) - 1
        groups = old.unflatten(1, (1, -1)) if bits == 8 else old.unflatten(1, (-1, quantise.GROUP))
        scale = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
        whole = (groups / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        off = (values - (whole * scale).flatten(1)).abs().view_as(groups) / scale
        assert off.max() < 1.001  # the largest stands half-way between two values
        assert (off > 1e-3).float().mean() < 0.01
    assert torch.equal(quantise.dense(model.head.weight), before["head.weight"])


def test_inputs_that_do_not_fit_in_groups_are_left_and_named():
    assert quantise.linears(net(), 4)[1]["body.2"] == "20 inputs are no multiple of 32"
    assert quantise.linears(net(), 8, within=["body"])[0] == ["body.0", "body.2", "body.4"]
    assert quantise.linears(net(), 8, within=["body.0"])[1]["body.4"] == "outside the blocks"


@pytest.mark.parametrize("bits", quantise.BITS)
def test_outputs_stay_near_and_nearer_in_more_bits(bits):
    x = torch.randn(16, 64)
    model, exact = net(), net()(x)
    quantise.weight_only(model, bits)
    error = ((model(x) - exact).norm() / exact.norm()).item()
    assert 0 < error < (0.02 if bits == 8 else 0.3)


@pytest.mark.parametrize("bits", quantise.BITS)
def test_what_was_trained_fake_quantised_is_what_comes_out(bits):
    torch.manual_seed(0)
    model, x, wanted = net(), torch.randn(32, 64), torch.randn(32, 8)
    held = {name: p.detach() != 0 for name, p in model.named_parameters() if name.startswith("body") and p.dim() == 2}
    names = [name for name, _ in model.named_parameters()]
    quantise.prepare(model, bits)
    assert [name for name, _ in model.named_parameters()] == names
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with masks.hold(model, held):
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = model(x).detach()
    quantise.finish(model)
    assert all(type(module) in (nn.Linear, nn.GELU) for module in [*model.body, model.head])
    quantise.weight_only(model, bits)
    torch.testing.assert_close(model(x), trained, atol=1e-5, rtol=1e-5)
    for name, mask in held.items():
        weight = quantise.dense(model.get_submodule(name.removesuffix(".weight")).weight)
        assert torch.count_nonzero(weight[~mask]) == 0


def test_a_step_passes_straight_through_the_rounding_where_nothing_is_clamped():
    model = nn.Sequential(nn.Linear(32, 4, bias=False))
    x = torch.randn(3, 32)
    quantise.prepare(model, 8)
    model(x).sum().backward()
    passed = model[0].weight.grad / x.sum(0)
    clamped = passed.abs() < 1e-6
    torch.testing.assert_close(passed[~clamped], torch.ones_like(passed[~clamped]), atol=1e-5, rtol=1e-5)
    assert clamped.sum() <= 4  # the largest of a row


def test_activations_are_quantised_where_asked():
    x = torch.randn(3, 64)
    model, both = net(), net()
    quantise.prepare(model, 8)
    quantise.prepare(both, 8, activations=True)
    assert not torch.equal(model(x), both(x))
    assert (model(x) - both(x)).norm() < 0.05 * model(x).norm()


def test_what_is_quantised_already_is_refused_in_one_line():
    once = net()
    quantise.weight_only(once, 8)
    with pytest.raises(InputError, match=r"body.0.weight is already quantised or packed \(Int8Tensor\)"):
        quantise.weight_only(once, 4)
    faked = net()
    quantise.prepare(faked, 8)
    with pytest.raises(InputError, match=r"body\.0 is fake-quantised"):
        quantise.prepare(faked, 8)
    eight = nn.Linear(4, 4)
    eight.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="weight is already quantised \\(int8\\)"):
        quantise.weight_only(eight, 8)
    said = net()
    said.config = type("Config", (), {"quantization_config": {"quant_method": "gptq"}})()
    with pytest.raises(InputError, match="config says"):
        quantise.check(said)


def test_nothing_to_quantise_and_odd_bits_are_refused():
    with pytest.raises(InputError, match=r"no linear to quantise in 4 bits \(0: 20 inputs are no multiple of 32\)"):
        quantise.weight_only(nn.Sequential(nn.Linear(20, 4)), 4)
    with pytest.raises(InputError, match="no linear to quantise in 8 bits"):
        quantise.weight_only(nn.Conv2d(1, 1, 1), 8)
    with pytest.raises(InputError, match="bits=3: give one of 8, 4"):
        quantise.prepare(net(), 3)


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match="secateur\\[quantise\\]"):
        quantise.weight_only(net(), 8)
