"""DeciLM / Nemotron-NAS for transformers: Llama layers with their own KV heads and FFN widths, or none.

Written by secateur; licensed under Apache-2.0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from .configuration_decilm import DeciLMConfig, ffn_width


class NoAttention(nn.Module):
    """Adds nothing; leaves one number per token in the cache, by which the cache knows its length."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """[B, S, d] -> zero."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None:
            mark = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.layer_idx)
        return hidden_states.new_zeros(1), None


class NoFFN(nn.Module):
    """Adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, d] -> zero."""
        return hidden_states.new_zeros(1)


class DeciLMForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with the layers of `config.block_configs`."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        for index, (layer, block) in enumerate(zip(self.model.layers, config.block_configs, strict=True)):
            own = copy.copy(config)
            if block.attention.no_op:
                layer.self_attn, layer.input_layernorm = NoAttention(index), nn.Identity()
            else:
                own.num_key_value_heads = config.num_attention_heads // block.attention.n_heads_in_group
                layer.self_attn = LlamaAttention(own, index)
                layer.self_attn.config = config
            if block.ffn.no_op:
                layer.mlp, layer.post_attention_layernorm = NoFFN(), nn.Identity()
            else:
                own.intermediate_size = ffn_width(block.ffn, config.hidden_size)
                layer.mlp = LlamaMLP(own)
                layer.mlp.config = config
