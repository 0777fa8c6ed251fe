"""Packed linears: torchao's integers in bytes that move as any buffer does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import second_device
import tiny
from secateur.errors import InputError, UnsupportedError
from secateur.recover.quantization import packed, quantise
from secateur.subjects import open_subject

pytest.importorskip("torchao")


@pytest.mark.parametrize(("bits", "bytes_each"), [(8, 1.0), (4, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_is_the_one_of_torchao_s_integers(bits, bytes_each, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 24).to(dtype)
    small = packed.PackedLinear(linear, bits)
    assert torch.equal(small.weight, quantise.dense(quantise.integers(linear.weight, bits)))
    assert small.integers.nbytes == bytes_each * linear.weight.numel()
    inputs = torch.randn(3, 64, dtype=dtype)
    assert torch.equal(small(inputs), nn.functional.linear(inputs, small.weight, linear.bias))
    assert (small(inputs) - linear(inputs)).abs().max() < 0.3
    assert not list(small.parameters())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_model_answers_nearly_as_before_wherever_it_lies(bits):
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    batch = subject.example(2, 9)
    small = copy.deepcopy(subject)
    names = packed.pack(small.model, bits, within=small.layers())
    assert len(names) == 7 * len(small.layers())
    before, after = (one.forward(batch).prediction.detach() for one in (subject, small))
    assert torch.nn.functional.cosine_similarity(before, after, -1).min() > (0.99 if bits == 8 else 0.9)
    with second_device.present():
        small.model.to(second_device.NAME)
        there = small.forward(batch).prediction
        assert there.device.type == second_device.NAME
        torch.testing.assert_close(there.cpu(), after, atol=1e-5, rtol=0)


def test_what_packing_would_not_shrink_is_refused():
    subject = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match="only they are packed"):
        packed.pack(subject.model, 8, within=subject.layers())
    with pytest.raises(InputError, match="no linear"):
        packed.pack(tiny.model("gpt2"), 8)


def test_torchao_s_own_integers_are_taken_over():
    model = tiny.model("llama")
    ids = torch.arange(5, 15)[None]
    quantise.weight_only(model, 8, within=["model.layers.0"])
    before = model(input_ids=ids).logits
    assert not packed.is_packed(model)
    assert len(packed.adopt(model)) == 7
    assert packed.is_packed(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-5)
