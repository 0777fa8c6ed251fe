"""Apply a selection to a transformer: kept rows and columns, new config, corrections; or silence the units instead."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer import placement, saving
from secateur.subjects.transformer.blank import make_blank
from secateur.subjects.transformer.families import Family
from secateur.subjects.transformer.layout import Layout, Place, Widths
from secateur.subjects.transformer.per_layer import take_layers
from secateur.vocabulary import Selection, Site, Units

__all__ = [
    "BLOCKS",
    "Kept",
    "build",
    "compose",
    "correct",
    "correct_norms",
    "fill",
    "find_kept",
    "find_shifts",
    "fold_layer_scale",
    "layer_norms",
    "new_config",
    "new_name",
    "resolve",
    "scale_embedding",
    "silence",
    "slice_state",
    "slice_tensor",
]


_Settings = dict[str, Any]
"""The values of a config by name."""

BLOCKS = ("attention", "cross", "ffn", "mixer")
"""Kinds of sub-blocks, whose sites have one unit for each layer."""


def _kind(site: str) -> str:
    return site.rpartition(".")[2]


@dataclass
class Kept:
    """Indices of the units that stay, per layer that stays; channels is None where they stay whole."""

    layers: list[int]
    channels: Tensor | None
    parts: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Layer -> indices of its "heads", "kv", "neurons", "mixer", "cross", "experts", "shared_neurons"; of its
    "expert_neurons" one row for each expert that stays, counted inside that expert."""

    def widths(self) -> list[Widths]:
        """The widths of the result, layer by layer."""
        return [Widths(**{name: part.shape[-1] for name, part in self.parts[index].items()}) for index in self.layers]


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


def find_kept(layout: Layout, keep: Mapping[str, np.ndarray], *, corrected: bool = True) -> Kept:
    """The indices that stay. Refuses what leaves nothing, and unequal query heads in the groups of a layer.

    corrected: norms over channels are to be exact, which some families do not allow (`Family.bare_channels`).
    """

    def indices(site: str, count: int) -> Tensor:
        return torch.from_numpy(np.flatnonzero(keep[site])) if site in keep else torch.arange(count)

    channels = indices("channels", layout.hidden_size)
    layers = indices("layers", len(layout.widths)).tolist()
    result = Kept(layers, channels if len(channels) < layout.hidden_size else None)
    for index in layers:
        width, name = layout.widths[index], f"layers.{index}"
        heads = kv = indices(f"{name}.heads", width.heads)
        if width.has_groups and len(heads):
            kv = indices(f"{name}.kv_groups", width.kv)
            counts = torch.bincount(heads // (width.heads // width.kv), minlength=width.kv)[kv].tolist()
            if len(set(counts)) > 1:
                raise UnsupportedError(
                    f"selection keeps {counts} query heads in the KV groups of {name}.heads: grouped attention "
                    "needs equally many in each; rank inside the groups"
                )
        mixer = width.mixer and bool(keep["mixer"][index] if "mixer" in keep else True)
        neurons = indices(f"{name}.neurons", width.neurons)
        result.parts[index] = {"heads": heads, "kv": kv, "neurons": neurons, "mixer": torch.arange(int(mixer))}
        result.parts[index]["cross"] = indices(f"{name}.cross.heads", width.cross)
        if width.state_heads:
            result.parts[index] |= _find_states(layout, index, indices, mixer)
        if width.experts:
            result.parts[index] |= _mixture(layout, index, indices)
    for kind, why in layout.whole.items():
        if kind == "channels" and layout.family.bare_channels and not corrected:
            continue
        partly = [stays[layers] if kind in BLOCKS else stays for name, stays in keep.items() if _kind(name) == kind]
        if kind == "expert_neurons":  # those of experts that go do not count
            partly = [
                stays.reshape(width.experts, -1)[result.parts[index]["experts"]].flatten()
                for index, width in enumerate(layout.widths)
                if index in result.parts and (stays := keep.get(f"layers.{index}.{kind}")) is not None
            ]
        if any(0 < stays.sum() < len(stays) or (kind in BLOCKS and not stays.all()) for stays in partly):
            raise UnsupportedError(f"{kind} of this {layout.family.model_type} model can't be cut: {why}")
    for start, count in zip(layout.starts, layout.counts, strict=True):
        gone = set(range(start, start + min(count, layout.family.first_layers))) - set(layers)
        if layout.family.first_stays and gone:
            why = layout.family.first_stays
            first = min(gone)
            raise UnsupportedError(f"layer {first} of this {layout.family.model_type} model can't go: {why}; keep it")
        if len(layout.counts) > 1 and layers and not set(range(start, start + count)) & set(layers):
            raise UnsupportedError(
                f"selection keeps none of layers {start} to {start + count - 1}, a whole stack: keep one"
            )
    attends = ["attention" in layout.blocks(index) for index in range(len(layout.widths))]
    if any(attends) and layers and not any(attends[index] for index in layers):
        raise UnsupportedError(
            f"selection keeps no layer that has, or had, an attention: the cache of a {layout.family.model_type} model "
            "counts tokens by one; drop the attention in place of its layer"
        )
    if layout.family.experts:
        _check_alignment(layout, result, len(channels))
    if not layers or not len(channels) or not any(width.heads or width.ffn or width.mixer for width in result.widths()):
        what = (
            "no layer" if not layers else "no channel" if not len(channels) else "no attention and no FFN in any layer"
        )
        raise InputError(f"selection keeps {what}: nothing would remain to run")
    return result


def _find_states(layout: Layout, index: int, indices: Callable[[str, int], Tensor], mixer: bool) -> dict[str, Tensor]:
    """What stays of the states of a mixer; refuses other counts of heads in its groups, and a mixer without any."""
    width, name, groups = layout.widths[index], f"layers.{index}", layout.state_groups(index)
    if not mixer:
        return {kind: torch.arange(0) for kind in ("state_heads", "state_channels", "state_fixed")}
    heads = indices(f"{name}.state_heads", width.state_heads)
    channels = indices(f"{name}.state_channels", width.state_channels)
    counts = torch.bincount(heads // (width.state_heads // groups), minlength=groups).tolist()
    if len(set(counts)) > 1 or not counts[0] or not len(channels):
        raise UnsupportedError(
            f"selection keeps {counts} heads with {len(channels)} channels in the groups of {name}.state_heads: those "
            "that share B and C keep equally many, and at least one each; rank inside the groups"
        )
    return {"state_heads": heads, "state_channels": channels, "state_fixed": torch.arange(width.state_fixed)}


def compose(first: Kept, then: Kept) -> Kept:
    """What stays of a model of which `first` stays, and of that result `then`: indices of the model's own units."""
    result = Kept([first.layers[index] for index in then.layers], then.channels)
    if first.channels is not None:
        result.channels = first.channels if then.channels is None else first.channels[then.channels]
    for new, old in zip(then.layers, result.layers, strict=True):
        before, after = first.parts[old], then.parts[new]
        result.parts[old] = parts = {name: before[name][index] for name, index in after.items() if index.dim() == 1}
        if len(after.get("experts", ())):  # neurons are counted inside each expert
            parts["expert_neurons"] = before["expert_neurons"][after["experts"]].gather(1, after["expert_neurons"])
    return result


def _check_alignment(layout: Layout, stays: Kept, channels: int) -> None:
    """Refuse widths that grouped matrix products can't take: their rows are multiples of 16 bytes."""
    step = max(1, 16 // layout.model.dtype.itemsize)
    sizes = [
        (f"layers.{k}.expert_neurons", w.expert_neurons, layout.widths[k])
        for k, w in zip(stays.layers, stays.widths(), strict=True)
    ]
    odd = [("channels", channels)] if channels % step and channels != layout.hidden_size else []
    odd += [(name, size) for name, size, before in sizes if size % step and size != before.expert_neurons]
    if odd:
        name, size = odd[0]
        raise UnsupportedError(
            f"selection keeps {size} of {name}{'' if name == 'channels' else ' in each expert'}: the grouped matrix "
            f"products of experts need multiples of {step} in {str(layout.model.dtype).removeprefix('torch.')}"
        )


def _mixture(layout: Layout, index: int, indices: Callable[[str, int], Tensor]) -> dict[str, Tensor]:
    """What stays of the experts of a layer. Refuses fewer experts than the router gives a token, and unequal widths."""
    width, name = layout.widths[index], f"layers.{index}"
    experts = indices(f"{name}.experts", width.experts)
    shared = indices(f"{name}.shared_neurons", width.shared_neurons)
    if not len(experts):
        return {"experts": experts, "expert_neurons": experts.reshape(0, 0), "shared_neurons": shared}
    if len(experts) < layout.fewest_experts:
        raise UnsupportedError(
            f"selection keeps {len(experts)} experts in {name}.experts: the router gives each token "
            f"{layout.chosen} of them, so at least {layout.fewest_experts} stay (or drop {index} of ffn)"
        )
    groups = layout.expert_groups
    counts = torch.bincount(experts // (width.experts // groups), minlength=groups).tolist()
    if len(set(counts)) > 1:
        raise UnsupportedError(
            f"selection keeps {counts} experts in the groups of {name}.experts, among which the router chooses: "
            "it needs equally many in each; rank inside the groups"
        )
    flat = indices(f"{name}.expert_neurons", width.experts * width.expert_neurons)
    counts = torch.bincount(flat // width.expert_neurons, minlength=width.experts)[experts].tolist()
    if len(set(counts)) > 1 or not counts[0]:
        raise UnsupportedError(
            f"selection keeps {counts} neurons in the experts of {name}.expert_neurons: the experts of a layer are "
            "equally wide and not empty; rank inside each expert"
        )
    if width.shared_neurons and not len(shared):
        raise UnsupportedError(f"selection keeps no neuron of {name}.shared_neurons: keep at least one")
    inside = (flat % width.expert_neurons).reshape(len(experts), counts[0])
    return {"experts": experts, "expert_neurons": inside, "shared_neurons": shared}


def _positions(layout: Layout, axis: str, layer: int | None, stays: Kept) -> Tensor | None:
    """Positions along one stored axis that stay, for each expert where that is its neurons; None: all of them."""
    if axis in ("", "channels"):
        return stays.channels if axis else None
    assert layer is not None
    width, parts = layout.widths[layer], stays.parts[layer]
    names = [part.partition("*")[0] for part in axis.split("+")]
    names += ["state_channels"] if "state_heads*" in axis else []  # every head of the states keeps these
    if all(_are_all(parts[name], getattr(width, name)) for name in names):
        return None  # and layers of a kind may have sizes of their own, where such units can't be cut
    pieces, offset = [], 0
    for part in axis.split("+"):
        name, star, times = part.partition("*")
        if name == "state_heads" and star:
            block = int(times or width.state_channels)
            inside = torch.arange(block) if times else parts["state_channels"]
            pieces.append((offset + parts[name][:, None] * block + inside).flatten())
            offset += width.state_heads * block
            continue
        wide = 1 if name == "expert_neurons" else layout.head_dim
        block = wide * int(times or 1) if star else 1
        pieces.append(offset + (parts[name][..., None] * block + torch.arange(block)).flatten(-2))
        offset += getattr(width, name) * block
    return torch.cat(pieces, -1)


def _are_all(index: Tensor, count: int) -> bool:
    """Whether [..., k] indices are those of all `count` units, in their order."""
    return index.shape[-1] == count and bool((index == torch.arange(count)).all())


def slice_state(layout: Layout, stays: Kept) -> dict[str, Tensor]:
    """The state dict of the result: every tensor cut along its axes and renamed to its new layer, never shared."""
    state = {}
    for name, tensor in layout.model.state_dict().items():
        place = layout.place(name)
        target = new_name(layout, name, place, stays)
        if target is not None:
            result = slice_tensor(layout, tensor.detach(), place.axes or (), place.layer, stays)
            state[target] = result.clone() if result.data_ptr() == tensor.data_ptr() else result
    return state


def new_name(layout: Layout, name: str, place: Place, stays: Kept) -> str | None:
    """What the tensor `name` is called in the result; None where it goes with its layer or its sub-block."""
    if place.layer is None:
        return name
    if place.layer not in stays.layers or _goes(layout, place, stays):
        return None
    inner = f"{place.module}.{place.leaf}" if place.module else place.leaf
    return f"{layout.new_paths(stays.layers)[place.layer]}.{inner}"


def slice_tensor(layout: Layout, tensor: Tensor, axes: Sequence[str], layer: int | None, stays: Kept) -> Tensor:
    """What stays of `tensor`, whose dimensions are these axes of a layer; itself where all of it does."""
    for dim, axis in enumerate(axes):
        index = _positions(layout, axis, layer, stays)
        if index is None:
            continue
        index = index.to(tensor.device)
        if index.dim() == 1:
            tensor = tensor.index_select(dim, index)
        else:  # experts along dim 0, which have been chosen by now; each has its own neurons
            tensor = tensor.take_along_dim(_stretch(index, tensor, dim), dim)
    return tensor


def _stretch(each: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """What is given for each expert [E, k], as it stands along `dim` of a tensor whose first dimension is experts."""
    return each.reshape(len(each), *(each.shape[1] if other == dim else 1 for other in range(1, tensor.dim())))


def _goes(layout: Layout, place: Place, stays: Kept) -> bool:
    parts = stays.parts[place.layer or 0]
    emptied = {
        "attention": not len(parts["heads"]),
        "ffn": not len(parts["neurons"]) + len(parts.get("experts", ())),
        "mixer": not len(parts["mixer"]),
        "cross": not len(parts["cross"]),
    }
    return emptied.get(place.block, False) and layout.leaves_with_block(place)


def new_config(
    layout: Layout, widths: list[Widths], channels: int, layers: list[int], layer_index: list[int]
) -> PretrainedConfig:
    """The config of a model of these widths: a plain one where it can say it, else with `per_layer_config`.

    `layers` are the current indices of the layers that stay, `layer_index` their original ones, which the config
    keeps under "secateur".
    """
    family, old = layout.family, layout.model.config
    if family.stacks:
        return new_stacks(layout, widths, channels, layers, layer_index)
    data = old.to_dict()
    own = {int(index): values for index, values in (data.get("per_layer_config") or {}).items()}
    own = {
        new: {name: value for name, value in own[index].items() if name in family.own_settings}
        for new, index in enumerate(layers) if index in own and family.own_settings
    }  # fmt: skip
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", "architectures"):
        data.pop(name, None)
    native = _Native(type(old).attribute_map)
    data[native["num_hidden_layers"]], data[native["hidden_size"]] = len(widths), channels
    data |= take_layers(data, layers, len(layout.widths))
    data["secateur"] = (data.get("secateur") or {}) | {"layer_index": layer_index}

    blocks = [layout.blocks(index) for index in layers]
    data, plain = _say_widths(layout, blocks, widths, channels, data, native)
    plain = plain and _says_states(layout, widths, layers)
    if plain and own:
        data["per_layer_config"] = own
    if not plain:
        has_kv = "num_key_value_heads" in data
        data["allow_global_per_layer_attribute_access"] = True
        data["per_layer_config"] = {
            index: own.get(index, {}) | _overrides(width, kinds, has_kv, family, native)
            for index, (width, kinds) in enumerate(zip(widths, blocks, strict=True))
        }
    _say_beside(layout, data, plain)
    config = type(old).from_dict(data)
    config._attn_implementation = old._attn_implementation
    config._experts_implementation = getattr(old, "_experts_implementation", None)
    return config if plain else saving.mark_config(config)


def new_stacks(
    layout: Layout, widths: list[Widths], channels: int, layers: list[int], layer_index: list[int]
) -> PretrainedConfig:
    """`new_config` of a model whose config has names of its own for each list of layers.

    Where one number can't say what all layers have, the config keeps its old ones, and "secateur" the layers'.
    """
    family, old = layout.family, layout.model.config
    data = old.to_dict()
    for name in ("auto_map", "architectures"):
        data.pop(name, None)
    said = {name: value for name, value in (data.get("secateur") or {}).items() if name != "layers"}
    data["secateur"] = said | {"layer_index": layer_index}
    data[_Native(type(old).attribute_map)["hidden_size"]] = channels
    entries = set[str]()
    says, plain = dict[str, set[int]](), not channels % layout.head_dim
    for stack, start, count in zip(family.stacks, layout.starts, layout.counts, strict=True):
        stay = [place for place, layer in enumerate(layers) if start <= layer < start + count]
        data[stack.count] = len(stay)
        lists = take_layers(data, [layers[place] - start for place in stay], count)
        data |= {name: value for name, value in lists.items() if name not in entries}
        entries |= lists.keys()  # of the encoder, where both stacks are as deep (LED)
        for place in stay:
            width, old_width, kinds = widths[place], layout.widths[layers[place]], layout.blocks(layers[place])
            heads = {size for kind, size in (("attention", width.heads), ("cross", width.cross)) if kind in kinds}
            says.setdefault(stack.heads, set()).update(heads)
            if "ffn" in kinds:
                says.setdefault(stack.neurons or family.neurons, set()).add(width.neurons)
            plain = plain and all(width.has(kind) for kind in kinds) and width.kv == width.heads
            plain = plain and (family.states_head_dim or heads <= {channels // layout.head_dim})
            plain = plain and not (family.shares_positions and heads != {getattr(old, stack.heads)})  # the table's
            plain = plain and (bool(stack.neurons) or width.neurons == old_width.neurons)
    plain = plain and all(len(sizes) == 1 for sizes in says.values())
    if plain:
        data |= {name: min(sizes) for name, sizes in says.items() if name in data}
    elif channels != layout.hidden_size and not family.shares_positions:
        # a class may want heads that divide it; every layer states its own, but a table of positions has all heads
        data |= {stack.heads: math.gcd(channels, data[stack.heads]) for stack in family.stacks}
    if not plain:
        data["secateur"]["layers"] = [
            {
                "num_attention_heads": width.heads,
                "num_key_value_heads": width.kv,
                "cross_heads": width.cross,
                family.neurons: width.neurons,
                "head_dim": layout.head_dim,
                "position_heads": [*range(width.heads)],
                "skip": [kind for kind in layout.blocks(layer) if not width.has(kind)],
            }
            for layer, width in zip(layers, widths, strict=True)
        ]
    config = type(old).from_dict(data)
    config._attn_implementation = old._attn_implementation
    counted = [len(DynamicCache(config=one).layers) for one in (old, config)]
    if family.has_encoder and counted[0] >= layout.counts[-1] and counted[1] < data[family.stacks[-1].count]:
        first, last = (data[stack.count] for stack in family.stacks)
        raise UnsupportedError(
            f"selection keeps {first} of the encoder's layers and {last} of the decoder's: generation in a "
            f"{family.model_type} model caches as many as the encoder has, so keep at least as many there"
        )
    return config if plain else saving.mark_config(config)


def _say_widths(
    layout: Layout,
    blocks: Sequence[Collection[str]],
    widths: list[Widths],
    channels: int,
    data: _Settings,
    native: Mapping[str, str],
) -> tuple[_Settings, bool]:
    """`data` with the widths that most layers have, and whether they say all.

    blocks: of each layer, the kinds of sub-blocks that the class gives it.
    """
    family, data = layout.family, dict(data)
    heads_name = native["num_attention_heads"]
    attends = family.attends
    heads = max(width.heads for width in widths) or data.get(heads_name) or 1
    kv = max(width.kv for width in widths) or data.get("num_key_value_heads") or heads
    neurons = max(width.neurons for width in widths) or max(width.neurons for width in layout.widths)
    neurons = neurons or data.get(family.neurons) or 1
    mixture = _widest(layout, widths)
    stays = layout.fixed_ratio or family.keeps_heads
    if stays:
        expressible = heads == data[heads_name]
    elif not attends:
        expressible = True
    elif family.states_head_dim:
        expressible = not family.heads_divide or channels % heads == 0
    else:
        expressible = channels == heads * layout.head_dim
    states = [max(getattr(width, name) for width in widths) for name in ("state_heads", "state_channels")]
    whole = replace(Widths(heads, kv, neurons, mixture.experts, mixture.expert_neurons, mixture.shared_neurons, 1),
                    state_heads=states[0], state_channels=states[1])  # fmt: skip
    if family.states and all(states):
        data |= {family.states.heads: states[0], family.states.channels: states[1]}
    before = {width.neurons for width in layout.widths if width.neurons}
    said = family.states_neurons or all({width.neurons} <= before | {0} for width in widths)
    if family.experts and family.experts.neurons == family.neurons and mixture.experts:  # one number says both
        said = said and {width.neurons for width in widths} <= {0, mixture.expert_neurons}
    plain = expressible and said and all(map(partial(_is_whole, whole), widths, blocks))
    if stays or (not plain and not family.states_head_dim and channels == layout.hidden_size):
        heads = data.get(heads_name)  # the class refuses others, or knows head_dim by it; every layer states its own
    elif not plain and (family.heads_divide or not family.states_head_dim):
        heads = math.gcd(channels, heads)  # the class refuses other counts; every layer states its own
    if attends:
        data[heads_name] = heads
    if any(width.neurons for width in (*widths, *layout.widths)):
        data |= {family.neurons: neurons} if family.states_neurons or not plain else {}
    plain = _say_mixture(layout, widths, mixture, data, plain)
    if "num_key_value_heads" in data and attends and "num_key_value_heads" not in family.own_settings:
        data["num_key_value_heads"] = min(kv, heads)
    derived = isinstance(inspect.getattr_static(type(layout.model.config), "head_dim", None), property)
    derived = derived or "head_dim" in family.own_settings
    if attends and not derived and (family.states_head_dim or not plain):
        data["head_dim"] = layout.head_dim
    return data, plain


def _says_states(layout: Layout, widths: list[Widths], layers: list[int]) -> bool:
    """Whether the class gives mixers as many heads by its config; layers: those that stay."""
    states = layout.family.states
    if states is None or states.says_heads:
        return True
    pairs = zip(widths, layers, strict=True)
    whole = all(width.state_heads in (0, layout.widths[layer].state_heads) for width, layer in pairs)
    return whole and states.heads not in layout.model.config.to_dict()  # where an earlier cut has said it


def _say_beside(layout: Layout, data: _Settings, plain: bool) -> None:
    """Write into `data` what each head of a mixer has several of, and leave out what unequal layers alone must say."""
    states = layout.family.states
    if states is None:
        return
    if states.beside:
        old = layout.model.config
        each = getattr(old, states.beside) // getattr(old, states.heads)
        for one in (data, *(data.get("per_layer_config") or {}).values()):
            if states.heads in one:
                one[states.beside] = each * one[states.heads]
    for name in ("state_heads", "state_channels") if plain else ():
        data.pop(name, None)


def _is_whole(whole: Widths, width: Widths, kinds: Collection[str]) -> bool:
    """Whether a layer has all of its sub-blocks, of the widths of all layers."""
    if not all(width.has(kind) for kind in kinds):
        return False
    names = ["heads", "kv"] if width.heads else []
    names += ["neurons"] if width.neurons else []
    names += ["experts", "expert_neurons", "shared_neurons"] if width.experts else []
    names += ["state_heads", "state_channels"] if width.state_heads else []
    return all(getattr(width, name) == getattr(whole, name) for name in names)


class _Native(dict[str, str]):
    """A config's common names -> the names it writes."""

    def __missing__(self, name: str) -> str:
        return name


def _widest(layout: Layout, widths: list[Widths]) -> Widths:
    """The widths of the layers with experts: of all of them where they are alike, else the largest."""
    mixtures = [width for width in widths if width.experts] or [Widths(0, 0, 0)]
    names = ("experts", "expert_neurons", "shared_neurons")
    return Widths(0, 0, 0, *(max(getattr(width, name) for width in mixtures) for name in names))


def _say_mixture(layout: Layout, widths: list[Widths], mixture: Widths, data: _Settings, plain: bool) -> bool:
    """Write what the config says of experts into `data`; whether the config class still can say all that there is."""
    experts = layout.family.experts
    if experts is None:
        return plain
    # Which layers are dense is asked by index, and indices move when layers go, all those with experts too.
    dense = [index for index, width in enumerate(widths) if width.neurons]
    if experts.dense == "mlp_only_layers":
        data |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    elif experts.dense:
        data[experts.dense] = max(dense, default=-1) + 1
    if not mixture.experts:
        return plain
    native = _Native(type(layout.model.config).attribute_map)
    data |= {native[experts.count]: mixture.experts, experts.neurons: mixture.expert_neurons}
    if experts.shared_count:
        times, rest = divmod(mixture.shared_neurons, mixture.expert_neurons)
        data[experts.shared_count], plain = max(times, 1), plain and not rest
        data.pop(experts.shared_neurons, None)
    if experts.shared and not (experts.shared_count and plain):
        data[experts.shared_neurons] = mixture.shared_neurons
    if len({width.experts for width in widths if width.experts}) > 1:
        data["output_router_logits"] = False  # the class stacks those of all layers, which are of many widths
    return plain


def _overrides(
    width: Widths, kinds: Collection[str], has_kv: bool, family: Family, native: Mapping[str, str]
) -> dict[str, object]:
    """One layer's entry of `per_layer_config`; kinds: of the sub-blocks that the class gives it."""
    own: dict[str, Any] = {}
    if width.heads:
        own["num_attention_heads"] = width.heads
        if has_kv:
            own["num_key_value_heads"] = width.kv
    if width.neurons:
        own[family.neurons] = width.neurons
    if width.experts and family.experts:
        own |= {native[family.experts.count]: width.experts, family.experts.neurons: width.expert_neurons}
        if family.experts.shared:
            own[family.experts.shared_neurons] = width.shared_neurons
    if width.state_heads and family.states:
        own |= {family.states.heads: width.state_heads, family.states.channels: width.state_channels}
    skip = [kind for kind in kinds if not width.has(kind)]
    return own | ({"skip": skip} if skip else {})


def build(
    layout: Layout, config: PretrainedConfig, state: Mapping[str, Tensor], stays: Kept | None = None
) -> PreTrainedModel:
    """A model of `config` with exactly the tensors of `state`, by the class that reloads it.

    It lies where the old one does. stays: what does, where layers or heads go, for settings of generation and a map of
    devices, which speak of them by number.

    Raises `UnsupportedError` where the class has other tensors by `config`, or does not write one that was cut.
    """
    old = layout.model
    whole = old.state_dict()
    for name in sorted(old._keys_to_ignore_on_save or ()):
        if name in state and state[name].shape != whole[name].shape:
            raise UnsupportedError(f"{type(old).__name__} writes no {name}, and makes another one than is left")
    model = make_blank(saving.architecture(type(old), config, layout.family), config, old.dtype)
    if getattr(old, "pooler", model) is None:  # opened or made without one
        model.pooler = None
    fill(model, state)
    placement.place_like(model, layout, None if stays is None else stays.layers)
    if old.can_generate():
        model.generation_config = copy.deepcopy(old.generation_config)
        if stays is not None and getattr(old.generation_config, "alignment_heads", None):
            _renumber_alignment(layout, model, stays)
    model.requires_grad_(True)
    return model.train(old.training)


def fill(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Give `model` the tensors of `state`; raise `UnsupportedError` where its class has others by its config."""
    own = model.state_dict()
    lacking, other = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    unequal = [name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape]
    if lacking or other or unequal:
        name = (lacking or other or unequal)[0]
        ours, theirs = (tuple(one[name].shape) if name in one else "none" for one in (own, state))
        raise UnsupportedError(f"{type(model).__name__} has {name} {ours} by its config, and {theirs} would be left")
    model.load_state_dict(dict(state), strict=True, assign=True)
    model.tie_weights()


def _renumber_alignment(layout: Layout, model: PreTrainedModel, stays: Kept) -> None:
    """[layer of the decoder, head of its cross-attention] pairs that tell times of words, by what stays (Whisper)."""
    start, found = layout.starts[-1], list[list[int]]()
    layers = [layer for layer in stays.layers if layer >= start]
    for number, head in model.generation_config.alignment_heads:
        heads = stays.parts[start + number]["cross"].tolist() if start + number in layers else []
        if head in heads:
            found.append([layers.index(start + number), heads.index(head)])
    if found:
        model.generation_config.alignment_heads = found
    else:  # without any, the class says by itself that it can't tell times
        del model.generation_config.alignment_heads


# ---------------------------------------------------------------------------------------------------- corrections


def correct_norms(
    layout: Layout, state: dict[str, Tensor], config: PretrainedConfig, ratio: float, *, centred: bool = False
) -> list[str]:
    """RMSNorm over d of D channels, made equal to D channels of which D - d are zero; changes state and config.

    ratio: D / d. centred: the mean of the channels is zero, so that a LayerNorm does what an RMSNorm does.
    w / sqrt(S/D + eps) = w sqrt(D/d) / sqrt(S/d + eps D/d), S the sum of squares. The config has one epsilon,
    which per-head norms of queries and keys share: their inputs grow by sqrt(D/d), and so does the root.
    Gemma multiplies embeddings by sqrt(hidden_size): the table grows by sqrt(D/d), and where the LM head is
    the same table, the final norm drops its factor. Returns notes.
    """
    family = layout.family
    epsilons = [name for name, value in config.to_dict().items() if "eps" in name and isinstance(value, float)]
    if len(epsilons) != 1 or (layer_norms(layout) and not centred):
        return []
    root = math.sqrt(ratio)
    grown = scale_embedding(family, layout.hidden_size) / scale_embedding(family, config.hidden_size)
    setattr(config, epsilons[0], getattr(config, epsilons[0]) * ratio)
    tied = bool(getattr(config, "tie_word_embeddings", False)) and layout.model.get_output_embeddings() is not None
    folded = family.scaled_embedding and tied
    for name, tensor in state.items():
        place = layout.place(name)
        if place.axes == ("channels",) and place.leaf == "weight":
            factor = root / grown if folded and place.layer is None else root
            tensor.copy_((tensor.double() + family.norm_offset) * factor - family.norm_offset)
        elif place.module in family.qk_norms:
            tensor.mul_(root)
        elif (family.scaled_embedding and place.module == "embed_tokens") or (folded and place.module == "lm_head"):
            tensor.mul_(grown)
    if not folded:
        return []
    return ["sqrt(hidden_size) was folded into the tied embeddings: logits are exact, the final hidden state is scaled"]


def scale_embedding(family: Family, channels: int) -> float:
    """What embeddings of so many channels are multiplied by."""
    root = torch.tensor(channels, dtype=torch.float64).sqrt()
    return float(root.bfloat16() if family.rounds_scale else root)


def correct(
    layout: Layout,
    state: dict[str, Tensor],
    stays: Kept,
    ratio: float,
    layer_index: list[int],
    *,
    centred: bool = False,
) -> tuple[PretrainedConfig, list[str]]:
    """What a cut does beside slicing: the config of the result, changes of its weights `state`, and notes on them.

    ratio: D / d where norms are to be exact for d of D channels, else 1. layer_index: see `new_config`. centred: see
    `correct_norms`.
    """
    channels = layout.hidden_size if stays.channels is None else len(stays.channels)
    config = new_config(layout, stays.widths(), channels, stays.layers, layer_index)
    for place, own in enumerate(config.secateur.get("layers", ()) if layout.family.shares_positions else ()):
        columns = layout.position_heads(stays.layers[place])
        own["position_heads"] = [columns[head] for head in stays.parts[stays.layers[place]]["heads"].tolist()]
    notes = [] if ratio == 1 else correct_norms(layout, state, config, ratio, centred=centred)
    fold_layer_scale(layout, state, config, stays.layers)
    return config, notes


def layer_norms(layout: Layout) -> list[str]:
    """Module paths of the norms over the channels that subtract a mean."""
    return [name for name in layout.norms() if isinstance(layout.model.get_submodule(name), nn.LayerNorm)]


def find_shifts(layout: Layout) -> list[str]:
    """Module paths of the norms among `layer_norms` that add a shift: a channel that is zero comes out as that."""
    return [name for name in layer_norms(layout) if layout.model.get_submodule(name).bias is not None]


def fold_layer_scale(layout: Layout, state: dict[str, Tensor], config: PretrainedConfig, layers: list[int]) -> None:
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


def silence(layout: Layout, stays: Kept, *, corrected: bool = True) -> PreTrainedModel:
    """A copy of the model, same shapes, in which the units that go are zero.

    Layers that go are bypassed; LayerNorms run over the channels that stay, and not `corrected` ones of another kind.
    """
    model = copy.deepcopy(layout.model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            place = layout.place(name)
            if place.layer is not None and place.layer not in stays.parts:
                continue
            if place.layer is not None and _goes(layout, place, stays):
                tensor.zero_()
                continue
            for dim, axis in enumerate(place.axes or ()):
                index = _positions(layout, axis, place.layer, stays)
                if index is None:
                    continue
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                if index.dim() == 1:
                    gone[index] = False
                    tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0.0)
                    continue
                mine, experts = gone.repeat(len(tensor), 1), stays.parts[place.layer or 0]["experts"]
                mine[experts] = mine[experts].scatter(-1, index, False)
                tensor.masked_fill_(_stretch(mine, tensor, dim).to(tensor.device), 0.0)
        for number in stays.parts:
            _bar(layout, model, number, stays.parts[number].get("experts"))
            _rescale(layout, model, number, stays.parts[number])
    for path in layout.norms() if stays.channels is not None else ():
        norm = model.get_submodule(path)
        if isinstance(norm, nn.LayerNorm) and stays.channels is not None:
            model.set_submodule(path, _KeptLayerNorm(norm, stays.channels))
        elif stays.channels is not None and not corrected:
            model.set_submodule(path, _RescaledNorm(norm, len(stays.channels) / layout.hidden_size))
    for number, path in enumerate(layout.layers()):
        if number not in stays.parts:
            model.set_submodule(path, _Bypass(model.get_submodule(path)))
    return model


def _rescale(layout: Layout, model: PreTrainedModel, layer: int, parts: Mapping[str, Tensor]) -> None:
    """Let the norm of a mixer's states see the heads and channels that stay alone."""
    width, states = layout.widths[layer], layout.family.states
    if states is None or not states.norm or not len(parts.get("state_heads", ())):
        return
    share = len(parts["state_heads"]) * len(parts["state_channels"]) / (width.state_heads * width.state_channels)
    if share < 1:
        inside = model.get_submodule(layout.layers()[layer])
        inside.set_submodule(states.norm, _RescaledNorm(inside.get_submodule(states.norm), share))


def _bar(layout: Layout, model: PreTrainedModel, layer: int, experts: Tensor | None) -> None:
    """Keep the router of a layer from the experts that go."""
    family, count = layout.family, layout.widths[layer].experts
    if experts is None or family.experts is None or not 0 < len(experts) < count:
        return
    gone = torch.ones(count, dtype=torch.bool)
    gone[experts] = False
    inside = model.get_submodule(layout.layers()[layer])
    for name, axes in family.experts.tensors.items():
        owner, _, leaf = name.rpartition(".")
        bias = getattr(inside.get_submodule(owner), leaf, None) if axes == ("experts",) else None
        if bias is not None:  # DeepSeek-V3 adds it to the scores it chooses by
            bias.data.masked_fill_(gone.to(bias.device), -torch.inf)
    router = inside.get_submodule(family.experts.router)
    inside.set_submodule(family.experts.router, _BarredRouter(router, gone))


class _Barring(TorchFunctionMode):
    """The products of a router with its weight, minus infinity for experts that go."""

    def __init__(self, gone: Tensor) -> None:
        super().__init__()
        self.gone = gone

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        return out.masked_fill(self.gone.to(out.device), -torch.inf) if func is nn.functional.linear else out


class _BarredRouter(nn.Module):
    """A router that gives no token to some experts."""

    def __init__(self, router: nn.Module, gone: Tensor) -> None:
        super().__init__()
        self.router, self.gone = router, gone

    def forward(self, *args: object, **kwargs: object) -> Any:
        with _Barring(self.gone):
            return self.router(*args, **kwargs)


class _Bypass(nn.Module):
    """A layer that passes its input on, in the form of its own output: alone, or first of a tuple or a list."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask layers which kind they are
            value: Tensor | nn.Module = getattr(super().__getattr__("layer"), name)
            return value

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        out = self.layer(hidden_states, *args, **kwargs)
        return type(out)((hidden_states, *out[1:])) if isinstance(out, tuple | list) else hidden_states


class _RescaledNorm(nn.Module):
    """A root-mean-square norm over D numbers of which all but a share are zero, as one over the share alone.

    What goes in grows by 1 / sqrt(share) and what comes out shrinks by as much, which corrects the epsilon, too.
    """

    def __init__(self, norm: nn.Module, share: float) -> None:
        super().__init__()
        self.norm, self.root = norm, math.sqrt(share)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:  # the mixer reads its weight for fused kernels
            value: Tensor | nn.Module = getattr(super().__getattr__("norm"), name)
            return value

    def forward(self, x: Tensor, *args: object) -> Tensor:
        out: Tensor = self.norm(x / self.root, *args) * self.root
        return out


class _KeptLayerNorm(nn.Module):
    """LayerNorm over some channels; the others come out as zero."""

    def __init__(self, norm: nn.LayerNorm, channels: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.channels = channels.to(norm.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        index = self.channels
        bias = None if self.bias is None else self.bias[index]
        normed = nn.functional.layer_norm(x[..., index], (len(index),), self.weight[index], bias, self.eps)
        spread: Tensor = torch.zeros_like(x).index_copy(-1, index, normed)
        return spread
