"""Heads inside mixers, found by what reaches what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.subjects.transformer.mixer_heads import read_heads
from secateur.subjects.transformer.small_copy import copy_small
from subjects.hybrids import make_hybrid


def test_key_heads_are_told_from_as_many_value_heads_and_their_sizes_apart() -> None:
    """As many value heads as key heads, all as large: other values of the settings tell them apart."""
    small = copy_small(make_hybrid("Qwen3_5", linear_num_key_heads=4, linear_num_value_heads=4))
    found = read_heads(small, "model.layers.0.", "linear_attn", "linear_attn.out_proj")
    assert found is not None
    assert found.axes["linear_attn.conv1d"] == (0, "state_heads*n+state_heads*n+state_heads*")
    assert found.axes["linear_attn.out_proj"] == (1, "state_heads*")
    assert "linear_attn.norm" not in found.axes  # the same for all heads
    states = found.states
    assert (states.heads, states.beside) == ("linear_num_key_heads", "linear_num_value_heads")
    assert states.counter == "linear_attn.num_k_heads"
    assert {"linear_attn.key_dim", "linear_attn.value_dim", "linear_attn.conv_dim"} <= set(states.counts)


def test_a_number_that_happens_to_be_that_of_heads_is_none() -> None:
    """An RG-LRU of four blocks has a convolution of four taps."""
    found = read_heads(copy_small(make_hybrid("RecurrentGemma")), "model.layers.0.", "temporal_block",
                       "temporal_block.linear_out")  # fmt: skip
    assert found is not None
    assert not found.states.says_heads
    assert set(found.states.counts) == {"temporal_block.lru_width", "temporal_block.rg_lru.num_attention_heads"}


def test_a_mixer_in_which_all_reaches_all_has_no_heads() -> None:
    """A Mamba draws the steps of all channels from all of them."""
    assert read_heads(copy_small(make_hybrid("Mamba")), "backbone.layers.0.", "mixer", "mixer.out_proj") is None


class Fixed(torch.autograd.Function):
    """An operator with no derivative."""

    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def test_a_mixer_without_a_derivative_has_no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    small = copy_small(make_hybrid("Lfm2"))
    assert read_heads(small, "model.layers.0.", "conv", "conv.out_proj") is not None
    linear = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: Fixed.apply(linear(self, x)))
    assert read_heads(small, "model.layers.0.", "conv", "conv.out_proj") is None
