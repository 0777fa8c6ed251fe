"""Rebuild the layers of a pruned transformer from `config.per_layer_config`.

transformers keeps per-layer widths in the config but builds every layer alike. `Resized`, mixed into the model's
own class, builds the model as usual and then gives each layer its own widths, and puts `Removed` where a
sub-block has gone. This file imports only torch and transformers: a copy of it travels with the weights of a
heterogeneous result, so that it loads anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Bias(nn.Module):
    """What remains of a linear with no inputs: its bias.

    Shapes: [..., any] -> [..., d].
    """

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros_like(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The bias at every position."""
        return self.bias.clone().expand(*x.shape[:-1], -1)  # a view of a parameter would confuse hooks


class Removed(nn.Module):
    """Stands where a sub-block was: adds its output bias, if it had one, and nothing else.

    inner: name of the output linear inside the sub-block's module, "" where it comes after the module.
    A decoder's cache tells the sequence length by its layers, so a removed attention (`layer` is its index)
    still leaves one number per token there, [batch, 1, tokens, 1].
    """

    def __init__(self, inner: str, bias: torch.Tensor | None, layer: int | None) -> None:
        super().__init__()
        self.inner, self.layer, self.biased = inner, layer, False
        if inner and bias is not None:
            *outer, last = inner.split(".")
            place: nn.Module = self
            for name in outer:
                place.add_module(name, nn.Module())
                place = place.get_submodule(name)
            place.add_module(last, Bias(bias))
            self.biased = True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, S, d] -> what the module that stood here would have returned, with nothing computed."""
        if not self.inner:
            output = hidden_states[..., :0]
        elif self.biased:
            output = self.get_submodule(self.inner)(hidden_states)
        else:
            output = hidden_states.new_zeros(1)
        if self.layer is None:
            return output
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None:
            mark = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.layer)
        return output, None


class LayerConfig:
    """The model's config with a few values of one layer's own."""

    def __init__(self, shared: Any, **own: Any) -> None:
        self.__dict__.update(own, shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "shared" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["shared"], name)


def resize(model: Any, family: dict[str, Any]) -> None:
    """Give each layer of `model` the widths of `model.config.per_layer_config`, in place.

    `family` is a table of module -> axes of its weight; an axis is "", "channels", "neurons", "heads" (one number per
    query head), "heads*" (head_dim numbers for each; "heads*3" three times as many), "kv*" (the same per key/value
    head), "experts", "expert_neurons" and "shared_neurons" of a mixture, or several of them joined by "+".
    """
    experts = family["experts"]
    for index, layer in enumerate(model.base_model.get_submodule(family["layers"])):
        config = model.config.per_layer_config[index]
        heads = config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        sizes = {
            "channels": config.hidden_size,
            "neurons": getattr(config, family["neurons"]),
            "heads": heads,
            "heads*": heads * head_dim,
            "kv*": kv * head_dim,
        }
        skip = getattr(config, "skip", [])
        for kind in ("attention", "ffn"):
            block = family[kind]
            if kind in skip:
                _remove(layer, block, index if kind == "attention" else None)
                continue
            tensors = block["tensors"]
            if kind == "ffn" and experts and experts["packed"] in dict(layer.named_modules()):
                tensors = experts["tensors"]
                sizes |= _mixture(layer, experts, config)
            for name, axes in tensors.items():
                if any(axes) and "" not in axes:
                    shape = [sum(_size(part, sizes) for part in axis.split("+")) for axis in axes]
                    _reshape(layer, name, shape, family["conv1d"])
        if "attention" not in skip and "heads" not in family["whole"]:
            attention = layer.get_submodule(family["attention"]["module"])
            _recount(attention, heads, kv, head_dim)
            if family["own_config"]:
                attention.config = LayerConfig(model.config, num_attention_heads=heads, num_key_value_heads=kv)


def _size(part: str, sizes: dict[str, int]) -> int:
    name, star, times = part.partition("*")
    return sizes[name + star] * int(times or 1)


def _mixture(layer: Any, experts: dict[str, Any], config: Any) -> dict[str, int]:
    """The sizes of a layer with experts, which its modules are told."""
    count, neurons = getattr(config, experts["count"]), getattr(config, experts["neurons"])
    shared = getattr(config, experts["shared_neurons"], None) or 0
    if not shared and experts["shared_count"]:
        shared = neurons * getattr(config, experts["shared_count"])
    for name in (experts["packed"], experts["router"], experts["packed"].rpartition(".")[0]):
        module = layer.get_submodule(name)
        for key, value in (("num_experts", count), ("intermediate_dim", neurons), ("ffn_dim", neurons)):
            if hasattr(module, key):
                setattr(module, key, value)
    return {"experts": count, "expert_neurons": neurons, "shared_neurons": shared}


def _remove(layer: Any, block: dict[str, Any], index: int | None) -> None:
    out: Any = dict(layer.named_modules()).get(block["out"])  # a layer with experts has none
    bias: Any = None if out is None else out.bias
    inside = block["out"].startswith(block["module"] + ".")
    inner = block["out"][len(block["module"]) + 1 :] if inside else ""
    layer.set_submodule(block["module"], Removed(inner, bias, index))
    if not inside:
        layer.set_submodule(block["out"], Bias(bias))
    for norm in (*block["before"], *(block["after"] if bias is None else ())):
        layer.set_submodule(norm, nn.Identity())


def _reshape(layer: Any, name: str, shape: list[int], conv1d: bool) -> None:
    """Fresh numbers of `shape`, which is [out, in], or [in, out] for GPT-2's Conv1D, for a module or a tensor."""
    linear = dict(layer.named_modules()).get(name)
    owner, leaf = (linear, "weight") if linear is not None else (layer.get_submodule(name.rpartition(".")[0]), name)
    leaf = leaf.rpartition(".")[2]
    old = getattr(owner, leaf)
    if list(old.shape) == shape:
        return
    fresh = old.new_zeros(shape)
    if isinstance(old, nn.Parameter):
        fresh = nn.Parameter(fresh)
        nn.init.normal_(fresh, std=0.02)
    setattr(owner, leaf, fresh)
    if linear is None or len(shape) != 2:
        return
    columns, rows = shape if conv1d else shape[::-1]
    if getattr(linear, "bias", None) is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    for name, value in (("in_features", columns), ("out_features", rows), ("nx", columns), ("nf", rows)):
        if hasattr(linear, name):
            setattr(linear, name, value)


def _recount(attention: Any, heads: int, kv: int, head_dim: int) -> None:
    """Set the counts which attention modules keep beside their weights; models name them differently."""
    sizes = (getattr(attention, name, None) for name in ("head_dim", "attention_head_size", "head_size"))
    built = next(filter(None, sizes), head_dim)
    if built != head_dim and hasattr(attention, "scaling") and getattr(attention, "scale_attn_weights", True):
        attention.scaling *= (built / head_dim) ** 0.5
    counts = {
        "num_heads": heads,
        "num_attention_heads": heads,
        "n_heads": heads,
        "num_key_value_heads": kv,
        "num_key_value_groups": heads // kv,
        "head_dim": head_dim,
        "attention_head_size": head_dim,
        "head_size": head_dim,
        "all_head_size": heads * head_dim,
        "embed_dim": heads * head_dim,
        "hidden_size": heads * head_dim,
        "split_size": heads * head_dim,
    }
    for name, value in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


class Resized:
    """Mixed in before a transformers class: builds it with the layers its `per_layer_config` describes."""

    family: dict[str, Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        # Reading a width from the whole model's config warns while per-layer values are set, and a class that
        # builds its base model by AutoModel would ask about the code named in auto_map: hide both meanwhile.
        hidden = {
            name: config.__dict__.pop(name) for name in ("_heterogeneity_spec", "auto_map") if name in config.__dict__
        }
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.__dict__.update(hidden)
        resize(self, self.family)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: weights are named as those of the class it is mixed into, whose checkpoints list experts one by one."""
        return False
