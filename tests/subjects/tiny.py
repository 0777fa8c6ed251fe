"""Tiny random models of every family, and what the subject tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import transformers

from secateur.measure import size
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Site

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BATCH, LENGTH = 2, 9

Keep = dict[str, np.ndarray]
Keeps = dict[str, Keep]

_SIZES = {"vocab_size": 61, "max_position_embeddings": 48, "attn_implementation": "eager"}
_BERT = _SIZES | {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 1,
}
_LLAMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-3, "pad_token_id": 0}
_GEMMA = _LLAMA | {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 12,
}
_PHI3 = {name: value for name, value in _LLAMA.items() if name != "head_dim"}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
}

_MOE = _LLAMA | {"num_experts_per_tok": 2}
_FINE = _MOE | {"moe_intermediate_size": 24}
_LATENT = {name: value for name, value in _FINE.items() if name != "head_dim"} | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
_GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}

# name -> (config class, arguments, model class)
MODELS = {
    "bert": ("BertConfig", _BERT, "BertModel"),
    "bert-classifier": ("BertConfig", _BERT | {"num_labels": 3}, "BertForSequenceClassification"),
    "bert-mlm": ("BertConfig", _BERT, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _BERT, "RobertaModel"),
    "roberta-classifier": ("RobertaConfig", _BERT | {"num_labels": 3}, "RobertaForSequenceClassification"),
    "roberta-mlm": ("RobertaConfig", _BERT, "RobertaForMaskedLM"),
    "distilbert": (
        "DistilBertConfig",
        _SIZES | {"dim": 48, "hidden_dim": 40, "n_layers": 3, "n_heads": 4},
        "DistilBertModel",
    ),
    "distilbert-classifier": (
        "DistilBertConfig",
        _SIZES | {"dim": 48, "hidden_dim": 40, "n_layers": 3, "n_heads": 4, "num_labels": 3},
        "DistilBertForSequenceClassification",
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 61, "n_positions": 48, "n_embd": 48, "n_layer": 3, "n_head": 4, "attn_implementation": "eager"}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "GPT2LMHeadModel",
    ),
    "gpt2-scaled": (
        "GPT2Config",
        {"vocab_size": 61, "n_positions": 48, "n_embd": 48, "n_layer": 3, "n_head": 4, "attn_implementation": "eager"}
        | {"bos_token_id": 1, "eos_token_id": 2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 40},
        "GPT2LMHeadModel",
    ),
    "llama": ("LlamaConfig", _LLAMA, "LlamaForCausalLM"),
    "llama-tied-bias": (
        "LlamaConfig",
        _LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "LlamaForCausalLM",
    ),
    "llama-mha": ("LlamaConfig", _LLAMA | {"num_key_value_heads": 4, "head_dim": 12}, "LlamaModel"),
    "llama-classifier": ("LlamaConfig", _LLAMA | {"num_labels": 3}, "LlamaForSequenceClassification"),
    "mistral": ("MistralConfig", _LLAMA | {"sliding_window": 6}, "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", _LLAMA, "Qwen2ForCausalLM"),
    "qwen2-sliding": (
        "Qwen2Config",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "Qwen2ForCausalLM",
    ),
    "qwen3": ("Qwen3Config", _LLAMA | {"tie_word_embeddings": True}, "Qwen3ForCausalLM"),
    "qwen3-sliding": (
        "Qwen3Config",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "Qwen3ForCausalLM",
    ),
    "gemma2": ("Gemma2Config", _GEMMA, "Gemma2ForCausalLM"),
    "gemma2-untied": ("Gemma2Config", _GEMMA | {"tie_word_embeddings": False}, "Gemma2ForCausalLM"),
    "gemma2-bias": ("Gemma2Config", _GEMMA | {"attention_bias": True}, "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", _GEMMA, "Gemma3ForCausalLM"),
    "gemma3-untied": ("Gemma3TextConfig", _GEMMA | {"tie_word_embeddings": False}, "Gemma3ForCausalLM"),
    "gemma3-base": ("Gemma3TextConfig", _GEMMA, "Gemma3TextModel"),
    "phi3": ("Phi3Config", _PHI3, "Phi3ForCausalLM"),
    "phi3-partial": (
        "Phi3Config",
        _PHI3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "Phi3ForCausalLM",
    ),
    "phi3-longrope": (
        "Phi3Config",
        _PHI3 | {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32},
        "Phi3ForCausalLM",
    ),
    "mixtral": ("MixtralConfig", _MOE | {"num_local_experts": 4}, "MixtralForCausalLM"),
    "mixtral-base": ("MixtralConfig", _MOE | {"num_local_experts": 4}, "MixtralModel"),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        _FINE | {"num_experts": 4, "shared_expert_intermediate_size": 40, "mlp_only_layers": [0]},
        "Qwen2MoeForCausalLM",
    ),
    "qwen3-moe": ("Qwen3MoeConfig", _FINE | {"num_experts": 4, "mlp_only_layers": [1]}, "Qwen3MoeForCausalLM"),
    "olmoe": (
        "OlmoeConfig",
        {name: value for name, value in _MOE.items() if name != "head_dim"} | {"num_experts": 4},
        "OlmoeForCausalLM",
    ),
    "phimoe": ("PhimoeConfig", _MOE | {"num_local_experts": 4, "lm_head_bias": True}, "PhimoeForCausalLM"),
    "deepseek2": ("DeepseekV2Config", _LATENT | {"n_routed_experts": 4}, "DeepseekV2ForCausalLM"),
    "deepseek2-groups": (
        "DeepseekV2Config",
        _LATENT | _GROUPED | {"topk_method": "group_limited_greedy", "q_lora_rank": None},
        "DeepseekV2ForCausalLM",
    ),
    "deepseek3": ("DeepseekV3Config", _LATENT | _GROUPED | {"n_routed_experts": 8}, "DeepseekV3ForCausalLM"),
    # Inputs before outputs, rows of gate and up in turns, biases.
    "gpt-oss": ("GptOssConfig", _MOE | {"num_local_experts": 4}, "GptOssForCausalLM"),
}
MIXTURES = [
    name for name in MODELS
    if name.startswith(("mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "phimoe", "deep", "gpt-oss"))
]  # fmt: skip
DENSE = [name for name in MODELS if name not in MIXTURES]
DECODERS = [name for name in MODELS if not name.startswith(("bert", "roberta", "distilbert"))]
GENERATORS = [name for name in DECODERS if MODELS[name][2].endswith(("CausalLM", "LMHeadModel"))]


def make(name: str) -> Transformer:
    """A tiny model of random weights, biases and norms included, in evaluation mode."""
    config_class, arguments, model_class = MODELS[name]
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments)).eval()
    with torch.no_grad():
        biases = [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for tensor in (*model.parameters(), *biases):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return open_subject(model)


def without(count: int, *gone: int) -> np.ndarray:
    """Booleans [count], False at `gone`."""
    keep = np.ones(count, dtype=bool)
    keep[list(gone)] = False
    return keep


def random_keep(subject: Transformer, seed: int, *, channels: bool = True) -> Keep:
    """A mixed selection on all axes which a transformer can take."""
    random = np.random.default_rng(seed)
    units = subject.units()
    channels = channels and units["channels"].fixed is None
    keep: Keep = {}
    for name, site in units.sites.items():
        if site.frozen:
            continue
        if site.group is not None:
            groups = site.group.max() + 1
            per_group = site.count // groups
            least = int(random.integers(max(1, -(-site.minimum // groups)), per_group + 1))
            least -= least % 4 if site.kind == "expert_neurons" else 0
            keep[name] = np.concatenate(
                [np.isin(np.arange(per_group), random.choice(per_group, least, False)) for _ in range(groups)]
            )
        elif site.kind in ("experts", "shared_neurons"):
            least = int(random.integers(max(1, site.minimum), site.count + 1))
            keep[name] = np.isin(np.arange(site.count), random.choice(site.count, least, False))
        elif site.kind == "channels":
            if channels:
                keep[name] = np.isin(np.arange(site.count), random.choice(site.count, site.count - 16, False))
        else:
            keep[name] = random.random(site.count) < 0.7
    keep["layers"][int(random.integers(len(keep["layers"])))] = True
    effective = units.effective(keep)
    inner = {"attention": "heads", "ffn": "neurons"}  # a sub-block without any is gone, too
    if not any(
        stays and effective.get(f"layers.{index}.{kind}", np.ones(1)).any()
        for block, kind in inner.items()
        for index, stays in enumerate(effective[block])
    ):
        return {"layers": keep["layers"]}
    return keep


def selections(subject: Transformer) -> dict[str, Keep]:
    """One selection per axis, and mixtures."""
    sites = subject.units().sites
    layers = sites["layers"].count

    def everywhere(kind: str, gone: Callable[[int], list[int]]) -> Keep:
        return {
            name: without(site.count, *gone(index))
            for index, (name, site) in enumerate((n, s) for n, s in sites.items() if s.kind == kind)
        }

    per_group = all(site.group is None for site in sites.values() if site.kind == "heads")
    first = next(site for site in sites.values() if site.kind == "heads")
    head = [1] if per_group else [1, 1 + first.count // 2]
    found = {
        "nothing": {},
        "neurons": {
            "layers.1.neurons": without(
                40 if "layers.1.neurons" not in sites else sites["layers.1.neurons"].count, *range(8)
            )
        },
        "neurons alike": everywhere("neurons", lambda index: list(range(index, index + 8))),
        "heads": {"layers.1.heads": without(first.count, *head)},
        "heads alike": everywhere("heads", lambda _: head),
        "all heads": {"layers.0.heads": np.zeros(first.count, dtype=bool)},
        "all neurons": {
            name: np.zeros(site.count, dtype=bool) for name, site in sites.items() if name == "layers.0.neurons"
        },
        "attention": {"attention": without(layers, 0)},
        "attention, others": {"attention": without(layers, 1, 2)},
        "ffn": {"ffn": without(layers, 1)},
        "both blocks": {"attention": without(layers, 1), "ffn": without(layers, 1)},
        "a layer": {"layers": without(layers, 1)},
        "first layer": {"layers": without(layers, 0)},
        "channels": {"channels": without(48, *range(3, 48, 6))},
        "channels, odd": {"channels": without(48, 5, 7, 11)},
        "mixed": random_keep(subject, 0),
        "mixed again": random_keep(subject, 1),
    }
    if "layers.0.kv_groups" in sites:
        found["kv group"] = {"layers.1.kv_groups": without(2, 0)}
        found["kv groups alike"] = everywhere("kv_groups", lambda index: [index % 2])
        found["kv group and head"] = {"layers.1.kv_groups": without(2, 0), "layers.1.heads": without(4, 2)}
    if sites["channels"].fixed is not None:
        found = {label: keep for label, keep in found.items() if "channels" not in keep}
    if any(site.kind == "experts" for site in sites.values()):
        found |= _of_experts(sites, everywhere)
        found.pop("channels, odd", None)  # rows of 45 numbers are refused
    there = {name for name, site in sites.items() if not site.frozen}
    return {label: keep for label, keep in found.items() if (keep or label == "nothing") and set(keep) <= there}


def _of_experts(sites: Mapping[str, Site], everywhere: Callable[[str, Callable[[int], list[int]]], Keep]) -> Keeps:
    """Of a mixture: whole experts, neurons inside each, and of the shared one."""
    count, total = sites["layers.2.experts"].count, sites["layers.2.expert_neurons"].count
    width = total // count
    # Each expert its own neurons.
    own = [e * width + (e + j) % width for e in range(count) for j in range(width // 2)]
    some = [0, count // 2] if sites["layers.2.experts"].group is not None else [1]
    return {
        "experts": {"layers.2.experts": without(count, *some)},
        "experts alike": everywhere("experts", lambda index: [(one + index) % count for one in some]),
        "expert neurons": {"layers.2.expert_neurons": without(total, *own)},
        "expert neurons alike": everywhere("expert_neurons", lambda _: own),
        "experts and their neurons": {
            "layers.2.experts": without(count, *some),
            "layers.2.expert_neurons": without(total, *own),
        },
        "shared neurons": {
            name: without(site.count, *range(5, 13))
            for name, site in sites.items()
            if name == "layers.2.shared_neurons"
        },
        "shared neurons alike": everywhere("shared_neurons", lambda index: list(range(index, index + 24))),
    }


def run(subject: Transformer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return subject.forward(batch).prediction


def flops(subject: Transformer, batch: dict[str, torch.Tensor]) -> float:
    return size.flops(lambda **item: run(subject, item), batch)


def cached_bytes(subject: Transformer, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        outputs = subject.model(**batch, use_cache=True)
        # transformers 5.20 renamed `past_key_values`
        cache = outputs.cache if hasattr(outputs, "cache") else outputs.past_key_values
    return float(sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)))


def padded(subject: Transformer) -> dict[str, torch.Tensor]:
    batch = subject.example(BATCH, LENGTH)
    batch["attention_mask"][1, 6:] = 0
    return batch
