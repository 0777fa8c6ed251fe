"""The modelling file of a DeciLM export."""

from __future__ import annotations

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from secateur.formats.decilm.configuration_decilm import DeciLMConfig
from secateur.formats.decilm.modeling_decilm import DeciLMForCausalLM, NoAttention, NoFFN

SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def block(group: int | None, width: int | None) -> dict[str, dict[str, object]]:
    return {
        "attention": {"n_heads_in_group": group, "no_op": group is None, "replace_with_linear": False},
        "ffn": {"intermediate_size": width, "no_op": width is None, "replace_with_linear": False},
    }


def test_alike_blocks_are_a_llama() -> None:
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model = DeciLMForCausalLM(DeciLMConfig(block_configs=[block(2, 24), block(2, 24)], **SIZES)).eval()
    model.load_state_dict(llama.state_dict())
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(model(tokens).logits, llama(tokens).logits)


def test_blocks_differ_and_may_be_missing() -> None:
    model = DeciLMForCausalLM(DeciLMConfig(block_configs=[block(4, 8), block(None, None)], **SIZES))
    first, second = model.model.layers
    assert first.self_attn.k_proj.weight.shape == (4, 16)
    assert first.mlp.up_proj.weight.shape == (8, 16)
    assert isinstance(second.self_attn, NoAttention)
    assert isinstance(second.mlp, NoFFN)
    assert not list(second.parameters())
    cache = DynamicCache()
    assert torch.equal(second(torch.ones(1, 3, 16), cache=cache), torch.ones(1, 3, 16))
    assert cache.get_seq_length(1) == 3
