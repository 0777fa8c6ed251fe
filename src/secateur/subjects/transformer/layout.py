"""Names, axes and widths of one transformer, read from its family's table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from secateur.formats import expert_tensors
from secateur.formats.reload import find_blocks, list_configs
from secateur.subjects.transformer.families import Axes, Block, Family, Stack
from secateur.subjects.transformer.per_layer import CHOSEN, get_setting

__all__ = ["SHORTCUTS", "Layout", "Place", "Widths"]

SHORTCUTS = ("attention_shortcut", "ffn_shortcut")
"""Linears on the residual connections of a model that was rotated and sliced, see `formats.sliced`."""


@dataclass(frozen=True)
class Widths:
    """How many units a layer has; 0 heads: no attention, neither neurons nor experts: no FFN, 0 mixer: none."""

    heads: int
    kv: int
    neurons: int
    experts: int = 0
    expert_neurons: int = 0
    """Of each expert."""
    shared_neurons: int = 0
    """Of the expert that every token passes."""
    mixer: int = 0
    """1 where there is a mixer, which stays whole or goes."""
    cross: int = 0
    """Heads of the cross-attention."""
    state_heads: int = 0
    """Heads of a mixer; 0 where they can't be told, so that the mixer stays whole or goes."""
    state_channels: int = 0
    """Of each of them."""
    state_fixed: int = 0
    """Rows of what their groups share, B and C."""

    @property
    def ffn(self) -> bool:
        """Whether there is an FFN, plain or of experts."""
        return bool(self.neurons or self.experts)

    def has(self, kind: str) -> bool:
        """Whether the sub-block of that kind is there."""
        return bool({"attention": self.heads, "cross": self.cross, "ffn": self.ffn, "mixer": self.mixer}[kind])

    @property
    def has_groups(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.kv < self.heads


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: its layer, kind of sub-block or "", module and leaf, and its axes as stored.

    axes is None for a tensor the family's table does not know.
    """

    layer: int | None
    block: str
    module: str
    leaf: str
    axes: Axes | None


class Layout:
    """The family's table applied to one model. A view: make a new one after the model has changed."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        config = model.config
        self.prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        heads = get_setting(config, family.stacks[-1].heads if family.stacks else "num_attention_heads") or 1
        self.head_dim = int(get_setting(config, "head_dim") or config.hidden_size // heads)
        self.stated_heads = int(heads)
        self.hidden_size = int(config.hidden_size)
        ropes = getattr(config, "rope_parameters", None) or {}
        self.fixed_ratio = family.checks_ropes and "short_factor" in ropes
        """The config class wants hidden_size / heads as they are: channels stay, other heads need a modelling file."""

    @cached_property
    def widths(self) -> list[Widths]:
        """Units of every layer that exists."""
        result: list[Widths] = []
        for index, config in enumerate(self._configs):
            there = self.blocks(index).keys() - set(getattr(config, "skip", []))
            if self.family.stacks:
                result.append(self._count_in_stack(index, there))
                continue
            heads = (getattr(config, "num_attention_heads", None) or 1) if "attention" in there else 0
            kv = (getattr(config, "num_key_value_heads", None) or heads) if heads else 0
            mixture = self._mixture(index) if "ffn" in there else (0, 0, 0)
            neurons = self._count_neurons(index, config) if "ffn" in there and not mixture[0] else 0
            states = self._count_states(index) if "mixer" in there else {}
            result.append(Widths(heads, kv, neurons, *mixture, mixer=int("mixer" in there), **states))
        return result

    def _count_states(self, layer: int) -> dict[str, int]:
        """Heads, channels and shared rows of a mixer's states; none where the family knows none."""
        states = self.family.states
        if states is None:
            return {}
        modules = self._modules(layer)
        owner, _, leaf = states.counter.rpartition(".")
        counted = getattr(modules[owner], leaf)
        heads = counted if isinstance(counted, int) else len(counted)
        block = self.blocks(layer)["mixer"]
        wide = modules[block.out].get_parameter("weight").shape[1]
        rows = sum(
            modules[name].get_parameter("weight").shape[0]
            for name, axes in block.tensors.items() if axes[0] == "state_heads*+state_fixed"
        )  # fmt: skip
        return {"state_heads": heads, "state_channels": wide // heads, "state_fixed": max(rows - wide, 0)}

    def state_sizes(self, layer: int) -> tuple[int, int, int]:
        """(numbers of a state per channel, taps of its convolutions, their rows beside channels) of a mixer: its cache.

        Rows beside channels are B and C, or keys and queries, of a group or a head: twice the numbers of a state.
        """
        width, modules = self.widths[layer], self._modules(layer)
        convolved = [modules[name] for name in self.blocks(layer)["mixer"].tensors if name in modules]
        shapes = [one.get_parameter("weight").shape for one in convolved if isinstance(one, nn.Conv1d)]
        rows = max(sum(shape[0] for shape in shapes) - width.state_heads * width.state_channels, 0)
        owners = self.state_groups(layer) if width.state_fixed else width.state_heads
        return rows // (2 * owners), int(max((shape[-1] for shape in shapes), default=0)), int(rows)

    def state_groups(self, layer: int) -> int:
        """Groups of heads of a mixer's states, which share B and C; 1 where heads share nothing."""
        states = self.family.states
        if states is None or not self.widths[layer].state_fixed:
            return 1
        return int(getattr(self._modules(layer)[states.module], "n_groups", 1))

    def _count_in_stack(self, layer: int, there: Collection[str]) -> Widths:
        """Units by the tensors of a layer, for the config may say those of another stack."""
        modules = self._modules(layer)

        def count(kind: str, part: str) -> int:
            """Heads along a part of an axis; as the config says where its heads can't be told apart."""
            for name, axes in self.blocks(layer)[kind].tensors.items():
                if axes and part in axes[0].split("+"):
                    rows = modules[name].get_parameter("weight").shape[0]
                    return int(rows // self.head_dim // len(axes[0].split("+")))
            return int(getattr(self.model.config, self._stack_of(layer).heads)) if part != "kv*" else 0

        heads = count("attention", "heads*") if "attention" in there else 0
        kv = count("attention", "kv*") or heads if heads else 0
        neurons = self._count_neurons(layer, self.model.config) if "ffn" in there else 0
        cross = count("cross", "cross*") if "cross" in there else 0
        return Widths(heads, kv, neurons, mixer=int("mixer" in there), cross=cross)

    def _count_neurons(self, layer: int, config: PretrainedConfig) -> int:
        """Neurons of a plain FFN: inputs of its output linear, for a config may say something else than a width."""
        said = getattr(config, self.family.neurons, None) or 4 * config.hidden_size
        return _count_inputs(self._modules(layer)[self.blocks(layer)["ffn"].out]) or int(said)

    def _modules(self, layer: int) -> dict[str, nn.Module]:
        return dict(self.model.get_submodule(self._paths[layer]).named_modules())

    def blocks(self, layer: int) -> dict[str, Block]:
        """Kind -> the sub-block of a layer, which an earlier cut may have taken away."""
        return self._blocks[layer]

    @cached_property
    def _blocks(self) -> list[dict[str, Block]]:
        table = self.family.plain()
        order = {id(plain): block for plain, block in zip(table["blocks"], self.family.blocks, strict=True)}
        found = []
        for path, config in zip(self._paths, self._configs, strict=True):
            stands = find_blocks(self.model.get_submodule(path), table, getattr(config, "skip", []))
            found.append({kind: order[id(block)] for kind, block in stands.items()})
        return found

    def _mixture(self, layer: int) -> tuple[int, int, int]:
        """Experts, neurons of each, neurons of the shared one, as the layer's tensors have them."""
        experts = self.family.experts
        parts = self._modules(layer)
        if experts is None or experts.packed not in parts:
            return 0, 0, 0
        count, _, neurons = expert_tensors.sizes(parts[experts.packed])
        shared = parts[f"{experts.shared}.down_proj"].get_parameter("weight").shape[1] if experts.shared else 0
        return int(count), int(neurons), int(shared)

    @cached_property
    def chosen(self) -> int:
        """Experts that each token passes; 0 where the config says it by no name that is known."""
        said: Iterator[int | list[int] | None] = (get_setting(self.model.config, name) for name in CHOSEN)
        counts = next((count for count in said if count), 0)
        return max(counts) if isinstance(counts, list) else int(counts)  # a list has one for each layer

    @cached_property
    def expert_groups(self) -> int:
        """Groups of experts of which a router first chooses some; 1 where it chooses among all."""
        config = self.model.config
        grouped = getattr(config, "topk_method", "group_limited_greedy") == "group_limited_greedy"
        return int(getattr(config, "n_group", None) or 1) if grouped else 1

    @cached_property
    def fewest_experts(self) -> int:
        """Experts that must stay in a layer: those of one token, or, in groups, what the chosen groups must hold."""
        if self.family.experts is None:
            return 0
        among = int(getattr(self.model.config, "topk_group", None) or 1) if self.expert_groups > 1 else 1
        return self.expert_groups * max(self.family.experts.least, -(-self.chosen // among))

    @cached_property
    def whole(self) -> dict[str, str]:
        """Axis that stays whole -> why."""
        reasons = dict(self.family.whole)
        follows = {"kv_groups": "heads"} | ({} if self.family.experts else {"expert_neurons": "experts"})
        return {axis: reasons[other] for axis, other in follows.items() if other in reasons} | reasons

    @cached_property
    def latent(self) -> int:
        """Numbers that are cached per token where keys and values of all heads come from one latent; else 0."""
        config = self.model.config
        rank = getattr(config, "kv_lora_rank", None)
        return int(rank + config.qk_rope_head_dim) if rank else 0

    @cached_property
    def cached(self) -> int:
        """Key/value heads that every layer caches, whatever the number of its query heads; 0: those of its widths."""
        said = self.family.cached
        return int(getattr(self.model.config, said)) if isinstance(said, str) else said

    def attention_width(self, layer: int) -> float:
        """What two tokens that meet cost, per head of an attention, in units of 4 FLOPs.

        Numbers of a query and of a value, on average, if their products are all. Layers that have more heads than the
        config says of the model keep them (Laguna).
        """
        config, heads, ratio = self.model.config, self.widths[layer].heads, self.family.attention_ratio
        if not heads:
            return ratio * self.find_head_dim(layer)
        own = getattr(config, "num_attention_heads_per_layer", None)
        queries = config.qk_head_dim if self.latent else self.find_head_dim(layer)
        queries *= own[layer] / heads if own else 1
        values = _count_inputs(self._modules(layer)[self.blocks(layer)["attention"].out]) / heads
        return ratio * (queries + (values or queries)) / 2

    def index_width(self, layer: int) -> int:
        """Numbers by which a layer ranks tokens for its attention, two that meet by each (the indexer of DSA), or 0.

        A query of each of its heads by one key, then the heads by their weights.
        """
        found = [module for name, module in self._modules(layer).items() if name.endswith("indexer")]
        sizes = [(getattr(one, "n_heads", 0), getattr(one, "head_dim", 0)) for one in found]
        return sum(heads * (width + 1) for heads, width in sizes if width)

    def find_head_dim(self, layer: int) -> int:
        """Numbers per head of a layer, where the class gives layers heads of unequal sizes."""
        own = "head_dim" in self.family.own_settings
        return int(self.model.config.per_layer_config[layer].head_dim) if own else self.head_dim

    def layers(self) -> list[str]:
        """Module paths of the layers."""
        return list(self._paths)

    @cached_property
    def counts(self) -> list[int]:
        """Layers of each stack: one, or an encoder's and its decoder's, whose layers are counted on."""
        return [len(list(self.model.get_submodule(self.prefix + path).children())) for path in self.family.lists]

    @cached_property
    def starts(self) -> list[int]:
        """The first layer of each stack."""
        return [sum(self.counts[:place]) for place in range(len(self.counts))]

    @cached_property
    def _paths(self) -> list[str]:
        stacks = zip(self.family.lists, self.counts, strict=True)
        return [f"{self.prefix}{path}.{index}" for path, count in stacks for index in range(count)]

    @cached_property
    def _configs(self) -> Sequence[PretrainedConfig]:
        """What the config says of each layer."""
        return list_configs(self.model.config, len(self._paths))

    def _stack_of(self, layer: int) -> Stack:
        return self.family.stacks[sum(layer >= start for start in self.starts) - 1]

    def position_heads(self, layer: int) -> list[int]:
        """Columns of the shared table of positions that belong to the heads which a layer has."""
        said = getattr(self._configs[layer], "position_heads", None)
        return list(range(self.widths[layer].heads) if said is None else said)

    def new_paths(self, layers: Sequence[int]) -> dict[int, str]:
        """Layer -> its path where only those that are given, in this order, stay."""
        found = dict[int, str]()
        for path, start, count in zip(self.family.lists, self.starts, self.counts, strict=True):
            stay = [layer for layer in layers if start <= layer < start + count]
            found |= {layer: f"{self.prefix}{path}.{index}" for index, layer in enumerate(stay)}
        return found

    def norms(self) -> list[str]:
        """Module paths of every norm over the residual channels."""
        weights = (name for name, _ in self.model.named_parameters() if name.endswith(".weight"))
        return [name.removesuffix(".weight") for name in weights if self.place(name).axes == ("channels",)]

    def products(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that is multiplied with, by name: of linears, routers and experts."""
        for path, module in self.model.named_modules():
            linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            for leaf, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{leaf}"
                routed = "experts" in (self.place(name).axes or ()) and not leaf.endswith("bias")
                if routed or (linear and leaf == "weight"):
                    yield name, parameter

    def slices(self) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
        """Site -> (parameter, dimension, unit of each index or -1): every slice that goes with a unit.

        Of channels, heads, groups of keys and values with their query heads, neurons, heads of mixers that share
        nothing, and experts as a whole. Neurons inside packed experts are no slices: they stand along two dimensions at
        once. A fused projection has one entry for each of its parts; the linear back into the residual stream is a
        sub-block's last.
        """
        found: dict[str, list[tuple[Tensor, int, Tensor]]] = {}
        outputs = {block.out for block in self.family.blocks}
        weights = sorted(self.model.named_parameters(), key=lambda pair: self.place(pair[0]).module in outputs)
        for name, weight in weights:
            place = self.place(name)
            for dim, axis in enumerate(place.axes or ()):
                start = 0
                for part in axis.split("+"):
                    owners = self._owners(part, place.layer)
                    size = max((count * block for count, block in owners.values()), default=0)
                    for site, (_, block) in owners.items():
                        unit = torch.full((weight.shape[dim],), -1)
                        unit[start : start + size] = torch.arange(size) // block
                        found.setdefault(site, []).append((weight, dim, unit))
                    start += size
        return found

    def _owners(self, part: str, layer: int | None) -> dict[str, tuple[int, int]]:
        """Site -> (units, numbers of each), of the sites whose units stand along one part of an axis."""
        if part == "channels":
            return {"channels": (self.hidden_size, 1)}
        if layer is None or not part or part.startswith("expert_neurons"):
            return {}
        width, name = self.widths[layer], f"layers.{layer}"
        if part.startswith("state_"):  # a norm may run over heads that share B and C, which no slices say
            block = int(part.partition("*")[2] or width.state_channels)
            return {} if width.state_fixed else {f"{name}.state_heads": (width.state_heads, block)}
        if part == "heads" or part.startswith("heads*"):  # a number for each, as of a sink, or their rows
            inside = width.heads // width.kv if width.kv else 1
            block = 1 if part == "heads" else self.head_dim * int(part.removeprefix("heads*") or 1)
            groups = {f"{name}.kv_groups": (width.kv, inside * block)} if width.has_groups else {}
            return {f"{name}.heads": (width.heads, block)} | groups
        if part == "cross*":
            return {f"{name}.cross.heads": (width.cross, self.head_dim)}
        if part == "kv*":
            return {f"{name}.{'kv_groups' if width.has_groups else 'heads'}": (width.kv, self.head_dim)}
        return {f"{name}.{part}": (getattr(width, part), 1)}

    @cached_property
    def _layer_tables(self) -> list[dict[str, dict[str, Axes]]]:
        """For each layer: kind of sub-block, "" last -> its tensors."""
        return [
            {kind: self._list_tensors(block) for kind, block in blocks.items()}
            | ({"mixer": self._list_states(layer)} if self.family.states and "mixer" in blocks else {})
            | {"": self._rest}
            for layer, blocks in enumerate(self._blocks)
        ]

    def _list_states(self, layer: int) -> dict[str, Axes]:
        """The tensors of a mixer, "state_heads*n" with the numbers that each head has there."""
        width, modules = self.widths[layer], self._modules(layer)

        def resolve(name: str, dim: int, axis: str) -> str:
            parts = axis.split("+")
            if "state_heads*n" not in parts or not width.state_heads:
                return axis
            owner, _, leaf = (f"{name}.weight" if name in modules else name).rpartition(".")
            size = getattr(modules[owner], leaf).shape[dim] // width.state_heads
            each = (size - parts.count("state_heads*") * width.state_channels) // parts.count("state_heads*n")
            return axis.replace("*n", f"*{each}")

        return {
            name: tuple(resolve(name, dim, axis) for dim, axis in enumerate(axes))
            for name, axes in self._list_tensors(self.blocks(layer)["mixer"]).items()
        }

    @cached_property
    def _rest(self) -> dict[str, Axes]:
        return dict(self.family.layer) | dict.fromkeys(SHORTCUTS, ("", ""))

    def _list_tensors(self, block: Block) -> dict[str, Axes]:
        norms: dict[str, Axes] = dict.fromkeys((*block.before, *block.after), ("channels",))
        mixture = self.family.experts.tensors if self.family.experts and block.kind == "ffn" else {}
        return {**block.tensors, **mixture, **norms}

    def place(self, name: str) -> Place:
        """Where a parameter or buffer belongs."""
        family = self.family
        inner = name.removeprefix(self.prefix)
        module, _, leaf = inner.rpartition(".")
        layer: int | None = None
        tables: Mapping[str, Mapping[str, Axes]] = {"": family.shared}
        for path, start, count in zip(family.lists, self.starts, self.counts, strict=True):
            if inner.startswith(f"{path}."):
                number, _, module = module.removeprefix(f"{path}.").partition(".")
                place = int(number) if number.isdecimal() and len(number) < 10 else -1  # an adapter may name any
                layer = start + place if 0 <= place < count else -1
                tables = self._layer_tables[layer] if layer >= 0 else {}
        for kind, table in tables.items():
            own = f"{module}.{leaf}" if module else leaf  # a layer, or the model, may have tensors of its own
            if own in table:
                return Place(layer, kind, module, leaf, table[own])
            if module in table:
                axes = table[module]
                if leaf == "bias":
                    axes = axes[-1:] if family.conv1d and len(axes) == 2 else axes[:1]
                return Place(layer, kind, module, leaf, axes)
        return Place(layer, "", module, leaf, None)

    def leaves_with_block(self, place: Place) -> bool:
        """Whether a tensor leaves with its sub-block; the output bias stays, and a norm after it then stays too."""
        if not place.block or place.layer is None:
            return False
        block = self.blocks(place.layer)[place.block]
        if not self.widths[place.layer].has(place.block):
            return False  # what an earlier cut has left
        if self.family.shares_positions and not any(place.axes or ("",)):
            return False  # the table of positions that other layers read
        if place.module == block.out:
            return place.leaf != "bias"
        if place.module in block.after:
            out = self._modules(place.layer).get(block.out)  # a layer with experts has none
            return getattr(out, "bias", None) is None
        return True


def _count_inputs(linear: nn.Module) -> int:
    """Numbers that a linear reads of each token; 0 where it is no module that says so."""
    return int(getattr(linear, "in_features", None) or getattr(linear, "nx", None) or 0)
