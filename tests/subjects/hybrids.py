"""Tiny models whose layers are of several kinds, or have no attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DENSE = _SIZES | {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1}
_DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_NEMOTRON = _DENSE | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2, "head_dim": 8}

HYBRIDS: dict[str, dict[str, Any]] = {
    "Qwen3_5": _DENSE | _DELTA | {"num_hidden_layers": 4},
    "Qwen3Next": _DENSE
    | _DELTA
    | _EXPERTS
    | {"num_hidden_layers": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "Lfm2": _DENSE | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "Bamba": _DENSE | _MAMBA | {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "NemotronH": _NEMOTRON | {"layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba"]},
    "NemotronH-moe": _NEMOTRON
    | {
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 40,
    },
    "RecurrentGemma": _DENSE | {"num_hidden_layers": 4, "lru_width": 32, "head_dim": 8},
    "FalconH1": _DENSE | _MAMBA | {"num_hidden_layers": 2, "mamba_d_ssm": 64},
    "Mamba": _SIZES | {"num_hidden_layers": 3, "state_size": 16},
    "Mamba2": _SIZES | {"num_hidden_layers": 3, "state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 2},
}


def make_hybrid(name: str, **changes: Any) -> PreTrainedModel:
    """A random model with no weight of 0 or 1; changes: to its config."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name.partition('-')[0]}ForCausalLM")
    model: PreTrainedModel = kind(kind.config_class(**HYBRIDS[name] | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
