"""The code that rebuilds rotated and sliced models."""

from __future__ import annotations

import copy

import torch
import transformers
from torch import nn

from secateur.formats import sliced

TABLE = {
    "layers": "layers",
    "embeddings": ["embed_tokens"],
    "final": "norm",
    "conv1d": False,
    "attention": {
        "module": "self_attn",
        "norm": "input_layernorm",
        "out": "self_attn.o_proj",
        "reads": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    },
    "ffn": {
        "module": "mlp",
        "norm": "post_attention_layernorm",
        "out": "mlp.down_proj",
        "reads": ["mlp.gate_proj", "mlp.up_proj"],
    },
}


def make(widths: list[int], *, bias: bool = False) -> transformers.LlamaForCausalLM:
    small = dict(hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, vocab_size=20)
    config = transformers.LlamaConfig(**small, num_key_value_heads=2)
    config.secateur = {"widths": widths, "head_bias": bias}

    class Small(sliced.Sliced, transformers.LlamaForCausalLM):
        family = TABLE

    return Small(config).eval()


def test_norms_divide_by_the_width_that_was_before():
    x = torch.randn(2, 3, 16)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(sliced.Normalise(16, 1e-3)(x), plain)
    some = x * (torch.arange(16) < 10)
    torch.testing.assert_close(sliced.Normalise(16, 1e-3)(x[..., :10]), sliced.Normalise(16, 1e-3)(some)[..., :10])
    assert sliced.Normalise(4, 1e-3)(x.bfloat16()).dtype == torch.bfloat16
    assert "width=4" in repr(sliced.Normalise(4, 1e-3))


def test_every_point_of_the_stream_has_a_width_of_its_own():
    widths = [8, 9, 10, 11, 12]
    model = make(widths, bias=True)
    layer = model.model.layers[1]
    assert model.model.embed_tokens.weight.shape == (20, 8)
    assert layer.self_attn.q_proj.weight.shape == (16, 10)
    assert layer.self_attn.o_proj.weight.shape == (11, 16)
    assert layer.attention_shortcut.weight.shape == (11, 10)
    assert layer.mlp.down_proj.weight.shape == (12, 12)
    assert layer.ffn_shortcut.weight.shape == (12, 11)
    assert (model.lm_head.weight.shape, model.lm_head.bias.shape) == ((20, 12), (20,))
    assert not any("norm" in name for name, _ in model.named_parameters())
    tokens = torch.randint(0, 20, (2, 5))
    found = model(input_ids=tokens, output_hidden_states=True)
    assert [state.shape[-1] for state in found.hidden_states] == [8, 10, 12]
    torch.testing.assert_close(copy.deepcopy(model)(input_ids=tokens).logits, found.logits)


def test_a_layer_is_both_its_halves_beside_the_residual_connections():
    model = make([16] * 5)
    layer = model.model.layers[0]
    positions = torch.zeros(1)
    named = layer.name_arguments((None, positions), {"encoder_hidden_states": None, "use_cache": False})
    assert named == {"attention_mask": None, "position_ids": positions, "use_cache": False}
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        nn.init.zeros_(linear.weight)
    states = torch.randn(1, 3, 16)
    places = model.model.rotary_emb(states, torch.arange(3)[None])
    found = layer(states, None, None, position_embeddings=places)
    expected = states @ layer.attention_shortcut.weight.T @ layer.ffn_shortcut.weight.T
    torch.testing.assert_close(found, expected)


def test_it_trains_with_gradient_checkpointing():
    model = make([8] * 5).train()
    tokens = torch.randint(0, 20, (2, 5))
    model(input_ids=tokens, labels=tokens).loss.backward()
    plain = model.model.layers[0].attention_shortcut.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(model.model.layers[0].attention_shortcut.weight.grad, plain)


def test_the_base_model_alone_has_no_head():
    model = make([8] * 5)
    config = copy.deepcopy(model.config)

    class Bare(sliced.Sliced, transformers.LlamaModel):
        family = TABLE

    assert Bare(config)(input_ids=torch.zeros(1, 4, dtype=torch.long)).last_hidden_state.shape == (1, 4, 8)
    assert not Bare.is_custom_code()
    tiny = copy.deepcopy(model.model.config)
    sliced.slice_model(plain := transformers.LlamaForCausalLM(tiny), TABLE, [4] * 5, head_bias=False)
    assert plain.lm_head.weight.shape == (20, 4)
