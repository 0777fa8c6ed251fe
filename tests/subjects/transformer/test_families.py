"""The tables cover their models: every tensor is known, and its axes multiply to its shape."""

from __future__ import annotations

import ast

import pytest

from secateur.subjects.transformer.families import FAMILIES
from subjects.tiny import (
    MODELS,
    make,
)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_in_the_table_with_its_true_shape(name: str) -> None:
    subject = make(name)
    layout = subject.layout
    for key, tensor in subject.model.state_dict().items():
        place = layout.place(key)
        assert place.axes is not None, key
        assert len(place.axes) == tensor.dim(), key
        for axis, size in zip(place.axes, tensor.shape, strict=True):
            if axis:
                width = layout.widths[place.layer or 0]
                sizes = {"channels": layout.hidden_size, "neurons": width.neurons, "heads": width.heads}
                sizes |= {name: getattr(width, name) for name in ("experts", "expert_neurons", "shared_neurons")}
                sizes |= {"heads*": width.heads * layout.head_dim, "kv*": width.kv * layout.head_dim}
                sizes["expert_neurons*2"] = 2 * width.expert_neurons
                assert sum(sizes[part] for part in axis.split("+")) == size, (key, axis)


def test_every_family_is_tested_and_plain_data() -> None:
    tested = {make(name).family.model_type for name in MODELS}
    assert tested - {"gpt_oss"} == set(FAMILIES)
    for family in FAMILIES.values():
        assert ast.literal_eval(repr(family.plain())) == family.plain()


def test_what_reads_and_writes_the_residual_stream_is_read_from_the_table() -> None:
    llama, gpt2 = FAMILIES["llama"].stream(), FAMILIES["gpt2"].stream()
    assert llama["attention"]["reads"] == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    assert llama["ffn"]["norm"] == "post_attention_layernorm"
    assert llama["ffn"]["reads"] == ["mlp.gate_proj", "mlp.up_proj"]
    assert (gpt2["embeddings"], gpt2["final"], gpt2["conv1d"]) == (["wte", "wpe", "lm_head", "score"], "ln_f", True)
    assert gpt2["attention"]["reads"] == ["attn.c_attn"]
