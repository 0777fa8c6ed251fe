"""Layers of integers: attention unfolded, what can be quantised, packing, and files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from formats.quantised import IMAGES, made, net, rand
from secateur.errors import InputError, ModelError
from secateur.formats import integers
from secateur.formats.integers import Form, Scales
from secateur.select.pattern import n_of_m
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import Plan, shrink, twin
from secateur.subjects.network.traced import Traced, reload_traced

# ------------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", ["self", "cross", "mask", "padding", "per head", "unbatched"])
def test_unfolded_attention_gives_what_pytorch_s_gives(first, bias, case):
    torch.manual_seed(0)
    holder = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, bias=bias, batch_first=first)}).eval()
    whole = holder["a"]
    if bias:
        nn.init.normal_(whole.in_proj_bias)
    query, other = (rand(3, 5, 8), rand(3, 4, 8, seed=1)) if first else (rand(5, 3, 8), rand(4, 3, 8, seed=1))
    args, how = (query, query, query), {}
    if case == "cross":
        args = (query, other, other)
    elif case == "mask":
        how = {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)}
    elif case == "per head":
        how = {"attn_mask": rand(6, 5, 5, seed=2)}
    elif case == "padding":
        how = {"key_padding_mask": torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()}
    elif case == "unbatched":
        args = (query[0],) * 3
    with torch.no_grad():
        wanted = whole(*args, **how)
        assert integers.unfold(holder) == ("a",)
        found = holder["a"](*args, **how)
        assert torch.allclose(found[0], wanted[0], atol=1e-5)
        assert torch.allclose(found[1], wanted[1], atol=1e-5)
        assert holder["a"](*args, need_weights=False, **how)[1] is None


def test_attention_of_other_widths_stays_folded():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=4, vdim=4)})
    assert integers.unfold(model) == ()
    with pytest.raises(ModelError, match="the attention b, which is not there"):
        integers.unfold(model, ["b"])


# --------------------------------------------------------------------------------------------------------- layers


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv1d(1, 1, 1)
        self.wrap = nn.Conv2d(1, 2, 1, padding_mode="circular", padding=0)

    def forward(self, x):
        x = nn.functional.linear(self.called(x), self.read.weight)
        return self.conv(x[:, None]).sum() + self.wrap(x[:, None, None]).sum()


def test_layers_that_can_not_be_quantised_say_why():
    model = Odd()
    found, reasons = integers.find_layers(model, lambda: model(rand(2, 4)))
    assert found == ["called"]
    assert reasons == {
        "read": "is read by other code and not called as a layer",
        "conv": "is a Conv1d",
        "wrap": "pads by circular",
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_on_their_grid_and_a_row_of_zeros_stays_zero(bits):
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1] = 0
    integers.install(model, {"0": Scales(bits, torch.tensor(0.0), model[0].weight.detach().abs().amax(1) / 7)})
    assert torch.isfinite(model(rand(2, 4))).all()
    assert model[0].weight[1].eq(0).all()
    assert torch.equal(model[0].weight, integers.quantise(model[0].weight, model[0].weight_scale[:, None], bits))


def test_a_plan_with_quantised_layers_goes_through_json_and_is_refused_elsewhere():
    plan = made().plans[0]
    assert Plan.from_dict(plan.to_dict()) == plan
    assert set(integers.quantised_layers(shrink(net(1), plan))) == {"0", "2", "4"}
    with pytest.raises(ModelError, match="names the layer 2"):
        shrink(nn.Sequential(nn.Conv2d(1, 8, 2, 2)), plan)


def test_copies_are_independent():
    one = made()
    other = twin(one.model)
    assert torch.equal(other(IMAGES), one.model(IMAGES))
    with torch.no_grad():
        other[2].weight_scale.mul_(2)
    assert not torch.equal(other[2].weight_scale, one.model[2].weight_scale)


# ---------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", [Form(2, 4), Form(1, 4), Form(3, 8), Form(4, 7), Form(2, 4, 2)])
def test_unpacking_gives_what_was_packed(bits, form):
    width = 6 * form.m * form.unit
    mask = n_of_m(rand(10, width // form.unit), form.n, form.m).repeat_interleave(form.unit, 1)
    limit = 2 ** (bits - 1)
    numbers = torch.randint(-limit, limit, mask.shape, generator=torch.Generator().manual_seed(3)).to(torch.int8)
    numbers = numbers * mask
    parts = integers.pack(numbers, mask, form, bits)
    found, held = integers.unpack(parts, tuple(mask.shape), form, bits)
    assert torch.equal(found, numbers)
    assert torch.equal(held, mask)


@pytest.mark.parametrize(
    ("bits", "form", "times"), [(8, Form(2, 4), 6.4), (4, Form(2, 4, 2), 12.8), (16, Form(2, 4), 32 / 9)]
)
def test_the_packer_s_own_bytes_against_floats(bits, form, times):
    mask = n_of_m(rand(64, 128 // form.unit), form.n, form.m).repeat_interleave(form.unit, 1)
    parts = integers.pack(torch.ones(mask.shape, dtype=torch.int8) * mask, mask, form, bits)
    assert 4 * mask.numel() / sum(part.numel() for part in parts.values()) == pytest.approx(times)


def test_a_mask_of_another_pattern_is_not_packed():
    with pytest.raises(InputError, match="2:4"):
        integers.pack(torch.ones(2, 8, dtype=torch.int8), torch.ones(2, 8, dtype=torch.bool), Form(2, 4), 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_files_hold_integers_and_masks_and_load_to_the_same_outputs(tmp_path, bits):
    mask = {"2.weight": n_of_m(rand(16, 16, seed=4), 2, 4)}
    one = made(bits, mask, Form(2, 4))
    one.save(tmp_path)
    again = reload_traced(tmp_path, net(5), IMAGES[:2])
    assert torch.equal(again.forward(IMAGES), one.forward(IMAGES))
    assert torch.equal(again.masks["2.weight"], mask["2.weight"])
    assert again.forms == one.forms
    assert not (tmp_path / "masks.safetensors").exists(), "the places are the mask"


def test_a_sparse_network_keeps_its_masks_in_a_file_of_their_own(tmp_path):
    subject = Traced(net(), Example.of(IMAGES[:2]))
    subject.masks = {"2.weight": n_of_m(rand(16, 16, seed=4), 2, 4)}
    subject.forms = {"2.weight": Form(2, 4)}
    with torch.no_grad():
        subject.model[2].weight.mul_(subject.masks["2.weight"])
    subject.save(tmp_path)
    again = reload_traced(tmp_path, net(5), IMAGES[:2])
    assert torch.equal(again.masks["2.weight"], subject.masks["2.weight"])
    assert again.forms == subject.forms
    assert subject.copy().masks.keys() == subject.masks.keys()


def test_a_file_without_its_integers_is_damaged(tmp_path):
    one = made()
    model, state = one.model, {"2.weight_scale": one.model[2].weight_scale}
    with pytest.raises(ModelError, match=r"lacks the integers of 0\.weight"):
        integers.unpack_state(model, state, {})
