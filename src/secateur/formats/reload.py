"""Rebuild the layers of a pruned transformer from `config.per_layer_config`.

transformers keeps per-layer widths in the config but builds every layer alike. `Resized`, mixed into the model's
own class, builds the model as usual and then gives each layer its own widths, and puts `Removed` where a
sub-block has gone. This file imports only torch and transformers: a copy of it travels with the weights of a
heterogeneous result, so that it loads anywhere.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Table = dict[str, Any]
"""Part of a family's table, as plain data."""


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

    inner: name of the output linear inside the sub-block's module, "" where it comes after the module. gives: values
    in the tuple that the module returned, 0 where it returned the states alone.
    A decoder's cache tells the sequence length by its layers, so a removed attention (`layer` is its index)
    still leaves one number per token there, [batch, 1, tokens, 1]. The table of positions that all layers of a stack
    share is in the first one, and stays there: `tables` are such modules by name. Models ask sub-blocks for what they
    hold, to fill it with first values, say: `was`, which is without memory, answers.
    """

    def __init__(
        self,
        was: nn.Module,
        inner: str,
        bias: torch.Tensor | None,
        layer: int | None,
        gives: int,
        tables: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.layer, self.gives, self.biased = inner, layer, gives, False
        if inner and bias is not None:
            *outer, last = inner.split(".")
            place: nn.Module = self
            for name in outer:
                place.add_module(name, nn.Module())
                place = place.get_submodule(name)
            place.add_module(last, Bias(bias))
            self.biased = True
        self.tables = list(tables or {})
        for name, table in (tables or {}).items():
            self.add_module(name, table)
            delattr(was, name)
        self.__dict__["was"] = was.to("meta")  # no module of this one
        for name in self.tables:
            was.add_module(name, self.get_submodule(name))

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "was" not in self.__dict__:
                raise
            found: torch.Tensor | nn.Module = getattr(self.__dict__["was"], name)
            return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """States [B, S, d], and more -> what the module that stood here would have returned, with nothing computed."""
        hidden_states = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        hidden_states = kwargs.get("hidden_states", hidden_states)
        if not self.inner:
            output = hidden_states[..., :0]
        elif self.biased:
            output = self.get_submodule(self.inner)(hidden_states)
        else:
            output = torch.zeros_like(hidden_states)  # as large as what layers may add to in place
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)  # of any name
        positions = kwargs.get("position_bias")  # of all layers, which each hands to the next
        if self.tables and positions is None:
            new, seen = hidden_states.shape[1], 0 if cache is None else cache.get_seq_length(self.layer)
            positions = self.__dict__["was"].compute_bias(new, seen + new, hidden_states.device, seen)
        if cache is not None and self.layer is not None:
            mark = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache = getattr(cache, "self_attention_cache", cache)  # of a decoder that has an encoder
            cache.update(mark, mark, self.layer)
        return (output, *[positions, *[None] * self.gives][: self.gives - 1]) if self.gives else output


class Gone(nn.Identity):
    """Stands where a norm was, and passes its input on; layers may ask for the data type of its weight."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight = getattr(norm, "weight", None)
        self.register_buffer("weight", None if weight is None else weight.detach()[:0].clone(), persistent=False)


class LayerConfig:
    """The model's config with a few values of one layer's own."""

    def __init__(self, shared: Any, **own: Any) -> None:
        self.__dict__.update(own, shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "shared" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["shared"], name)


def list_configs(config: Any, count: int) -> list[Any]:
    """What the config says of each of `count` layers, those of an encoder before its decoder's.

    transformers' `per_layer_config` knows one list of layers; two lists have "layers" under the config's "secateur".
    """
    own = (getattr(config, "secateur", None) or {}).get("layers")
    if own is not None:
        return [LayerConfig(config, **values) for values in own]
    return [config.per_layer_config[index] for index in range(count)] if config.is_heterogeneous else [config] * count


def find_blocks(layer: nn.Module, family: Table, gone: tuple[str, ...] | list[str] = ()) -> dict[str, Table]:
    """Kind -> the sub-block of `family` that a layer has; `gone` are the kinds that a cut took away, which count.

    Layers are told apart by the modules that stand in them. Where several sub-blocks have an output of one name, it is
    the one of which the most is there.
    """
    names = dict(layer.named_modules())
    experts = family["experts"]
    found: dict[str, Table] = {}
    fits: dict[str, tuple[bool, int]] = {}
    for block in family["blocks"]:
        packed = bool(experts) and experts["packed"] in names and experts["packed"].startswith(block["module"] + ".")
        packed = packed and block["kind"] == "ffn"
        stands = (bool(block["tensors"]) and block["out"] in names) or packed
        beside = not block["beside"] or block["beside"] in names
        if not beside or not (stands or (block["kind"] in gone and block["module"] in names)):
            continue
        fit = (stands, 0 if packed else -sum(name not in names for name in block["tensors"]))
        rivals = [kind for kind, other in found.items() if kind == block["kind"] or other["module"] == block["module"]]
        if all(fit > fits[kind] for kind in rivals):
            for kind in rivals:
                del found[kind], fits[kind]
            found[block["kind"]], fits[block["kind"]] = block, fit
    return found


def resize(model: Any, family: Table) -> None:
    """Give each layer of `model` the widths of `model.config.per_layer_config`, in place.

    `family` has "blocks", the sub-blocks of its layers, each with its "tensors", a table of module -> axes of its
    weight; an axis is "", "channels", "neurons", "heads" (one number per query head), "heads*" (head_dim numbers for
    each; "heads*3" three times as many), "kv*" (the same per key/value head), "experts", "expert_neurons" (and
    "expert_neurons*2", two numbers for each) and "shared_neurons" of a mixture, "cross*" (the same per head of a
    cross-attention), "state_heads", "state_heads*", "state_heads*n" and "state_fixed" of a mixer, or several of them
    joined by "+".
    """
    experts, states = family["experts"], family.get("states")
    lists = [model.base_model.get_submodule(path) for path in family["stacks"]]
    places = [(number, layer) for layers in lists for number, layer in enumerate(layers)]
    for (index, layer), config in zip(places, list_configs(model.config, len(places)), strict=True):
        heads = getattr(config, "num_attention_heads", None) or 1
        kv = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        sizes = {
            "channels": config.hidden_size,
            "neurons": getattr(config, family["neurons"], None),
            "heads": heads,
            "heads*": heads * head_dim,
            "kv*": kv * head_dim,
            "cross*": getattr(config, "cross_heads", 0) * head_dim,
        }
        skip = getattr(config, "skip", [])
        for kind, block in find_blocks(layer, family).items():
            if kind in skip:
                decodes = len(lists) == 1 or layer in [*lists[-1]]
                _remove(layer, block, index if kind == "attention" and decodes else None, family["shares_positions"])
                continue
            tensors = block["tensors"]
            if kind == "mixer" and states:
                counts = (getattr(config, states[name]) for name in ("heads", "channels"))
                _resize_states(layer, block, states, *counts)
                sizes |= dict.fromkeys(("state_heads", "state_heads*", "state_fixed"), 0)
                tensors = {name: axes for name, axes in tensors.items() if not any("state" in axis for axis in axes)}
            if kind == "ffn" and experts and experts["packed"] in dict(layer.named_modules()):
                tensors = experts["tensors"]
                sizes |= _mixture(layer, experts, config)
            for name, axes in tensors.items():
                if any(axes) and _has(layer, name):
                    shape = [sum(_size(part, sizes) for part in axis.split("+")) if axis else -1 for axis in axes]
                    _reshape(layer, name, shape, family["conv1d"])
            if kind == "cross" and "heads" not in family["whole"]:
                attention, biased = layer.get_submodule(block["module"]), bool(family["shares_positions"])
                _recount(attention, config.cross_heads, config.cross_heads, head_dim, biased)
                if biased:
                    attention.config = LayerConfig(model.config, _attn_implementation="secateur_heads")
            if kind == "attention":
                attention = layer.get_submodule(block["module"])
                if "heads" in family["whole"] and not _goes_by_channels(attention, model.config, heads * head_dim):
                    continue  # all stay, each as wide as its class has made it
                biased = bool(family["shares_positions"])
                _recount(attention, heads, kv, head_dim, biased)
                if biased:
                    attention.position_heads = list(config.position_heads)
                    attention.config = LayerConfig(model.config, _attn_implementation="secateur_heads")
                if family["own_config"]:
                    attention.config = LayerConfig(model.config, num_attention_heads=heads, num_key_value_heads=kv)


def _has(layer: nn.Module, name: str) -> bool:
    """Whether a layer has that module, or that tensor: one of two kinds of layers may lack a norm or a bias."""
    owner, _, leaf = name.rpartition(".")
    names = dict(layer.named_modules())
    return name in names or getattr(names.get(owner), leaf, None) is not None


def _size(part: str, sizes: dict[str, int]) -> int:
    name, star, times = part.partition("*")
    return sizes[name + star] * int(times or 1)


def _resize_heads(layer: nn.Module, block: Table, states: Table, heads: int) -> None:
    """Give a mixer so many heads, which share nothing: what it has of each it has as often as there are heads."""
    names: dict[str, Any] = dict(layer.named_modules())
    owner, _, leaf = states["counter"].rpartition(".")
    old = getattr(names[owner], leaf)
    for name, axes in block["tensors"].items():
        owner, _, leaf = (f"{name}.weight" if name in names else name).rpartition(".")
        shape = getattr(names[owner], leaf).shape
        wanted = [
            size * heads // old if "state_heads" in axis else size for axis, size in zip(axes, shape, strict=True)
        ]
        _reshape_mixer(layer, name, wanted)
    for path in states["counts"]:
        owner, _, leaf = path.rpartition(".")
        setattr(names[owner], leaf, getattr(names[owner], leaf) * heads // old)


def _reshape_mixer(layer: nn.Module, name: str, wanted: list[int]) -> None:
    """Fresh numbers of a shape for a tensor of a mixer, whose convolutions have a group for each row."""
    _reshape(layer, name, wanted, False)
    module = dict(layer.named_modules()).get(name)
    if isinstance(module, nn.Conv1d):
        module.in_channels = module.out_channels = module.groups = wanted[0]
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_zeros(wanted[0]))


def _resize_states(layer: nn.Module, block: Table, states: Table, heads: int, channels: int) -> None:
    """Give a mixer so many heads, with so many channels each; what groups share stays as it is."""
    if not states["norm"] and not any("state_fixed" in axes[0] for axes in block["tensors"].values() if axes):
        _resize_heads(layer, block, states, heads)
        return
    mixer: Any = layer.get_submodule(states["module"])
    names: dict[str, Any] = dict(layer.named_modules())
    leaf = states["counter"].rpartition(".")[2]
    old = len(getattr(mixer, leaf))
    wide = names[block["out"]].weight.shape[1]
    sizes = {"channels": names[block["out"]].weight.shape[0], "state_heads": heads, "state_heads*": heads * channels}
    for name, axes in block["tensors"].items():
        if not any("state" in axis for axis in axes):
            continue
        owner, _, own = name.rpartition(".")
        shape = list(names[name].weight.shape if name in names else getattr(names[owner], own).shape)
        if "state_fixed" in axes[0]:
            parts = axes[0].split("+")
            sizes["state_fixed"] = shape[0] - parts.count("state_heads*") * wide - parts.count("state_heads") * old
        wanted = [
            sum(sizes[part] for part in axis.split("+")) if axis else size
            for axis, size in zip(axes, shape, strict=True)
        ]
        _reshape_mixer(layer, name, wanted)
    rows = heads * channels
    counts = {"num_heads": heads, "head_dim": channels, "intermediate_size": rows}
    counts["conv_dim"] = rows + sizes["state_fixed"]
    for key, value in counts.items():
        if hasattr(mixer, key):
            setattr(mixer, key, value)
    norm: Any = names.get(states["norm"])
    if hasattr(norm, "group_size"):
        norm.group_size = rows // getattr(mixer, "n_groups", 1)


def _mixture(layer: Any, experts: Table, config: Any) -> dict[str, int]:
    """The sizes of a layer with experts, which its modules are told."""
    count, neurons = getattr(config, experts["count"]), getattr(config, experts["neurons"])
    shared = getattr(config, experts["shared_neurons"], None) or 0
    if not shared and experts["shared_count"]:
        shared = neurons * getattr(config, experts["shared_count"])
    before = len(layer.get_submodule(experts["packed"]).down_proj)
    for name in (experts["packed"], experts["router"], experts["packed"].rpartition(".")[0]):
        module = layer.get_submodule(name)
        if getattr(module, "num_experts", None) == before:  # it may be that of a token, which multiplies
            module.num_experts = count
        for key in ("intermediate_dim", "ffn_dim"):
            if hasattr(module, key):
                setattr(module, key, neurons)
    if hasattr(layer.get_submodule(experts["packed"]), "intermediate_size"):
        layer.get_submodule(experts["packed"]).intermediate_size = neurons
    return {"experts": count, "expert_neurons": neurons, "expert_neurons*": neurons, "shared_neurons": shared}


def _remove(layer: Any, block: Table, index: int | None, shared: bool) -> None:
    out: Any = dict(layer.named_modules()).get(block["out"])  # a layer with experts has none
    bias: Any = getattr(out, "bias", None)
    inside = block["out"].startswith(block["module"] + ".")
    inner = block["out"][len(block["module"]) + 1 :] if inside else ""
    was = layer.get_submodule(block["module"])
    own = {name[len(block["module"]) + 1 :] for name, axes in block["tensors"].items() if not any(axes)}
    tables = {name: was.get_submodule(name) for name in own if shared and name in dict(was.named_modules())}
    layer.set_submodule(block["module"], Removed(was, inner, bias, index, block["gives"], tables))
    if not inside:
        layer.set_submodule(block["out"], Bias(bias))
    for norm in (*block["before"], *(block["after"] if bias is None else ())):
        layer.set_submodule(norm, Gone(layer.get_submodule(norm)))


def _reshape(layer: Any, name: str, shape: list[int], conv1d: bool) -> None:
    """Fresh numbers of `shape`, which is [out, in], or [in, out] for GPT-2's Conv1D, for a module or a tensor.

    Dimensions of -1 stay as they are.
    """
    linear = dict(layer.named_modules()).get(name)
    owner, leaf = (linear, "weight") if linear is not None else (layer.get_submodule(name.rpartition(".")[0]), name)
    leaf = leaf.rpartition(".")[2]
    old = getattr(owner, leaf)
    shape = [have if size < 0 else size for size, have in zip(shape, old.shape, strict=True)]
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


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_bias: torch.Tensor | None = None,
    **kwargs: object,
) -> object:
    """The model's own kind of attention, of heads that went with what the first layer says of all heads' positions.

    query [B, H, S, d]; position_bias [1, heads of the uncut model, S, S], the same for all layers.
    """
    if position_bias is not None and position_bias.shape[1] != query.shape[1]:
        kept = getattr(module, "position_heads", None)  # none of a cross-attention, whose are zeros
        position_bias = position_bias[:, :1] if kept is None else position_bias[:, kept]
    own = sys.modules[type(module).__module__].eager_attention_forward
    run: Any = ALL_ATTENTION_FUNCTIONS.get_interface(module.config.shared._attn_implementation, own)
    return run(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)


ALL_ATTENTION_FUNCTIONS.register("secateur_heads", _attend)


def _head_dim(attention: object, otherwise: int) -> int:
    """How wide its class made the heads of an attention, which may go by the number of channels."""
    sizes = (getattr(attention, name, None) for name in ("head_dim", "attention_head_size", "head_size"))
    found: int = next(filter(None, sizes), otherwise)
    return found


def _goes_by_channels(attention: object, config: object, width: int) -> bool:
    """Whether the class shares all channels out among the heads of an attention, where heads have another width."""
    heads = getattr(config, "num_attention_heads", None) or 1  # of the model: less, where they didn't divide channels
    channels: int = getattr(config, "hidden_size", 0)
    return _head_dim(attention, 0) * heads == channels != width


def _recount(attention: Any, heads: int, kv: int, head_dim: int, biased: bool = False) -> None:
    """Set the counts which attention modules keep beside their weights; models name them differently.

    biased: the class makes zeros for the positions of as many heads as others have, too, and takes that from n_heads.
    """
    built = _head_dim(attention, head_dim)
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
        if hasattr(attention, name) and not (biased and name == "n_heads"):
            setattr(attention, name, value)
    for module in attention.modules():  # a Nystromformer's convolutions have a group for each head
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == module.out_channels:
            module.in_channels = module.out_channels = module.groups = len(module.weight)


def _narrow(spec: object, names: tuple[str, ...]) -> object:
    """The values of single layers that a config holds, of these names alone."""
    whole: Any = spec
    layers = {
        index: {name: value for name, value in values.items() if name in names}
        for index, values in whole.per_layer_overrides.items()
    }
    return dataclasses.replace(
        whole,
        per_layer_overrides={index: values for index, values in layers.items() if values},
        per_layer_attributes=whole.per_layer_attributes & set(names),
        explicit_per_layer_attributes=whole.explicit_per_layer_attributes & set(names),
    )


class Resized:
    """Mixed in before a transformers class: builds it with the layers its `per_layer_config` describes."""

    family: dict[str, Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        # Reading a width from the whole model's config warns while per-layer values are set, and a class that
        # builds its base model by AutoModel would ask about the code named in auto_map: hide both meanwhile.
        hidden = {
            name: config.__dict__.pop(name) for name in ("_heterogeneity_spec", "auto_map") if name in config.__dict__
        }
        own = self.family.get("own_settings")
        if own and "_heterogeneity_spec" in hidden:  # the class reads these of single layers
            config.__dict__["_heterogeneity_spec"] = _narrow(hidden["_heterogeneity_spec"], own)
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.__dict__.update(hidden)
        resize(self, self.family)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: weights are named as those of the class it is mixed into, whose checkpoints list experts one by one."""
        return False
