"""Tiny random models of every family, and what the subject tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from secateur.subjects import Transformer, open_subject

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

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
    "gemma2": ("Gemma2Config", _GEMMA, "Gemma2ForCausalLM"),
    "gemma2-bias": ("Gemma2Config", _GEMMA | {"attention_bias": True}, "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", _GEMMA, "Gemma3ForCausalLM"),
    "gemma3-untied": ("Gemma3TextConfig", _GEMMA | {"tie_word_embeddings": False}, "Gemma3ForCausalLM"),
    "gemma3-base": ("Gemma3TextConfig", _GEMMA, "Gemma3TextModel"),
    "phi3": ("Phi3Config", {k: v for k, v in _LLAMA.items() if k != "head_dim"}, "Phi3ForCausalLM"),
}
DECODERS = [name for name in MODELS if not name.startswith(("bert", "roberta", "distilbert"))]
GENERATORS = [name for name in DECODERS if MODELS[name][2].endswith(("CausalLM", "LMHeadModel"))]


def make(name: str) -> Transformer:
    """A tiny model of random weights, biases and norms included, in evaluation mode."""
    config_class, arguments, model_class = MODELS[name]
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return open_subject(model)


def without(count: int, *gone: int) -> np.ndarray:
    """Booleans [count], False at `gone`."""
    keep = np.ones(count, dtype=bool)
    keep[list(gone)] = False
    return keep


def run_without_secateur(code: str, folder: Path, **more: str) -> str:
    """Run code in a fresh process in which secateur can't be imported; gives what it printed."""
    guard = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'secateur':\n"
        "            raise ImportError('secateur is not here')\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(
        [sys.executable, "-c", guard + code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
