"""A small copy of a model: the same class and structure with a few thousand weights, to be analysed in its place."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from secateur.errors import UnsupportedError

__all__ = [
    "DENSE",
    "EXPERTS",
    "HEADS",
    "HEAD_DIM",
    "LAYERS",
    "TOKENS",
    "VOCABULARY",
    "copy_small",
    "describe_error",
    "draw_apart",
    "is_causal",
    "make_tokens",
    "plain_config",
    "run_model",
    "shrink_config",
]

LAYERS = 2
HEADS = 4
HEAD_DIM = 8
EXPERTS = 4
VOCABULARY = 61
TOKENS = 7
_SEEN = 4
"""Tokens of a window of attention: fewer than `TOKENS`, or it would cut nothing off."""

DENSE: tuple[Literal["mlp_only_layers", "first_k_dense_replace"], ...] = ("mlp_only_layers", "first_k_dense_replace")
"""Where a config says which layers have a plain FFN and no experts."""

_OURS = {
    "allow_global_per_layer_attribute_access",
    "architectures",
    "auto_map",
    "dtype",
    "per_layer_config",
    "quantization_config",
    "secateur",
    "torch_dtype",
}
_SIZE = re.compile(r"size|dim|width|inner|hidden|rank|embd|d_ff|ffn|d_model")
_WINDOW = re.compile(r"window(_size)?$|^attention_chunk_size$|^local_attention$")
_LENGTH = re.compile(r"position|length|window|context|seq|vocab")


def plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration for layers that are all alike, of weights that are not quantised."""
    return type(config).from_dict(_list_plainly(config))


def _list_plainly(config: PretrainedConfig) -> dict[str, object]:
    data = config.to_dict()
    return {name: value for name, value in data.items() if name not in _OURS}


def shrink_config(config: PretrainedConfig, depth: int = LAYERS) -> PretrainedConfig:
    """The same configuration with `depth` layers, two if not given, and small sizes: what it says of structure stays.

    Sizes that were equal stay equal, as far as their names say that they are sizes. Raises `UnsupportedError` where
    the class refuses them.
    """
    data = _list_plainly(config)
    native = type(config).attribute_map
    names = {
        common: native.get(common, common) for common in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    }
    try:
        layers, heads, hidden = (int(getattr(config, name)) for name in reversed(list(names)))
    except (AttributeError, TypeError) as error:
        parts = [name for name in data if name.endswith("_config") and isinstance(data[name], dict)]
        hint = f": open one of its parts ({', '.join(parts)})" if parts else ""
        raise UnsupportedError(f"{type(config).__name__} does not say sizes, heads and layers{hint}") from error
    kv = data.get(native.get("num_key_value_heads", "num_key_value_heads"))
    small_kv = HEADS if kv in (None, heads) else 2
    small = HEADS * HEAD_DIM
    stated = data.get(native.get("head_dim", "head_dim"))
    sizes = {hidden // heads: HEAD_DIM, stated if isinstance(stated, int) else 0: HEAD_DIM, hidden: small}
    fresh = iter(range(40, 10**6, 16))
    for name, value in data.items():
        if isinstance(value, bool) or name in names.values():
            continue
        if isinstance(value, list) and len(value) == layers and layers > depth:
            data[name] = value[:depth]
        elif isinstance(value, int) and _WINDOW.search(name):
            data[name] = min(value, _SEEN)
        elif isinstance(value, int) and _LENGTH.search(name):
            data[name] = min(value, 64)
        elif isinstance(value, int) and "expert" in name and not _SIZE.search(name):
            data[name] = min(value, 2 if "tok" in name or "shared" in name or "top" in name else EXPERTS)
        elif isinstance(value, int) and "group" in name:
            data[name] = min(value, 1 if "top" in name else 2)
        elif name in DENSE and isinstance(value, list | int):
            data[name] = [number for number in value if number < 1] if isinstance(value, list) else min(value, 1)
        elif isinstance(value, int) and "rotary" in name:
            data[name] = min(value, HEAD_DIM // 2)
        elif isinstance(value, int) and value > 8 and _SIZE.search(name):
            if value not in sizes:
                sizes[value] = next(fresh)
            data[name] = sizes[value]
    data |= {names["num_hidden_layers"]: depth, names["num_attention_heads"]: HEADS, names["hidden_size"]: small}
    data["vocab_size"] = VOCABULARY
    if kv is not None:
        data[native.get("num_key_value_heads", "num_key_value_heads")] = small_kv
    for name, value in data.items():
        if name.endswith("_token_id") and isinstance(value, int):
            data[name] = min(value, len(name) % 3)
    try:
        result = type(config).from_dict(data)
    except Exception as error:
        raise UnsupportedError(f"{type(config).__name__} refuses small sizes ({describe_error(error)})") from error
    result._attn_implementation = "eager"
    return result


def copy_small(model: PreTrainedModel, depth: int = LAYERS) -> PreTrainedModel:
    """A model of the same class with the shrunk configuration and random weights, none of them 0 or 1.

    Raises `UnsupportedError` where its modules are not those of the original.
    """
    config = shrink_config(model.config, depth)
    with draw_apart():
        try:
            small_model: PreTrainedModel = type(model)(config).float().eval()
        except Exception as error:
            raise UnsupportedError(
                f"{type(model).__name__} can't be built with small sizes ({describe_error(error)})"
            ) from error
        with torch.no_grad():  # norms of one and biases of zero hide what they do
            for parameter in small_model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    if getattr(model, "pooler", small_model) is None:
        small_model.pooler = None
    lacks = _outline(model) ^ _outline(small_model)
    if lacks:
        raise UnsupportedError(f"a small copy of {type(model).__name__} has other tensors: {min(lacks)} is not in both")
    return small_model


@contextlib.contextmanager
def draw_apart() -> Iterator[None]:
    """Random numbers from a seed of their own: those of the user go on afterwards as if none had been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether no state of a small copy depends on a later token: it is a decoder, with whatever head or none."""
    tokens = make_tokens()
    other = tokens.clone()
    other[:, -1] += 1
    before, after = (run_model(model.base_model, one)[0][:, :-1] for one in (tokens, other))
    return torch.allclose(before, after, atol=1e-5)


def _outline(model: nn.Module) -> set[str]:
    """Names of parameters, layers' numbers left out."""
    return {re.sub(r"\.\d+\.", ".*.", name) for name, _ in model.named_parameters()}


def make_tokens() -> Tensor:
    """Two sequences that a small copy reads [2, TOKENS]."""
    return torch.arange(2 * TOKENS).reshape(2, TOKENS) % (VOCABULARY - 4) + 3


def run_model(model: PreTrainedModel, tokens: Tensor) -> ModelOutput:
    """What the model gives for tokens [B, S], without a cache, whose length some classes ask of its layers."""
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids=tokens, **({"use_cache": False} if "use_cache" in accepted else {}))


def describe_error(error: BaseException) -> str:
    """The first line of an error that is not ours."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
