"""The code that rebuilds heterogeneous layers."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from secateur.formats import reload
from secateur.vocabulary import Selection
from subjects.tiny import (
    make,
    padded,
    run,
    without,
)


def test_bias_and_removed() -> None:
    bias = reload.Bias(torch.zeros(4))
    assert bias(torch.randn(2, 3, 7)).shape == (2, 3, 4)
    states = torch.randn(2, 3, 4)
    cache = transformers.DynamicCache()
    output, weights = reload.Removed(torch.nn.Identity(), "o_proj", None, 0, 2)(states, cache=cache)
    assert weights is None
    assert torch.equal(states + output, states)
    assert cache.get_seq_length() == 3
    assert reload.Removed(torch.nn.Identity(), "down_proj", torch.zeros(4), None, 0)(states).shape == states.shape
    assert reload.Removed(torch.nn.Identity(), "", torch.zeros(4), None, 0)(states).shape == (2, 3, 0)


def test_layer_config_overrides_and_follows_the_shared_one() -> None:
    shared = transformers.Phi3Config(num_attention_heads=8)
    own = reload.LayerConfig(shared, num_attention_heads=2)
    assert own.num_attention_heads == 2
    shared.attention_dropout = 0.25
    assert copy.deepcopy(own).attention_dropout == 0.25
    with pytest.raises(AttributeError):
        _ = own.no_such_value


def test_models_follow_a_change_of_attention_implementation() -> None:
    for name in ("phi3", "llama", "bert"):
        cut, _ = make(name).cut(Selection({"attention": without(3, 0), "layers.1.neurons": without(40, 1)}))
        batch = padded(cut)
        before = run(cut, batch)
        cut.model.set_attn_implementation("sdpa")
        torch.testing.assert_close(run(cut, batch), before, atol=1e-5, rtol=1e-5)
