"""Sites and costs."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from secateur.errors import UnsupportedError
from secateur.subjects import open_subject
from subjects.tiny import (
    make,
    without,
)


def test_sites_owners_and_axes() -> None:
    subject = make("llama")
    units = subject.units("neurons", multiple=4)
    assert {site.kind for site in units.free()} == {"neurons"}
    assert units["layers.0.neurons"].multiple == 4
    whole = subject.units()
    assert whole["layers.2.heads"].owner is not None
    assert whole["layers.2.heads"].owner[0] == "layers.2.kv_groups"
    assert whole["layers.2.kv_groups"].owner is not None
    assert whole["layers.2.kv_groups"].owner[0] == "attention"
    assert whole["channels"].multiple == whole["channels"].minimum == 8
    assert whole["layers"].minimum == 1
    assert make("gpt2").units()["layers.1.heads"].owner == ("attention", pytest.approx(np.full(4, 1)))
    with pytest.raises(UnsupportedError, match=r"axis 'experts'.*layers, attention, ffn, heads"):
        subject.units("experts")
    with pytest.raises(UnsupportedError, match="kv_groups"):
        make("gpt2").units("kv_groups")


def test_cost_of_a_tiny_model_by_hand() -> None:
    """One layer of a Llama with the numbers written out."""
    sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3}
    config = transformers.LlamaConfig(**sizes)
    subject = open_subject(transformers.LlamaForCausalLM(config).eval())
    cost = subject.units(batch=2, length=5).cost()
    attention, ffn, tables, norms = 8 * 3 * (4 + 2 + 2 + 4), 3 * 8 * 6, 2 * 10 * 8, 3 * 8
    assert cost["params"] == attention + ffn + tables + norms
    assert cost["bytes"] == 4 * cost["params"]
    assert cost["kv_cache"] == 2 * 2 * 5 * 2 * 3 * 4  # keys and values, batch, tokens, groups, head_dim, bytes
    assert cost["flops"] == 2 * 10 * (attention + ffn + 80) + 4 * 2 * 5**2 * 3 * 4


def test_a_layer_without_units_costs_its_bias_and_mark_only() -> None:
    units = make("llama-tied-bias").units(batch=1, length=4)
    whole = units.cost()
    gone = units.cost({"attention": without(3, 0), "ffn": without(3, 0)})
    layer = units.cost({"layers": without(3, 0)})
    assert gone["params"] - layer["params"] == 2 * 48
    assert gone["kv_cache"] - layer["kv_cache"] == 2 * 4 * 4
    assert gone["flops"] == layer["flops"] < whole["flops"]
