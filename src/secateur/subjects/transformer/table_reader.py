"""Read the table of a family off the network analysis of a small copy.

Which indices of which tensors go together says which axis each tensor has; where modules run says which norm serves
which sub-block; what the analysis can't tell, such as whether a config may state head_dim, is tried on the copy.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.errors import UnsupportedError
from secateur.subjects.network.groups import Group, Groups
from secateur.subjects.transformer.families import Axes, Block, Experts, Family
from secateur.subjects.transformer.small_copy import (
    DENSE,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    is_causal,
    make_tokens,
    run_model,
)

__all__ = ["read_family"]


def read_family(tiny: PreTrainedModel, groups: Groups) -> Family:
    """The table of a small copy, by the groups that its analysis found under the name "model".

    Raises `UnsupportedError` naming what fits no table: layers that differ, several sites of one kind.
    """
    return _Reading(tiny, groups).find_family()


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
        self.layers = self._find_layers()
        self.experts: Experts | None = None
        self.dense = ""
        """The output linear of a plain FFN."""
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
        self.channels = self._find_channels()

    def _find_channels(self) -> str:
        """The site of the residual stream: of those in all layers, the one with the most tensors."""
        starts = {f"model.{self.prefix}{self.layers}.{number}." for number in range(LAYERS)}
        wide = {
            name: len(group.members) for name, group in self.groups.items()
            if all(any(member.module.startswith(start) for member in group.members) for start in starts)
        }  # fmt: skip
        if not wide:
            raise self._refuse("no channels run through all its layers")
        return max(wide, key=wide.__getitem__)

    def _refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"{type(self.tiny).__name__} fits no table of one attention and one FFN a layer: {why}")

    def _find_layers(self) -> str:
        """Path of the list of layers, relative to the base model."""
        lists = [
            path for path, module in self.modules.items()
            if isinstance(module, nn.ModuleList) and len(module) == LAYERS and path.startswith(self.prefix)
        ]  # fmt: skip
        outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
        if len(outer) != 1:
            raise self._refuse(f"{len(outer)} lists of {LAYERS} layers ({', '.join(outer) or 'none'})")
        return outer[0].removeprefix(self.prefix)

    def find_family(self) -> Family:
        """The table."""
        read = [self._read_layer(f"{self.prefix}{self.layers}.{number}.") for number in range(LAYERS)]
        attention, ffn = (reduce(self._join, blocks) for blocks in ([one[0] for one in read], [one[1] for one in read]))
        layer = {name: axes for one in read for name, axes in one[2].items()}
        if any(one[2].get(name, axes) != axes for one in read for name, axes in layer.items()):
            raise self._refuse("its layers differ")
        conv1d = any(isinstance(module, Conv1D) for module in self.modules.values())
        width = self._find_setting(self.dense, 0 if conv1d else 1, 72) if self.dense else "intermediate_size"
        states_head_dim = self._states_head_dim(f"{self.prefix}{self.layers}.0.{attention.out}.weight")
        return Family(
            self.config.model_type,
            "decoder" if is_causal(self.tiny) else "encoder",
            layers=self.layers,
            attention=attention,
            ffn=ffn,
            layer=layer,
            shared=self._read_shared(),
            per_sequence=self._find_per_sequence(),
            neurons=width or "intermediate_size",
            states_neurons=bool(width),
            states_head_dim=states_head_dim,
            heads_divide=states_head_dim and self._refuses_heads(),
            conv1d=conv1d,
            norm_offset=self._find_offset(),
            scaled_embedding=self._scales_embedding(),
            qk_norms=self._find_query_norms(attention),
            experts=self.experts,
        )

    def _join(self, one: Block, other: Block) -> Block:
        """The block of two layers, of which one may lack a norm or a bias."""
        tensors = {**one.tensors, **other.tensors}
        if one.module == other.module and not (
            one.tensors and other.tensors
        ):  # experts, which have a table of their own
            one, other = (one, other) if one.tensors else (other, one)
            tensors, other = dict(one.tensors), one
        same = {**other.tensors, **one.tensors} == tensors and (one.module, one.out) == (other.module, other.out)
        if not same:
            raise self._refuse(f"its layers differ in {one.module} and {other.module}")
        before, after = (tuple(dict.fromkeys(a + b)) for a, b in ((one.before, other.before), (one.after, other.after)))
        return Block(one.module, one.out, tensors, before, after)

    # ----------------------------------------------------------------------------------------------------- axes

    def _read_layer(self, start: str) -> tuple[Block, Block, dict[str, Axes]]:
        """Attention, FFN, and what belongs to neither, of the layer whose names begin with `start`."""
        sites: dict[str, str] = {}
        for site, group in self.groups.items():
            if site == self.channels or not all(member.module.startswith(f"model.{start}") for member in group.members):
                continue
            if not self._writes(group):
                continue  # of a latent inside a sub-block
            kind = "heads" if any(_has_blocks(member.units) for member in group.members) else "neurons"
            if kind in sites:
                raise self._refuse(f"{sites[kind]} and {site} are both {kind}")
            sites[kind] = site
        packed = self._find_packed(start)
        mixture = packed.rpartition(".")[0]
        if packed:
            ffn = Block(mixture, f"{mixture}.down_proj", {})
            self.experts = self._read_experts(start, packed, sites.get("neurons"))
        elif "neurons" in sites:
            ffn = self._read_block(start, "neurons", sites["neurons"])
            self.dense = f"{start}{ffn.out}.weight"
        else:
            raise self._refuse(f"no neurons that could go in {start.removesuffix('.')}")
        attention = (
            self._read_block(start, "heads", sites["heads"]) if "heads" in sites else self._read_whole(start, ffn)
        )
        attention, ffn = self._add_norms(start, attention, ffn)
        taken = {name for block in (attention, ffn) for name in (*block.tensors, *block.before, *block.after)}
        taken |= {name for name in self._list(start) if packed and name.startswith(f"{mixture}.")}
        rest = {name: self._read_axes(start, name, {}) for name in self._list(start) if name not in taken}
        return attention, ffn, rest

    def _writes(self, group: Group) -> bool:
        """Whether the units are read by a linear that writes the channels."""
        for member in group.members:
            path = member.module.removeprefix("model.")
            outwards = {nn.Linear: ("weight[1]", 0), Conv1D: ("weight[0]", 1)}.get(type(self.modules[path]))
            if outwards is not None and member.axis == outwards[0]:
                axis = self.axes.get((f"{path}.weight", outwards[1]))
                return axis is not None and axis.site == self.channels
        return False

    def _read_block(self, start: str, kind: str, site: str) -> Block:
        inputs, outs = list[str](), list[str]()
        for member in self.groups[site].members:
            path = member.module.removeprefix("model.")
            module = self.modules[path]
            if isinstance(module, nn.Linear | Conv1D) and member.axis.startswith("weight"):
                columns = "weight[1]" if isinstance(module, nn.Linear) else "weight[0]"
                (outs if member.axis == columns else inputs).append(path.removeprefix(start))
        if len(outs) != 1 or not inputs:
            raise self._refuse(f"{site} has {len(inputs)} linears before and {len(outs)} behind it")
        parents = [name.rpartition(".")[0] for name in inputs]
        common = os.path.commonpath([parent.replace(".", "/") for parent in parents]) if all(parents) else ""
        if not common and len(inputs) > 1:
            raise self._refuse(f"the linears before {site} stand in the layer itself")
        path = common.replace("/", ".") or inputs[0]
        own = {site: kind}
        inside = [
            name for name in self._list(start)
            if name.startswith(f"{path}.") or name in (path, *outs) or self._carries(start + name, site)
        ]  # fmt: skip
        return Block(path, outs[0], {name: self._read_axes(start, name, own) for name in inside})

    def _read_whole(self, start: str, ffn: Block) -> Block:
        """An attention of which nothing but the whole can go: what writes the channels beside the FFN."""
        outs = list[str]()
        for name in self._list(start):
            module = self.modules.get(start + name)
            if isinstance(module, nn.Linear | Conv1D) and name != ffn.out and not name.startswith(f"{ffn.module}."):
                written = self._read_axes(start, name, {})[1 if isinstance(module, Conv1D) else 0]
                outs += [name] if written == "channels" else []
        if len(outs) != 1:
            raise self._refuse(
                f"no heads that could go in {start.removesuffix('.')}, and {len(outs)} linears that write"
            )
        path = outs[0].partition(".")[0]
        inside = [name for name in self._list(start) if name.startswith(f"{path}.")]
        return Block(path, outs[0], {name: self._read_axes(start, name, {}) for name in inside})

    def _read_shared(self) -> dict[str, Axes]:
        """What stands outside the layers; names relative to the base model where it is inside that."""
        inside = f"{self.prefix}{self.layers}."
        outside = [name for name in self._list("") if not name.startswith(inside)]
        return {name.removeprefix(self.prefix): self._read_axes("", name, {}) for name in outside}

    def _list(self, start: str) -> list[str]:
        """Modules with a weight, and tensors without one beside them, by their names in tables."""
        found: dict[str, None] = {}
        state = self.tiny.state_dict()
        for name in state:
            module, _, leaf = name.rpartition(".")
            if name.startswith(start) and (leaf == "weight" or f"{module}.weight" not in state):
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
        if axis is None:
            return ""
        if axis.site == self.channels:
            if not np.array_equal(axis.units, np.arange(len(axis.units))):
                raise self._refuse(f"the channels of {tensor} have an order of their own")
            return "channels"
        if axis.site not in own:
            return ""
        return "+".join(self._split_axis(tensor, axis.units, own[axis.site]))

    def _split_axis(self, tensor: str, units: np.ndarray, kind: str) -> Iterator[str]:
        """The parts of an axis, one after the other: all units in order, each with as many indices."""
        runs = [(unit, len(list(indices))) for unit, indices in groupby(units.tolist())]
        count = int(units.max()) + 1
        if [unit for unit, _ in runs] != list(range(count)) * (len(runs) // count):
            raise self._refuse(f"the indices of {tensor} have an order of their own")
        for start in range(0, len(runs), count):
            lengths = {length for _, length in runs[start : start + count]}
            sizes = {HEAD_DIM * count: "kv*", HEAD_DIM * HEADS: "heads*", HEADS: "heads"}
            if count == HEADS:
                sizes[3 * HEAD_DIM * HEADS] = "heads*3"
            name = "neurons" if kind == "neurons" and lengths == {1} else sizes.get(count * min(lengths))
            if len(lengths) > 1 or name is None or (kind == "heads") == (name == "neurons"):
                raise self._refuse(f"{tensor} has {sorted(lengths)} indices for each of {count} {kind}")
            yield name

    # -------------------------------------------------------------------------------------------------- experts

    def _find_packed(self, start: str) -> str:
        """The module of all experts in a layer, relative to it; "" where there is none."""
        for path, module in self.modules.items():
            names = ("gate_up_proj", "down_proj")
            if path.startswith(start) and all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in names):
                return path.removeprefix(start)
        return ""

    def _read_experts(self, start: str, packed: str, shared: str | None) -> Experts:
        mixture, tensors = packed.rpartition(".")[0], dict[str, Axes]()
        first, second = (f"{start}{packed}.{leaf}" for leaf in ("gate_up_proj", "down_proj"))
        inner, outer = self.axes.get((first, 1)), self.axes.get((second, 2))
        state = self.tiny.state_dict()
        count = state[first].shape[0]
        twice = np.tile(np.arange(state[second].shape[2]), 2)
        if inner is None or outer is None or inner.site != outer.site or not np.array_equal(inner.units, twice):
            raise self._refuse(f"{packed} is not [experts, gate and up, channels] and [experts, channels, neurons]")
        tensors[f"{packed}.gate_up_proj"] = ("experts", "expert_neurons+expert_neurons", "channels")
        tensors[f"{packed}.down_proj"] = ("experts", "channels", "expert_neurons")
        own = {} if shared is None else {shared: "neurons"}
        router = beside = ""
        for name in self._list(f"{start}{mixture}."):
            full = f"{mixture}.{name}"
            if full in tensors:
                continue
            axes = self._read_axes(start, full, own)
            if state.get(f"{start}{full}.weight", torch.ones(1)).shape[0] == count and axes[-1] == "channels":
                router, axes = full, ("experts", "channels")
            elif "neurons" in axes:
                beside = full.rpartition(".")[0]
                axes = tuple(axis.replace("neurons", "shared_neurons") for axis in axes)
            tensors[full] = axes
        if not router:
            raise self._refuse(f"no router beside {packed}")
        biased = [name for name in tensors if name.startswith(f"{router}.")]
        tensors |= dict.fromkeys(biased, ("experts",))
        wide = f"{start}{beside}.down_proj.weight" if beside else ""
        common = self._find_setting(wide, 1, 3, stays=second) if wide else ""
        return Experts(
            tensors,
            packed,
            router,
            beside,
            count=self._find_setting(first, 0, 2 * EXPERTS),
            neurons=self._find_setting(second, 2, 72),
            shared_neurons=(self._find_setting(wide, 1, 72, stays=second) if wide and not common else "")
            or "shared_expert_intermediate_size",
            shared_count=common,
            least=2 if biased and getattr(self.config, "n_group", None) else 1,
            dense=next((name for name in DENSE if hasattr(self.config, name)), ""),
        )

    # ---------------------------------------------------------------------------------------------------- norms

    @cached_property
    def calls(self) -> list[_Call]:
        """What every module took and gave, in the order in which they ended."""
        found, hooks = list[_Call](), []
        for path, module in self.modules.items():

            def note(
                _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], out: object, path: str = path
            ) -> None:
                found.append(_Call(path, tuple(_tensors([*args, *kwargs.values()])), tuple(_tensors(out))))

            hooks.append(module.register_forward_hook(note, with_kwargs=True))
        try:
            with torch.no_grad():
                run_model(self.tiny, make_tokens())
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _add_norms(self, start: str, attention: Block, ffn: Block) -> tuple[Block, Block]:
        """The norms that serve one sub-block alone, and leave with it."""
        if not self._passes_through(start, attention, ffn):
            return attention, ffn
        calls = {call.path.removeprefix(start): call for call in self.calls if call.path.startswith(start)}
        blocks = {"attention": attention, "ffn": ffn}
        serves = {name: {block.module, *block.tensors} for name, block in blocks.items()}
        norms = [name for name in self._list(start) if self._read_norm(start, name) and name in calls]
        for norm in norms:
            readers = {
                name for name, modules in serves.items()
                if norm not in modules and any(calls[module].reads(calls[norm]) for module in modules & calls.keys())
            }  # fmt: skip
            sources = {
                name for name, block in blocks.items()
                if norm not in serves[name]
                and any(calls[norm].reads(calls[path]) for path in {block.module, block.out} & calls.keys())
            }  # fmt: skip
            for name in sources:
                blocks[name] = replace(blocks[name], after=(*blocks[name].after, norm))
            for name in readers if len(readers) == 1 and not sources else ():
                blocks[name] = replace(blocks[name], before=(*blocks[name].before, norm))
        return blocks["attention"], blocks["ffn"]

    def _read_norm(self, start: str, name: str) -> bool:
        """Whether it has one weight, over the channels."""
        axis = self.axes.get((f"{start}{name}.weight", 0))
        weight = self.tiny.state_dict().get(f"{start}{name}.weight")
        return axis is not None and axis.site == self.channels and weight is not None and weight.dim() == 1

    def _passes_through(self, start: str, attention: Block, ffn: Block) -> bool:
        """Whether a layer whose sub-blocks give nothing passes its input on: its norms lie beside the stream."""
        copied = copy.deepcopy(self.tiny)
        for name, parameter in copied.named_parameters():
            inner = name.removeprefix(start)
            mine = any(inner.startswith(f"{block.out}.") for block in (attention, ffn))
            mine = mine or (not ffn.tensors and inner.startswith(f"{ffn.module}."))
            if name.startswith(start) and (mine or inner.endswith(".bias")):
                parameter.data.zero_()
        seen = list[Tensor]()

        def note(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], out: object) -> None:
            seen.extend((next(_tensors([*args, *kwargs.values()])), next(_tensors(out))))

        copied.get_submodule(start.removesuffix(".")).register_forward_hook(note, with_kwargs=True)
        with torch.no_grad():
            run_model(copied, make_tokens())
        return torch.allclose(seen[0], seen[1], atol=1e-5)

    # --------------------------------------------------------------------------------------------------- trials

    def _find_per_sequence(self) -> tuple[str, ...]:
        """Linears outside the layers that run once per sequence, not per token."""
        found = list[str]()
        for call in self.calls:
            linear = isinstance(self.modules[call.path], nn.Linear)
            if linear and not call.path.startswith(f"{self.prefix}{self.layers}."):
                found += [call.path.removeprefix(self.prefix)] if call.entered[0].dim() == 2 else []
        return tuple(found)

    def _find_offset(self) -> float:
        """What the norms over the channels add to their weight: their output where that is zero, by a weight of one."""
        for call in self.calls:
            if self._read_norm("", call.path) and not isinstance(self.modules[call.path], nn.LayerNorm):
                norm = copy.deepcopy(self.modules[call.path])
                with torch.no_grad():
                    norm.get_parameter("weight").zero_()
                    return float(norm(call.entered[0]).abs().max() > 0)
        return 0.0

    def _scales_embedding(self) -> bool:
        """Whether embeddings are multiplied by the root of their size before they enter the first layer."""
        embeddings = self.tiny.get_input_embeddings()
        table = next((call for call in self.calls if self.modules[call.path] is embeddings), None)
        if table is None:  # of several that share their weights
            return False
        first = next(call for call in self.calls if call.path == f"{self.prefix}{self.layers}.0")
        scaled = embeddings.get_parameter("weight")[table.entered[0]] * float(self.config.hidden_size) ** 0.5
        return any(one.shape == scaled.shape and torch.allclose(one, scaled, rtol=1e-3) for one in first.entered)

    def _find_query_norms(self, attention: Block) -> tuple[str, ...]:
        """Projections whose output is normalised per head."""
        start = f"{self.prefix}{self.layers}.0."
        calls = {call.path.removeprefix(start): call for call in self.calls if call.path.startswith(start)}
        found = list[str]()
        for norm, axes in attention.tensors.items():
            if axes != ("",) or norm not in calls or isinstance(self.modules[start + norm], nn.LayerNorm):
                continue
            source = calls[norm].entered[0].untyped_storage().data_ptr()
            found += [
                name for name in attention.tensors
                if name in calls and name != norm and calls[name].left[0].untyped_storage().data_ptr() == source
            ]  # fmt: skip
        return tuple(found)

    def _find_setting(self, tensor: str, dim: int, value: int, *, stays: str = "") -> str:
        """The integer of the config by which one dimension of `tensor` becomes `value`, or a multiple of it.

        The others do not change, nor does the tensor `stays`. "" where there is none.
        """
        plain = self._build_shapes({})
        settings: dict[str, object] = self.config.to_dict()
        for name, old in settings.items():
            if isinstance(old, bool) or not (old is None or isinstance(old, int)):
                continue
            changed = self._build_shapes({name: value})
            pairs = enumerate(zip(plain[tensor], changed.get(tensor, ()), strict=False))
            differ = {place: new for place, (was, new) in pairs if was != new}
            alike = not stays or changed.get(stays) == plain[stays]
            if list(differ) == [dim] and differ[dim] % value == 0 and alike:
                return name
        return ""

    def _states_head_dim(self, out: str) -> bool:
        """Whether the config may say how large a head is; out: the output linear of an attention."""
        stated = self._build_shapes({"head_dim": 2 * HEAD_DIM}).get(out)
        return stated is not None and stated != self._build_shapes({})[out]

    def _refuses_heads(self) -> bool:
        """Whether the class refuses a number of heads that does not divide the size of its states."""
        native, counts = type(self.config).attribute_map, ("num_attention_heads", "num_key_value_heads")
        three = {native.get(name, name): 3 for name in counts if getattr(self.config, name, None) is not None}
        return not self._build_shapes(three | {"head_dim": HEAD_DIM})

    def _build_shapes(self, values: Mapping[str, int]) -> dict[str, list[int]]:
        """The shapes of parameters under a config with other values; none where the class refuses them."""
        try:
            with torch.device("meta"):
                built = type(self.tiny)(type(self.config).from_dict(self.config.to_dict() | dict(values)))
        except Exception:
            return {}
        return {name: list(parameter.shape) for name, parameter in built.named_parameters()}


def _tensors(nest: object) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        yield from _tensors(list(nest.values()))
    elif isinstance(nest, list | tuple):
        for one in nest:
            yield from _tensors(one)


def _has_blocks(units: np.ndarray) -> bool:
    """Whether a unit has indices behind one another, as a head has."""
    return bool((units[1:] == units[:-1]).any())
