"""Read the table of a family off the network analysis of a small copy.

Which indices of which tensors go together says which axis each tensor has; where modules run says which norm serves
which sub-block; what the analysis can't tell, such as whether a config may state head_dim, is tried on the copy.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.errors import UnsupportedError
from secateur.formats import expert_tensors
from secateur.subjects.network.groups import Group, Groups
from secateur.subjects.transformer.blocks import Call
from secateur.subjects.transformer.families import Axes, Block, Experts, Family, Kind, Stack, States
from secateur.subjects.transformer.mixer_heads import Heads, read_heads
from secateur.subjects.transformer.per_layer import get_setting, list_own, take_layers
from secateur.subjects.transformer.small_copy import (
    DENSE,
    HEAD_DIM,
    HEADS,
    TOKENS,
    find_stacks,
    has_encoder,
    is_causal,
    list_kinds,
    make_tokens,
    reads_texts,
    run_model,
)

__all__ = ["read_family"]

_NORMS = ("before", "after")


def read_family(tiny: PreTrainedModel, groups: Groups) -> Family:
    """The table of a small copy, by the groups that its analysis found under the name "model".

    Raises `UnsupportedError` naming what fits no table: no one list of layers, tensors of one name with other axes.
    """
    return _Reading(tiny, groups).find_family()


class _OddAxisError(Exception):
    """An axis of heads or neurons that no table can say: its kind, and why."""


@dataclass(frozen=True)
class _Axis:
    """A dimension of a tensor: its site, and the unit of each index."""

    site: str
    units: np.ndarray


@dataclass(frozen=True)
class _Call:
    """One run of a module: the tensors that went in and came out."""

    path: str
    entered: tuple[Tensor, ...]
    left: tuple[Tensor, ...]
    gives: int
    """Values in the tuple that it returned; 0: the states alone."""

    def reads(self, other: _Call) -> bool:
        """Whether what the other gave came in as it was."""
        return any(mine is theirs for mine in self.entered for theirs in other.left)


class _Reading:
    """What the analysis says of a tiny copy, put into the terms of a table."""

    def __init__(self, tiny: PreTrainedModel, groups: Groups) -> None:
        self.tiny, self.groups = tiny, groups
        self.config: Any = tiny.config
        self.modules: dict[str, nn.Module] = dict(tiny.named_modules())
        self.prefix: str = "" if tiny.base_model is tiny else f"{tiny.base_model_prefix}."
        self.lists = find_stacks(tiny)
        self.starts = [
            f"{self.prefix}{path}.{number}."
            for path in self.lists
            for number in range(len(list(tiny.base_model.get_submodule(path).children())))
        ]
        """Of the layers, as their names begin."""
        self.count = len(self.starts)
        self.key_heads = int(get_setting(tiny.config, "num_key_value_heads") or HEADS)
        self.experts: Experts | None = None
        self.dense = ""
        """The output linear of a plain FFN."""
        self.states: States | None = None
        self.heads = dict[str, Heads | None]()
        """Mixer, relative to its layer -> its heads; None where they are not told."""
        self.whole = dict[str, str]()
        """Axis that stays whole -> why."""
        self.left = set[str]()
        """Norms before or after a sub-block of some layers alone, which stay with the layer."""
        self.besides = dict[str, list[set[str]]]()
        """Module of a sub-block -> those of the sub-blocks beside it, of every layer that has it."""
        self.attending = ""
        """The layer that an attention was read from, as its names begin."""
        self.axes = dict[tuple[str, int], _Axis]()
        state = tiny.state_dict()
        alike = {
            name: [other for other in state if state[other].data_ptr() == state[name].data_ptr()] for name in state
        }
        for site, group in groups.items():
            for member in group.members:
                leaf, _, dim = member.axis.partition("[")
                name = f"{member.module}.{leaf}".removeprefix("model.")
                for tied in alike.get(name, ()):
                    self.axes[tied, int(dim[:-1])] = _Axis(site, member.units)
        self.channels = {self._find_channels(f"{self.prefix}{path}.") for path in self.lists} - {""}
        if len(self.channels) > 1:
            self.whole["channels"] = "its encoder and its decoder have channels of their own"

    def _find_channels(self, inside: str) -> str:
        """The site of the residual stream: of those in all layers of a list, the one with the most tensors.

        It is as wide as the model, unlike what a router of one layer hands to that of the next (Zaya).
        """
        starts = {f"model.{start}" for start in self.starts if start.startswith(inside)}
        wide = {
            name: sum(member.module.startswith(f"model.{inside}") for member in group.members)
            for name, group in self.groups.items()
            if any(len(member.units) == self.config.hidden_size for member in group.members)
            and all(any(member.module.startswith(start) for member in group.members) for start in starts)
        }
        if not wide:
            self.whole["channels"] = "no channels run through all its layers"
            return ""
        return max(wide, key=wide.__getitem__)

    def _is_stream(self, tensor: str, dim: int) -> bool:
        """Whether a dimension of a tensor is the residual stream; where that stays whole, its size tells."""
        axis = self.axes.get((tensor, dim))
        if self.channels:
            return axis is not None and axis.site in self.channels
        state = self.tiny.state_dict()
        return axis is None and tensor in state and state[tensor].shape[dim] == self.config.hidden_size

    def _refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"{type(self.tiny).__name__} fits no table of attentions, FFNs and mixers: {why}")

    def find_family(self) -> Family:
        """The table."""
        blocks, layer = list[Block](), dict[str, Axes]()
        for start in self.starts:
            mine, rest = self._read_layer(start)
            for block in mine:
                self._add_block(blocks, block, {other.module for other in mine})
            if any(layer.get(name, axes) != axes for name, axes in rest.items()):
                raise self._refuse("its layers differ")
            layer |= rest
        if not blocks:
            raise self._refuse("its layers have none")
        layer |= dict.fromkeys(self.left, ("channels",))
        blocks = [self._fix_axes(self._leave_norms(block, layer)) for block in blocks]
        if self.experts is not None and not self.experts.dense and self.dense:
            self.experts = replace(self.experts, dense=self._find_dense())
        conv1d = any(isinstance(module, Conv1D) for module in self.modules.values())
        width = self._find_width(blocks, 0 if conv1d else 1) if self.dense else "intermediate_size"
        attention = next((block for block in blocks if block.kind == "attention"), None)
        scale = float(self.config.hidden_size) ** 0.5
        rounded = float(torch.tensor(scale, dtype=torch.bfloat16))
        states_head_dim = attention is not None and self._states_head_dim(f"{self.attending}{attention.out}.weight")
        stacks = self._find_stacks(blocks)
        return Family(
            self.config.model_type,
            "decoder" if has_encoder(self.config) or is_causal(self.tiny) else "encoder",
            layers=self.lists[0],
            blocks=tuple(sorted(blocks, key=lambda block: block.kind)),
            layer=layer,
            shared=self._read_shared(),
            per_sequence=self._find_per_sequence(),
            neurons=width or ("ffn_neurons" if self._knows("intermediate_size") else "intermediate_size"),
            states_neurons=bool(width),
            states_head_dim=states_head_dim,
            heads_divide=states_head_dim and self._refuses_heads(),
            conv1d=conv1d,
            norm_offset=self._find_offset(),
            scaled_embedding=self._scales_embedding(scale),
            rounds_scale=self._scales_embedding(rounded, rtol=1e-6),
            qk_norms=() if attention is None else self._find_query_norms(attention),
            own_settings=list_own(self.config),
            experts=self.experts,
            states=self.states,
            whole=self.whole,
            stacks=stacks,
            caches_by_encoder=len(stacks) == 2 and self._caches_by_encoder(stacks[0]),
        )

    def _find_stacks(self, blocks: Sequence[Block]) -> tuple[Stack, ...]:
        """What the config calls the sizes of each list of layers; none where its common names say them."""
        found = list[Stack]()
        settings = self.config.to_dict()
        if len(self.lists) == 1 and not any(name.endswith(("encoder_layers", "decoder_layers")) for name in settings):
            return ()
        for path in self.lists:
            number = len(list(self.tiny.base_model.get_submodule(path).children()))
            names = [name for name, value in self.config.to_dict().items() if value == number and "layers" in name]
            inside = f"{self.prefix}{path}."
            counting = [name for name in names if self._count_layers({name: number - 1}).get(path) == number - 1]
            if len(counting) != 1 and len(self.lists) == 1:
                return ()
            if len(counting) != 1:
                raise self._refuse(f"no setting says the number of {path}")
            outs = {
                block.kind: f"{start}{block.out}.weight"
                for start in self.starts if start.startswith(inside)
                for block in blocks if f"{start}{block.out}" in self.modules
            }  # fmt: skip
            neurons = self._find_setting(outs["ffn"], 1, 72) if "ffn" in outs else ""
            heads = [name for name, value in self.config.to_dict().items() if value == HEADS and name.endswith("heads")]
            side = "decoder" if path is self.lists[-1] else "encoder"
            heads.sort(key=lambda name: (side not in name, "coder" in name))
            found.append(Stack(path, counting[0], heads[0] if heads else "", neurons))
        common = type(self.config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
        return () if len(found) == 1 and found[0].count == common else tuple(found)

    def _caches_by_encoder(self, encoder: Stack) -> bool:
        """Whether the number of the encoder's layers is that of a cache, which the decoder alone fills."""
        deeper = self.count + 1
        config = type(self.config).from_dict(self.config.to_dict() | {encoder.count: deeper})
        return len(DynamicCache(config=config).layers) == deeper

    def _count_layers(self, values: dict[str, int]) -> dict[str, int]:
        """The layers of each list under a config with other numbers of them; none where the class refuses those.

        Lists of the config with an entry for each of them are shorter, too, where it does not take them as they are.
        """
        shapes = self._build_shapes(values)
        for name, number in values.items() if not shapes else ():
            data: dict[str, Any] = self.config.to_dict()
            shapes = self._build_shapes(values | take_layers(data, range(number), data[name]))
        begins = {path: f"{self.prefix}{path}." for path in self.lists}
        return {
            path: len({name.removeprefix(start).partition(".")[0] for name in shapes if name.startswith(start)})
            for path, start in begins.items()
        }

    def _add_block(self, blocks: list[Block], block: Block, layer: set[str]) -> None:
        """Add a layer's sub-block to those of others; one that some of them have too may lack a norm or a bias.

        layer: the modules of all its sub-blocks. With norms of another place it is a sub-block of another layer.
        """
        self.besides.setdefault(block.module, []).append(layer)
        for place, other in enumerate(blocks):
            if (block.kind, block.module) != (other.kind, other.module):
                continue
            if not (block.tensors and other.tensors):  # experts, which have a table of their own
                out, tensors = (block.out, block.tensors) if block.tensors else (other.out, other.tensors)
            elif block.out == other.out:
                out, tensors = block.out, self._merge_tensors(block, other)
            else:
                continue
            mine, theirs = ({(name, norm) for name in _NORMS for norm in getattr(one, name)} for one in (block, other))
            if not (mine <= theirs or theirs <= mine):
                beside = next(iter(layer.difference(*self.besides[block.module][:-1])), "")
                there = next(iter(self.besides[block.module][0] - layer), "")
                if beside and there:
                    blocks[place] = replace(other, beside=other.beside or there)
                    block = replace(block, beside=beside)
                    continue
                self.left |= {norm for _, norm in mine ^ theirs}
            before, after = (tuple(dict.fromkeys(getattr(other, n) + getattr(block, n))) for n in _NORMS)
            blocks[place] = replace(other, out=out, tensors=tensors, before=before, after=after)
            return
        blocks.append(block)

    def _merge_tensors(self, block: Block, other: Block) -> dict[str, Axes]:
        """The tensors of a sub-block of two layers; axes that are not the same in both stay whole in all layers."""
        merged = {**other.tensors, **block.tensors}
        for name in block.tensors.keys() & other.tensors.keys():
            mine, theirs = block.tensors[name], other.tensors[name]
            if mine != theirs:
                kind = "heads" if block.kind == "attention" else "neurons"
                self.whole.setdefault(kind, f"layers differ in {name}")
                merged[name] = tuple(a if a == b == "channels" else "" for a, b in zip(mine, theirs, strict=False))
        return merged

    def _find_dense(self) -> str:
        """The setting that counts the layers with a plain FFN, which stand before those with experts; "" for none."""
        dense = self._list_dense(self.tiny)
        first = sum(dense)
        if not all(dense[:first]):
            return ""
        settings: dict[str, object] = self.config.to_dict()
        for name, value in settings.items():
            if isinstance(value, bool) or value != first:
                continue
            try:
                with torch.device("meta"):
                    changed = type(self.tiny)(type(self.config).from_dict(settings | {name: first - 1}))
                fewer = self._list_dense(changed)
            except Exception:
                continue
            if fewer == [number < first - 1 for number in range(self.count)]:
                return name
        return ""

    def _list_dense(self, model: PreTrainedModel) -> list[bool]:
        """Of each layer, whether it has no experts."""
        return [not any("expert" in name for name in kind) for kind in list_kinds(model)]

    def _leave_norms(self, block: Block, layer: Mapping[str, Axes]) -> Block:
        """Without the norms that serve others too in some layer."""
        before, after = (tuple(norm for norm in norms if norm not in layer) for norms in (block.before, block.after))
        return replace(block, before=before, after=after)

    def _fix_axes(self, block: Block) -> Block:
        """With fixed axes in place of heads or neurons that some layer can't do without."""
        gone = {"attention": ("heads", "kv"), "ffn": ("neurons",)}.get(block.kind, ())
        if {"attention": "heads", "ffn": "neurons"}.get(block.kind, "") not in self.whole:
            return block
        tensors = {
            name: tuple("" if axis.startswith(gone) else axis for axis in axes) for name, axes in block.tensors.items()
        }
        return replace(block, tensors=tensors)

    # ----------------------------------------------------------------------------------------------------- axes

    def _read_layer(self, start: str) -> tuple[list[Block], dict[str, Axes]]:
        """The sub-blocks, and what belongs to none, of the layer whose names begin with `start`."""
        packed = self._find_packed(start)
        mixture = packed.rpartition(".")[0]
        found = dict[Kind, Block]()
        shared: str | None = None
        for site, group in self.groups.items():
            if site in self.channels or not all(member.module.startswith(f"model.{start}") for member in group.members):
                continue
            if not self._writes(group):
                continue  # of a latent inside a sub-block
            modules = {member.module for member in group.members}
            if packed and all(module.startswith(f"model.{start}{mixture}.") for module in modules):
                # A latent that experts give is of no shared expert.
                shared = shared if f"model.{start}{packed}" in modules else site
                continue
            try:
                block = self._read_block(start, site)
            except _OddAxisError as error:
                self.whole.setdefault(*error.args)
                continue  # it is read as one that stays whole inside
            if block is not None:
                found.setdefault(block.kind, block)
        beside = [found["ffn"]] if packed and "ffn" in found else []  # an FFN beside the experts, which stays
        if packed:
            found["ffn"] = Block("ffn", mixture, f"{mixture}.down_proj", {})
            self.experts = self.experts or self._read_experts(start, packed, shared)
        elif "ffn" in found:
            self.dense = f"{start}{found['ffn'].out}.weight"
        for block in self._read_whole(start, [*found.values(), *beside]):
            found.setdefault(block.kind, block)
        if "attention" in found:
            self.attending = self.attending or start
        blocks = [replace(block, gives=self._count_outputs(start, block)) for block in found.values()]
        blocks = self._add_norms(start, blocks)
        taken = {name for block in blocks for name in (*block.tensors, *block.before, *block.after)}
        taken |= {name for name in self._list(start) if packed and name.startswith(f"{mixture}.")}
        rest = {name: self._read_axes(start, name, {}) for name in self._list(start) if name not in taken}
        return blocks, rest

    def _count_outputs(self, start: str, block: Block) -> int:
        gives = {call.path: call.gives for call in self.calls}
        return gives.get(f"{start}{block.module}", 0)

    def _writes(self, group: Group) -> bool:
        """Whether the units are read by a linear that writes the channels."""
        for member in group.members:
            path = member.module.removeprefix("model.")
            module = self.modules[path]
            read, written = ("weight[0]", 1) if isinstance(module, Conv1D) else ("weight[1]", 0)
            if isinstance(module, nn.Linear | Conv1D) and member.axis == read:
                return self._is_stream(f"{path}.weight", written)
        return False

    def _read_block(self, start: str, site: str) -> Block | None:
        """The attention or FFN whose heads or neurons are the site's units; None where it is neither, or too odd."""
        inputs, outs = list[str](), list[str]()
        plain = True
        for member in self.groups[site].members:
            path = member.module.removeprefix("model.")
            module = self.modules[path]
            if isinstance(module, nn.Linear | Conv1D):
                columns = "weight[1]" if isinstance(module, nn.Linear) else "weight[0]"
                if member.axis.startswith("weight"):
                    (outs if member.axis == columns else inputs).append(path.removeprefix(start))
            else:
                plain = False
        if len(outs) != 1 or not inputs:
            return None
        parents = [name.rpartition(".")[0] for name in inputs]
        common = os.path.commonpath([parent.replace(".", "/") for parent in parents]) if all(parents) else ""
        if not common and len(inputs) > 1:
            return None  # they stand in the layer itself
        path = common.replace("/", ".") or inputs[0]
        attends = any(self._is_inside(f"{start}{path}", name) for name in self.attentions)
        heads = any(_has_blocks(member.units) for member in self.groups[site].members)
        if attends != heads or not (heads or plain):
            return None
        kind: Kind = "ffn" if not heads else "cross" if self._reads_encoder(start, inputs) else "attention"
        own = {site: "neurons" if kind == "ffn" else "heads"}
        inside = [
            name for name in self._list(start)
            if name.startswith(f"{path}.") or name in (path, *outs) or self._carries(start + name, site)
        ]  # fmt: skip
        tensors = {name: self._read_axes(start, name, own) for name in inside}
        if not heads and "neurons" not in tensors[outs[0]]:
            return None  # several of them make one, as the numbers of heads in an attention of an odd kind
        if kind == "cross":
            tensors = {name: tuple(axis.replace("heads*", "cross*") for axis in axes) for name, axes in tensors.items()}
        return Block(kind, path, outs[0], tensors)

    def _reads_encoder(self, start: str, inputs: Sequence[str]) -> bool:
        """Whether some of an attention's projections read the same tensor in every layer: what an encoder gives."""
        if len(self.lists) < 2:
            return False
        entered = [call.entered[:1] for call in self.calls if call.path in {start + name for name in inputs}]
        return any(one is not other for first in entered[:1] for one in first for rest in entered[1:] for other in rest)

    def _is_inside(self, path: str, name: str) -> bool:
        return name == path or name.startswith(f"{path}.")

    def _read_whole(self, start: str, known: Sequence[Block]) -> Iterator[Block]:
        """Sub-blocks of which nothing but the whole can go: what else writes the channels, alone in its module."""
        outs = list[str]()
        for name in self._list(start):
            module = self.modules.get(start + name)
            mine = any(name == block.out or name.startswith(f"{block.module}.") for block in known)
            if isinstance(module, nn.Linear | Conv1D) and not mine:
                written = self._read_axes(start, name, {})[1 if isinstance(module, Conv1D) else 0]
                outs += [name] if written == "channels" else []
        found = dict[str, str]()
        for out in outs:
            parts = out.split(".")
            paths = [".".join(parts[:depth]) for depth in range(1, len(parts))]
            others = [other for other in outs if other != out] + [block.module for block in known]
            path = next((path for path in paths if not any(self._is_inside(path, other) for other in others)), "")
            if path:
                found[path] = out
        calls = {call.path: call for call in self.calls}
        readers = [
            calls[start + path] for path in (*found, *(block.module for block in known)) if start + path in calls
        ]
        for path, out in found.items():
            call = calls.get(start + path)
            if call is not None and any(reader.reads(call) for reader in readers):
                continue  # a norm with weights of its own kind before a sub-block
            inside = [name for name in self._list(start) if name.startswith(f"{path}.")]
            attends = any(self._is_inside(f"{start}{path}", name) for name in self.attentions)
            tensors = {name: self._read_axes(start, name, {}) for name in inside}
            if not attends:
                tensors = self._read_states(start, path, out, tensors)
            if not attends and not any("state" in axis for axes in tensors.values() for axis in axes):
                tensors = self._read_heads(start, path, out, tensors)
            yield Block("attention" if attends else "mixer", path, out, tensors)

    def _read_states(self, start: str, path: str, out: str, tensors: dict[str, Axes]) -> dict[str, Axes]:
        """The tensors of a mixer whose states have heads, as Mamba-2 has them, with these axes; else as they are.

        Told by shapes: one number for each of H heads (A_log, D, dt_bias), H C columns of the output linear, a
        convolution over these and what groups share, and an input linear with as many rows once more and H.
        """
        state = self.tiny.state_dict()
        decay = f"{path}.A_log"
        shape = list(state[f"{start}{decay}"].shape) if f"{start}{decay}" in state else []
        wide = state[f"{start}{out}.weight"].shape[1] if not isinstance(self.modules[start + out], Conv1D) else 0
        if len(shape) != 1 or not wide or wide % shape[0]:
            return tensors
        heads, read, norm = shape[0], dict(tensors), ""
        convolved = [name for name, axes in tensors.items() if len(axes) == 3]
        if len(convolved) != 1 or convolved[0] == out:
            return tensors
        rows = state[f"{start}{convolved[0]}.weight"].shape[0]
        for name, axes in tensors.items():
            full = f"{start}{name}.weight" if f"{start}{name}.weight" in state else f"{start}{name}"
            size = state[full].shape[0]
            if name == out:
                read[name] = (axes[0], "state_heads*")
            elif name == convolved[0]:
                read[name] = ("state_heads*+state_fixed", *axes[1:])
            elif len(axes) == 2 and size == wide + rows + heads:
                read[name] = ("state_heads*+state_heads*+state_fixed+state_heads", axes[1])
            elif axes == ("",) and size == heads and full == f"{start}{name}":
                read[name] = ("state_heads",)
            elif axes == ("",) and size == wide:
                read[name], norm = ("state_heads*",), name
            else:
                return tensors
        count, each = (self._find_state_setting(f"{start}{decay}", f"{start}{out}.weight", grows) for grows in (2, 1))
        if not (count and each):
            why = "its config can't say the number of their heads, or of the channels of each, by itself"
            self.whole |= {"state_heads": why, "state_channels": why}
            return tensors
        self.states = States(path, decay, norm, count, each)
        return read

    def _read_heads(self, start: str, path: str, out: str, tensors: dict[str, Axes]) -> dict[str, Axes]:
        """The tensors of a mixer whose heads share nothing with these axes; else as they are.

        Of all layers that have such a mixer; see `mixer_heads`.
        """
        if self.states is not None and self.states.module != path:
            return tensors
        if path not in self.heads:
            self.heads[path] = read_heads(self.tiny, start, path, out)
        found = self.heads[path]
        if found is None:
            return tensors
        read = dict(tensors)
        for name, axes in tensors.items():
            dim, sizes = found.axes.get(name, (0, ""))
            if sizes:
                if axes[dim]:
                    return tensors
                read[name] = (*axes[:dim], sizes, *axes[dim + 1 :])
        if not found.axes.keys() <= read.keys():
            return tensors
        self.states = found.states
        self.whole.setdefault("state_channels", "each head of its mixers stays or goes with all of them")
        return read

    def _find_state_setting(self, decay: str, out: str, times: int) -> str:
        """The setting by which an output linear has twice as many columns, and there are `times` as many heads."""
        plain = self._build_shapes({})
        settings: dict[str, object] = self.config.to_dict()
        for name, value in settings.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                continue
            found = self._build_shapes({name: 2 * value})
            if not {decay, out} <= found.keys():
                continue
            heads, columns = (found[tensor][dim] / plain[tensor][dim] for tensor, dim in ((decay, 0), (out, 1)))
            if (heads, columns) == (times, 2) and found[out][0] == plain[out][0]:
                return name
        return ""

    def _read_shared(self) -> dict[str, Axes]:
        """What stands outside the layers; names relative to the base model where it is inside that."""
        inside = tuple(f"{self.prefix}{path}." for path in self.lists)
        outside = [name for name in self._list("") if not name.startswith(inside)]
        return {name.removeprefix(self.prefix): self._read_axes("", name, {}) for name in outside}

    def _list(self, start: str) -> list[str]:
        """Modules with a weight, and tensors without one beside them, by their names in tables."""
        found: dict[str, None] = {}
        state = self.tiny.state_dict()
        for name in state:
            module, _, leaf = name.rpartition(".")
            if name.startswith(start) and (leaf != "bias" or f"{module}.weight" not in state):
                found[(module if leaf == "weight" else name).removeprefix(start)] = None
        return list(found)

    def _carries(self, name: str, site: str) -> bool:
        """Whether a weight, or a tensor without one, has an axis of `site`."""
        return any(axis.site == site for (tensor, _), axis in self.axes.items() if tensor in (f"{name}.weight", name))

    def _read_axes(self, start: str, name: str, own: Mapping[str, str]) -> Axes:
        """The axes of a weight, or of a tensor without one; own: site -> its kind, of the sub-block at hand."""
        state = self.tiny.state_dict()
        full = f"{start}{name}.weight" if f"{start}{name}.weight" in state else f"{start}{name}"
        return tuple(self._read_axis(full, dim, own) for dim in range(state[full].dim()))

    def _read_axis(self, tensor: str, dim: int, own: Mapping[str, str]) -> str:
        axis = self.axes.get((tensor, dim))
        if self._is_stream(tensor, dim):
            size = self.config.hidden_size
            if axis is not None and not np.array_equal(axis.units, np.arange(size)):
                self.whole.setdefault("channels", f"those of {tensor} have an order of their own")
            if self.tiny.state_dict()[tensor].shape[dim] == size:
                return "channels"  # in another order, too: then they stay
        if axis is None or axis.site not in own:
            return ""
        return "+".join(self._split_axis(tensor, axis.units, own[axis.site]))

    def _split_axis(self, tensor: str, units: np.ndarray, kind: str) -> Iterator[str]:
        """The parts of an axis, one after the other: all units in order, each with as many indices."""
        runs = [(unit, len(list(indices))) for unit, indices in groupby(units.tolist())]
        count = int(units.max()) + 1
        if [unit for unit, _ in runs] != list(range(count)) * (len(runs) // count):
            raise _OddAxisError(kind, f"the indices of {tensor} have an order of their own")
        for start in range(0, len(runs), count):
            lengths = {length for _, length in runs[start : start + count]}
            sizes = {HEAD_DIM * count: "kv*"} if count == self.key_heads else {}
            sizes |= {HEAD_DIM * HEADS: "heads*", HEADS: "heads"}
            sizes |= {times * HEAD_DIM * HEADS: f"heads*{times}" for times in (2, 3)}
            name = "neurons" if kind == "neurons" and lengths == {1} else sizes.get(count * min(lengths))
            if len(lengths) > 1 or name is None or (kind == "heads") == (name == "neurons"):
                raise _OddAxisError(kind, f"{tensor} has {sorted(lengths)} indices for each of {count}")
            yield name

    # -------------------------------------------------------------------------------------------------- experts

    def _find_packed(self, start: str) -> str:
        """The module of all experts in a layer, relative to it; "" where there is none, or none that is understood."""
        for path, module in self.modules.items():
            first = expert_tensors.find_first(module)
            if path.startswith(start) and first:
                inside = path.removeprefix(start)
                if not self._is_packed(path, first):
                    rows = "gate and up" if "gate" in first else "neurons"
                    shapes = f"[experts, {rows}, channels] and [experts, channels, neurons]"
                    self.whole["experts"] = f"{path} is not {shapes}, nor is it so with inputs before outputs"
                elif not expert_tensors.takes_choice(module):
                    self.whole["experts"] = f"{path} is not told which experts each token passes"
                elif not self._find_router(start, inside):
                    self.whole["experts"] = f"no router stands beside {path}"
                elif biased := self._find_biased(start, inside.rpartition(".")[0]):
                    self.whole["experts"] = f"{biased} would be nowhere to be kept in a layer without its FFN"
                else:
                    return inside
        return ""

    def _is_packed(self, path: str, first: str) -> bool:
        """Whether neurons stand in its tensors, and in their biases, as in one of `formats.expert_tensors`."""
        module = self.modules[path]
        if not expert_tensors.is_packed(module):
            return False
        turned = expert_tensors.is_turned(module)
        inner = self.axes.get((f"{path}.{first}", 2 if turned else 1))
        outer = self.axes.get((f"{path}.down_proj", 1 if turned else 2))
        bias = self.axes.get((f"{path}.{first}_bias", 1), inner)
        if inner is None or outer is None or bias is None or not inner.site == outer.site == bias.site:
            return False
        rows = expert_tensors.neurons_of_rows(module).numpy()
        return np.array_equal(inner.units, rows) and np.array_equal(bias.units, rows)

    def _find_biased(self, start: str, mixture: str) -> str:
        """A bias that a layer adds to the channels by its experts or by a plain FFN; "" where there is none."""
        for name, _ in self.tiny.named_parameters():
            path, _, leaf = name.rpartition(".")
            if leaf == "bias" and isinstance(self.modules[path], nn.Linear):
                writes = path.startswith(f"{start}{mixture}.") and self._is_stream(f"{path}.weight", 0)
                if writes or path.endswith(".down_proj"):
                    return str(name)
        return ""

    def _find_router(self, start: str, packed: str) -> str:
        """The module beside packed experts that has a row for each of them; "" where there is none."""
        mixture, state = packed.rpartition(".")[0], self.tiny.state_dict()
        count = state[f"{start}{packed}.down_proj"].shape[0]
        for name in self._list(f"{start}{mixture}."):
            inside = f"{mixture}.{name}"
            full = f"{start}{inside}.weight"
            rows = state[full].shape[0] if full in state else 0
            if rows == count and self._read_axes(start, inside, {})[-1] == "channels":
                return inside
        return ""

    def _read_experts(self, start: str, packed: str, shared: str | None) -> Experts:
        mixture, tensors = packed.rpartition(".")[0], dict[str, Axes]()
        leaf = expert_tensors.find_first(self.modules[start + packed])
        first, second = (f"{start}{packed}.{name}" for name in (leaf, "down_proj"))
        state, module = self.tiny.state_dict(), self.modules[start + packed]
        count, turned = expert_tensors.sizes(module)[0], expert_tensors.is_turned(module)
        # Of the channels, or of a latent that stays whole.
        reads = (_list_rows(module), self._read_axis(first, 1 if turned else 2, {}))
        writes = (self._read_axis(second, 2 if turned else 1, {}), "expert_neurons")
        for name, both in ((leaf, reads), ("down_proj", writes)):
            tensors[f"{packed}.{name}"] = ("experts", *(reversed(both) if turned else both))
            if expert_tensors.find_bias(module, name) is not None:
                tensors[f"{packed}.{name}_bias"] = ("experts", both[0])
        own = {} if shared is None else {shared: "neurons"}
        router, beside = self._find_router(start, packed), ""
        for name in self._list(f"{start}{mixture}."):
            full = f"{mixture}.{name}"
            if full in tensors:
                continue
            axes = self._read_axes(start, full, own)
            if axes == ("",) and state.get(f"{start}{full}", torch.ones(0)).shape == (count,):
                axes = ("experts",)
            elif full == router:
                axes = ("experts", "channels")
            elif any("neurons" in axis for axis in axes):
                beside = full.rpartition(".")[0]
                axes = tuple(axis.replace("neurons", "shared_neurons") for axis in axes)
            tensors[full] = axes
        biased = [name for name in tensors if name.startswith(f"{router}.")]
        for name in biased:  # [E], or [1, E]
            shape = state[f"{start}{name}" if f"{start}{name}" in state else f"{start}{name}.weight"].shape
            tensors[name] = tuple("experts" if size == count else "" for size in shape)
        wide = f"{start}{beside}.down_proj.weight" if beside else ""
        width = self._find_setting(wide, 1, 72, stays=second, exact=True) if wide else ""
        common = self._find_setting(wide, 1, 3, stays=second) if wide and not width else ""
        return Experts(
            tensors,
            packed,
            router,
            beside,
            count=self._find_setting(first, 0, 2 * count),
            neurons=self._find_setting(second, 1 if turned else 2, 72),
            shared_neurons=width or "shared_expert_intermediate_size",
            shared_count=common,
            least=2 if biased and getattr(self.config, "n_group", None) else 1,
            dense=next((name for name in DENSE if hasattr(self.config, name)), ""),
        )

    # ---------------------------------------------------------------------------------------------------- norms

    @cached_property
    def calls(self) -> list[_Call]:
        """What every module took and gave, in the order in which they ended."""
        return self._record[0]

    @cached_property
    def attentions(self) -> frozenset[str]:
        """The innermost modules in which every token looks at the others: that weigh them by a softmax."""
        return self._record[1]

    @cached_property
    def _record(self) -> tuple[list[_Call], frozenset[str]]:
        found, hooks, running = list[_Call](), list[RemovableHandle](), list[str]()
        watch = _WeighedTokens(running)
        for path, module in self.modules.items():

            def enter(_: nn.Module, args: tuple[object, ...], path: str = path) -> None:
                running.append(path)

            def note(
                _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], out: object, path: str = path
            ) -> None:
                running.pop()
                gives = len(out) if isinstance(out, tuple) and not hasattr(out, "_fields") else 0
                found.append(_Call(path, tuple(_tensors([*args, *kwargs.values()])), tuple(_tensors(out)), gives))

            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(note, with_kwargs=True))
        try:
            with torch.no_grad(), watch:
                run_model(self.tiny, make_tokens())
        finally:
            for hook in hooks:
                hook.remove()
        return found, frozenset(watch.found)

    def _add_norms(self, start: str, blocks: list[Block]) -> list[Block]:
        """The sub-blocks with the norms that serve one of them alone, and leave with it."""
        if not self._passes_through(start, blocks):
            return blocks
        calls = {call.path.removeprefix(start): call for call in self.calls if call.path.startswith(start)}
        result = {block.kind: block for block in blocks}
        serves = {block.kind: {block.module, *block.tensors} for block in blocks}
        norms = [name for name in self._list(start) if self._read_norm(start, name) and name in calls]
        for norm in norms:
            readers = {
                kind for kind, modules in serves.items()
                if norm not in modules and any(calls[module].reads(calls[norm]) for module in modules & calls.keys())
            }  # fmt: skip
            sources = {
                kind for kind, block in result.items()
                if norm not in serves[kind]
                and any(calls[norm].reads(calls[path]) for path in {block.module, block.out} & calls.keys())
            }  # fmt: skip
            for kind in sources:
                result[kind] = replace(result[kind], after=(*result[kind].after, norm))
            for kind in readers if len(readers) == 1 and not sources else ():
                if self._serves_alone(start, norm, result[kind]):
                    result[kind] = replace(result[kind], before=(*result[kind].before, norm))
        return list(result.values())

    def _serves_alone(self, start: str, norm: str, block: Block) -> bool:
        """Whether nothing but a sub-block reads a norm: what the layer gives without that one."""

        def run(scale: float) -> Tensor:
            copied = copy.deepcopy(self.tiny)
            for name, parameter in copied.named_parameters():
                if name == f"{start}{norm}.weight":
                    parameter.data.mul_(scale)
                elif name.startswith(start) and _closes(name.removeprefix(start), block):
                    parameter.data.zero_()
            return self._run_layer(copied, start)[1]

        return torch.allclose(run(1.0), run(3.0), atol=1e-5)

    def _read_norm(self, start: str, name: str) -> bool:
        """Whether it has one weight, over the channels."""
        weight = self.tiny.state_dict().get(f"{start}{name}.weight")
        return weight is not None and weight.dim() == 1 and self._is_stream(f"{start}{name}.weight", 0)

    def _run_layer(self, model: PreTrainedModel, start: str) -> tuple[Tensor, Tensor]:
        """The states that a layer took when the model ran, and what that of a changed copy gives for them."""
        path = start.removesuffix(".")
        args, kwargs = self.arguments[path]
        kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
        with torch.no_grad():
            out = model.get_submodule(path)(*args, **kwargs)
        return next(_tensors([*args, *kwargs.values()])), next(_tensors(out))

    @cached_property
    def arguments(self) -> dict[str, Call]:
        """Layer -> what it was called with."""
        layers = [start.removesuffix(".") for start in self.starts]
        found = dict[str, Call]()
        with ExitStack() as stack:
            for path in layers:
                layer = self.modules[path]
                hook = partial(lambda path, _, args, kwargs: found.setdefault(path, (args, kwargs)) and None, path)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with torch.no_grad():
                run_model(self.tiny, make_tokens())
        return found

    def _passes_through(self, start: str, blocks: Sequence[Block]) -> bool:
        """Whether a layer whose sub-blocks give nothing passes its input on: its norms lie beside the stream."""
        if start.removesuffix(".") not in self.arguments:
            return False  # it is not called as a module
        copied = copy.deepcopy(self.tiny)
        for name, parameter in copied.named_parameters():
            inner = name.removeprefix(start)
            closed = any(_closes(inner, block) for block in blocks) or inner.endswith(".bias")
            if name.startswith(start) and closed:
                parameter.data.zero_()
        before, after = self._run_layer(copied, start)
        return torch.allclose(before, after, atol=1e-5)

    # --------------------------------------------------------------------------------------------------- trials

    def _find_per_sequence(self) -> tuple[str, ...]:
        """Linears outside the layers that run once per sequence, not per token."""
        found = list[str]()
        for call in self.calls:
            linear = isinstance(self.modules[call.path], nn.Linear)
            if linear and not call.path.startswith(tuple(self.starts)):
                found += [call.path.removeprefix(self.prefix)] if call.entered[0].dim() == 2 else []
        return tuple(found)

    def _find_offset(self) -> float:
        """What the norms over the channels add to their weight: their output where that is zero, by a weight of one."""
        for call in self.calls:
            if self._read_norm("", call.path) and not isinstance(self.modules[call.path], nn.LayerNorm):
                norm = copy.deepcopy(self.modules[call.path])
                with torch.no_grad():
                    norm.get_parameter("weight").zero_()
                    return float(next(_tensors(norm(call.entered[0]))).abs().max() > 0)
        return 0.0

    def _scales_embedding(self, scale: float, rtol: float = 1e-3) -> bool:
        """Whether embeddings are multiplied by `scale`, such as the root of their size, before the first layer."""
        if not reads_texts(self.tiny):
            return False
        embeddings = self.tiny.get_input_embeddings()
        table = next((call for call in self.calls if self.modules[call.path] is embeddings), None)
        if table is None:  # of several that share their weights
            return False
        first = next((call for call in self.calls if f"{call.path}." == self.starts[0]), None)
        if first is None:  # it is not called as a module
            return False
        scaled = embeddings.get_parameter("weight")[table.entered[0]] * scale
        return any(
            one.shape == scaled.shape and torch.allclose(one, scaled, rtol=rtol, atol=0) for one in first.entered
        )

    def _find_query_norms(self, attention: Block) -> tuple[str, ...]:
        """Projections whose output is normalised per head."""
        start = self.attending
        calls = {call.path.removeprefix(start): call for call in self.calls if call.path.startswith(start)}
        found = list[str]()
        for norm, axes in attention.tensors.items():
            if axes != ("",) or norm not in calls or isinstance(self.modules[start + norm], nn.LayerNorm):
                continue
            source = calls[norm].entered[0].untyped_storage().data_ptr()
            found += [
                name for name in attention.tensors
                if name in calls and name != norm and attention.tensors[name][0] in ("heads*", "kv*")
                and calls[name].left[0].untyped_storage().data_ptr() == source
            ]  # fmt: skip
        return tuple(found)

    def _find_setting(self, tensor: str, dim: int, value: int, *, stays: str = "", exact: bool = False) -> str:
        """The integer of the config by which one dimension of `tensor` becomes `value`, or, if not `exact`, a multiple.

        Lists of equal integers, one for each layer, count where the class takes an integer there, too (Gemma 3n).
        Twice that where it has so many already. The others do not change, nor does the tensor `stays`. "" where there
        is none.
        """
        plain = self._build_shapes({})
        value *= 2 if plain[tensor][dim] == value else 1  # or what is set would change nothing
        settings: dict[str, object] = self.config.to_dict()
        for name, old in settings.items():
            each = isinstance(old, list) and len(old) == self.count and all(one == old[0] for one in old)
            one = old[0] if isinstance(old, list) and each else old
            if isinstance(one, bool) or not (one is None or isinstance(one, int)):
                continue
            changed = self._build_shapes({name: value})
            pairs = enumerate(zip(plain[tensor], changed.get(tensor, ()), strict=False))
            differ = {place: new for place, (was, new) in pairs if was != new}
            alike = not stays or changed.get(stays) == plain[stays]
            if list(differ) == [dim] and (differ[dim] == value or (differ[dim] % value == 0 and not exact)) and alike:
                return name
        return ""

    def _find_width(self, blocks: Sequence[Block], dim: int) -> str:
        """The setting by which a plain FFN is as wide as it says, and which nothing else but experts goes by."""
        setting = self._find_setting(self.dense, dim, 72, exact=True)
        again = self._build_shapes({setting: 24}).get(self.dense) if setting else None
        if again and again[dim] != 24:
            return ""  # what widths are rounded to (LFM2)
        tables = [block.tensors for block in blocks] + ([self.experts.tensors] if self.experts else [])
        wide = {name for table in tables for name, axes in table.items() if any("neurons" in axis for axis in axes)}
        plain, changed = self._build_shapes({}), self._build_shapes({setting: 72} if setting else {})
        for name in plain:
            inside = next((name.removeprefix(start) for start in self.starts if name.startswith(start)), name)
            if plain[name] != changed.get(name) and not {inside, inside.rpartition(".")[0]} & wide:
                return ""
        return setting

    def _knows(self, setting: str) -> bool:
        """Whether the class of the config has a setting by itself, which a result may have had from its cut, too."""
        kind = type(self.config)
        own = {*inspect.signature(kind).parameters, *kind.attribute_map}
        return setting in own or hasattr(kind, setting)

    def _states_head_dim(self, out: str) -> bool:
        """Whether the config may say how large a head is; out: the output linear of an attention."""
        stated = self._build_shapes({"head_dim": 2 * HEAD_DIM}).get(out)
        return stated is not None and stated != self._build_shapes({})[out]

    def _refuses_heads(self) -> bool:
        """Whether the class refuses a number of heads that does not divide the size of its states."""
        native, counts = type(self.config).attribute_map, ("num_attention_heads", "num_key_value_heads")
        three = {native.get(name, name): 3 for name in counts if getattr(self.config, name, None) is not None}
        return not self._build_shapes(three | {"head_dim": HEAD_DIM})

    def _build_shapes(self, values: Mapping[str, object]) -> dict[str, list[int]]:
        """The shapes of parameters under a config with other values; none where the class refuses them."""
        try:
            with torch.device("meta"):
                built = type(self.tiny)(type(self.config).from_dict(self.config.to_dict() | dict(values)))
        except Exception:
            return {}
        return {name: list(parameter.shape) for name, parameter in built.named_parameters()}


class _WeighedTokens(TorchDispatchMode):
    """Notes which module, of those that run, weighs tokens by a softmax, or attends in one product."""

    def __init__(self, running: Sequence[str]) -> None:
        super().__init__()
        self.running = running
        self.found = set[str]()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        weights = (
            isinstance(out, Tensor)
            and out.dim() > 2
            and out.shape[-1] >= TOKENS
            and out.shape[-2] in (TOKENS, out.shape[-1])
        )
        if ("softmax" in name and weights) or "scaled_dot_product" in name:
            self.found.update(self.running[-1:])
        return out


def _closes(name: str, block: Block) -> bool:
    """Whether a parameter of a layer is one without which the sub-block gives nothing."""
    return name.startswith(f"{block.out}.") or (not block.tensors and name.startswith(f"{block.module}."))


def _tensors(nest: object) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        yield from _tensors(list(nest.values()))
    elif isinstance(nest, list | tuple):
        for one in nest:
            yield from _tensors(one)


def _list_rows(packed: nn.Module) -> str:
    """The axis of what the neurons of packed experts read: gates before rows, or both in turns."""
    neurons, width = expert_tensors.neurons_of_rows(packed).tolist(), expert_tensors.sizes(packed)[2]
    alternate = len(neurons) > width and neurons[0] == neurons[1]
    return "expert_neurons*2" if alternate else "+".join(["expert_neurons"] * (len(neurons) // width))


def _has_blocks(units: np.ndarray) -> bool:
    """Whether a unit has indices behind one another, as a head has."""
    return bool((units[1:] == units[:-1]).any())
