"""Making a selection real: which rows and columns stay, the new config, the corrections; and silencing instead."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from secateur.errors import InputError, UnsupportedError
from secateur.subjects import saving
from secateur.subjects.layout import Layout, Place, Widths
from secateur.vocabulary import Selection, Site, Units

__all__ = ["Kept", "build", "correct_norms", "fold_layer_scale", "kept", "new_config", "resolve", "silenced", "sliced"]


@dataclass
class Kept:
    """Indices of the units that stay, per layer that stays; channels is None where they stay whole."""

    layers: list[int]
    channels: Tensor | None
    parts: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Layer -> indices of its "heads", "kv" and "neurons"."""

    def widths(self) -> list[Widths]:
        """The widths of the result, layer by layer."""
        return [Widths(*(len(self.parts[index][name]) for name in ("heads", "kv", "neurons"))) for index in self.layers]


def resolve(selection: Selection, sites: Mapping[str, Site]) -> dict[str, np.ndarray]:
    """The selection as NumPy booleans with ownership applied; `InputError` where it does not fit the sites."""
    keep = {}
    for name, stays in selection.keep.items():
        if name not in sites:
            shown = ", ".join(list(sites)[:6])
            raise InputError(f"selection names {name}, which this model has not: its sites are {shown}, ...")
        array = stays.detach().cpu().numpy() if isinstance(stays, Tensor) else np.asarray(stays)
        if array.shape != (sites[name].count,):
            raise InputError(f"selection has {tuple(array.shape)} entries at {name}: expected ({sites[name].count},)")
        keep[name] = array.astype(bool)
    return dict(Units(sites).effective(keep))


def kept(layout: Layout, keep: Mapping[str, np.ndarray]) -> Kept:
    """The indices that stay. Refuses what leaves nothing, and unequal query heads in the groups of a layer."""

    def indices(site: str, count: int) -> Tensor:
        return torch.from_numpy(np.flatnonzero(keep[site])) if site in keep else torch.arange(count)

    channels = indices("channels", layout.hidden_size)
    layers = indices("layers", len(layout.widths)).tolist()
    result = Kept(layers, channels if len(channels) < layout.hidden_size else None)
    for index in layers:
        width, name = layout.widths[index], f"layers.{index}"
        heads = kv = indices(f"{name}.heads", width.heads)
        if width.grouped and len(heads):
            kv = indices(f"{name}.kv_groups", width.kv)
            counts = torch.bincount(heads // (width.heads // width.kv), minlength=width.kv)[kv].tolist()
            if len(set(counts)) > 1:
                raise UnsupportedError(
                    f"selection keeps {counts} query heads in the KV groups of {name}.heads: grouped attention "
                    "needs equally many in each; rank inside the groups"
                )
        result.parts[index] = {"heads": heads, "kv": kv, "neurons": indices(f"{name}.neurons", width.neurons)}
    if not layers or not len(channels) or not any(width.heads or width.neurons for width in result.widths()):
        what = (
            "no layer" if not layers else "no channel" if not len(channels) else "no attention and no FFN in any layer"
        )
        raise InputError(f"selection keeps {what}: nothing would remain to run")
    return result


def _positions(layout: Layout, axis: str, layer: int | None, stays: Kept) -> Tensor | None:
    """Positions along one stored axis that stay; None: all of them."""
    if axis in ("", "channels"):
        return stays.channels if axis else None
    assert layer is not None
    width, parts = layout.widths[layer], stays.parts[layer]
    pieces, offset = [], 0
    for part in axis.split("+"):
        name = part.removesuffix("*")
        block = layout.head_dim if part.endswith("*") else 1
        pieces.append(offset + (parts[name][:, None] * block + torch.arange(block)).flatten())
        offset += getattr(width, name) * block
    return torch.cat(pieces)


def sliced(layout: Layout, stays: Kept) -> dict[str, Tensor]:
    """The state dict of the result: every tensor cut along its axes and renamed to its new layer, never shared."""
    number = {old: new for new, old in enumerate(stays.layers)}
    state = {}
    for name, tensor in layout.model.state_dict().items():
        place, new_name = layout.place(name), name
        if place.layer is not None:
            if place.layer not in number or _goes(layout, place, stays):
                continue
            new_name = f"{layout.prefix}{layout.family.layers}.{number[place.layer]}.{place.module}.{place.leaf}"
        result = tensor.detach()
        for dim, axis in enumerate(place.axes or ()):
            index = _positions(layout, axis, place.layer, stays)
            if index is not None:
                result = result.index_select(dim, index.to(tensor.device))
        state[new_name] = result.clone() if result.data_ptr() == tensor.data_ptr() else result
    return state


def _goes(layout: Layout, place: Place, stays: Kept) -> bool:
    parts = stays.parts[place.layer or 0]
    emptied = {"attention": not len(parts["heads"]), "ffn": not len(parts["neurons"])}
    return emptied.get(place.block, False) and layout.leaves_with_block(place)


def new_config(layout: Layout, widths: list[Widths], channels: int, layers: list[int], layer_index: list[int]) -> Any:
    """The config of a model of these widths: a plain one where it can say it, else with `per_layer_config`.

    `layers` are the current indices of the layers that stay, `layer_index` their original ones, which the config
    keeps under "secateur".
    """
    family, old = layout.family, layout.model.config
    data = old.to_dict()
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", "architectures"):
        data.pop(name, None)
    native = {
        name: type(old).attribute_map.get(name, name)
        for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    }
    heads_name = native["num_attention_heads"]
    data[native["num_hidden_layers"]], data[native["hidden_size"]] = len(widths), channels
    if data.get("layer_types"):
        data["layer_types"] = [data["layer_types"][index] for index in layers]
    data["secateur"] = (data.get("secateur") or {}) | {"layer_index": layer_index}

    has_kv = "num_key_value_heads" in data
    heads = max(width.heads for width in widths) or data[heads_name]
    kv = max(width.kv for width in widths) or data.get("num_key_value_heads") or heads
    neurons = max(width.neurons for width in widths) or layout.widths[0].neurons or 4 * channels
    if layout.fixed_ratio:
        expressible = heads == data[heads_name]
    elif family.states_head_dim:
        expressible = not family.heads_divide or channels % heads == 0
    else:
        expressible = channels == heads * layout.head_dim
    plain = expressible and all(width == Widths(heads, kv, neurons) for width in widths)
    if layout.fixed_ratio:
        heads = data[heads_name]  # the class refuses any other count; every layer states its own
    elif not plain and (family.heads_divide or not family.states_head_dim):
        heads = math.gcd(channels, heads)  # the class refuses other counts; every layer states its own
    data |= {heads_name: heads, family.neurons: neurons}
    if has_kv:
        data["num_key_value_heads"] = min(kv, heads)
    if family.states_head_dim or not plain:
        data["head_dim"] = layout.head_dim
    if not plain:
        data["allow_global_per_layer_attribute_access"] = True
        data["per_layer_config"] = {
            index: _overrides(width, has_kv, family.neurons) for index, width in enumerate(widths)
        }
    config = type(old).from_dict(data)
    config._attn_implementation = old._attn_implementation
    return config if plain else saving.mark(config)


def _overrides(width: Widths, has_kv: bool, neurons: str) -> dict[str, Any]:
    """One layer's entry of `per_layer_config`."""
    own: dict[str, Any] = {}
    if width.heads:
        own["num_attention_heads"] = width.heads
        if has_kv:
            own["num_key_value_heads"] = width.kv
    if width.neurons:
        own[neurons] = width.neurons
    skip = [kind for kind, count in (("attention", width.heads), ("ffn", width.neurons)) if not count]
    return own | ({"skip": skip} if skip else {})


def build(layout: Layout, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of `config` with exactly the tensors of `state`, by the class that reloads it."""
    old = layout.model
    architecture = saving.architecture(type(old), config, layout.family)
    with no_init_weights():
        model: PreTrainedModel = architecture(config)
    if getattr(old, "pooler", model) is None:  # opened or made without one
        model.pooler = None
    model.load_state_dict(dict(state), strict=True, assign=True)
    model.tie_weights()
    model.to(old.device)
    if old.can_generate():
        model.generation_config = copy.deepcopy(old.generation_config)
    model.requires_grad_(True)
    return model.train(old.training)


# ---------------------------------------------------------------------------------------------------- corrections


def correct_norms(layout: Layout, state: dict[str, Tensor], config: Any, channels: int) -> list[str]:
    """RMSNorm over d of D channels, made equal to D channels of which D - d are zero; changes state and config.

    w / sqrt(S/D + eps) = w sqrt(D/d) / sqrt(S/d + eps D/d), S the sum of squares. The config has one epsilon,
    which per-head norms of queries and keys share: their inputs grow by sqrt(D/d), and so does the root.
    Gemma multiplies embeddings by sqrt(hidden_size): the table grows by sqrt(D/d), and where the LM head is
    the same table, the final norm drops its factor. Returns notes.
    """
    family = layout.family
    if not hasattr(config, "rms_norm_eps"):
        return []
    ratio = layout.hidden_size / channels
    root = math.sqrt(ratio)
    config.rms_norm_eps = config.rms_norm_eps * ratio
    tied = bool(getattr(config, "tie_word_embeddings", False)) and layout.model.get_output_embeddings() is not None
    folded = family.scaled_embedding and tied
    for name, tensor in state.items():
        place = layout.place(name)
        if place.axes == ("channels",) and place.leaf == "weight" and not (folded and place.layer is None):
            tensor.copy_((tensor.double() + family.norm_offset) * root - family.norm_offset)
        elif place.module in family.qk_norms or (family.scaled_embedding and place.module == "embed_tokens"):
            tensor.mul_(root)
        elif folded and place.module == "lm_head":
            tensor.copy_(state[f"{layout.prefix}embed_tokens.weight"])
    if not folded:
        return []
    return ["sqrt(hidden_size) was folded into the tied embeddings: logits are exact, the final hidden state is scaled"]


def fold_layer_scale(layout: Layout, state: dict[str, Tensor], config: Any, layers: list[int]) -> None:
    """GPT-2 may divide attention by the layer's number: fold it into the queries before layers move."""
    if not getattr(config, "scale_attn_by_inverse_layer_idx", False) or len(layers) == len(layout.widths):
        return
    config.scale_attn_by_inverse_layer_idx = False
    for new, old in enumerate(layers):
        for leaf in ("weight", "bias"):
            tensor = state.get(f"{layout.prefix}{layout.family.layers}.{new}.attn.c_attn.{leaf}")
            if tensor is not None:
                tensor[..., : tensor.shape[-1] // 3] /= old + 1


# ------------------------------------------------------------------------------------------------------ silencing


def silenced(layout: Layout, stays: Kept) -> PreTrainedModel:
    """A copy of the model, same shapes, in which the units that go are zero.

    Layers that go are bypassed; LayerNorms run over the channels that stay.
    """
    model = copy.deepcopy(layout.model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            place = layout.place(name)
            if place.layer is not None and place.layer not in stays.parts:
                continue
            for dim, axis in enumerate(place.axes or ()):
                index = _positions(layout, axis, place.layer, stays)
                if index is not None:
                    gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                    gone[index] = False
                    tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0.0)
    for path in layout.norms() if stays.channels is not None else ():
        norm = model.get_submodule(path)
        if isinstance(norm, nn.LayerNorm) and stays.channels is not None:
            model.set_submodule(path, _KeptLayerNorm(norm, stays.channels))
    for number, path in enumerate(layout.layers()):
        if number not in stays.parts:
            model.set_submodule(path, _Bypass())
    return model


class _Bypass(nn.Module):
    """A layer that passes its input on."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _KeptLayerNorm(nn.Module):
    """LayerNorm over some channels; the others come out as zero."""

    def __init__(self, norm: Any, channels: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.channels = channels.to(norm.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        index = self.channels
        bias = None if self.bias is None else self.bias[index]
        normed = nn.functional.layer_norm(x[..., index], (len(index),), self.weight[index], bias, self.eps)
        spread: Tensor = torch.zeros_like(x).index_copy(-1, index, normed)
        return spread
