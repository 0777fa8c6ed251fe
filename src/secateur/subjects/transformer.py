"""A transformer as a subject: what could go in it, and how it goes.

Everything is derived from the family's table (`families.py`): each weight is a product of axes, each axis a sum of
parts, each part counted by one site. Cutting builds the new config, slices the state dict, and instantiates the
result by the very code that reloads it, so that a saved result equals the one in memory by construction.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from secateur.errors import InputError, UnsupportedError
from secateur.subjects import saving
from secateur.subjects.families import Block, Family
from secateur.vocabulary import Cut, Selection, Site, Term, Units

__all__ = ["AXES", "Consumer", "Output", "Transformer"]

AXES = ("layers", "attention", "ffn", "heads", "kv_groups", "neurons", "channels")

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Consumer:
    """The linear whose input columns are a site's units: unit u is columns [u*block, (u+1)*block)."""

    module: str
    """Path relative to `subject.model`."""
    block: int
    conv1d: bool
    """The weight is stored [in, out], so that columns are rows of the stored tensor (GPT-2)."""


@dataclass
class Output:
    """What one forward pass gives.

    prediction: logits [B, S, V] or [B, C], a sentence embedding [B, d], or the last hidden state [B, S, d].
    hidden: the embedding output and then the output of every layer that exists, before any final norm, [B, S, d]
    each; empty unless asked for.
    """

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Widths:
    """How many units a layer has; 0 heads: no attention, 0 neurons: no FFN."""

    heads: int
    kv: int
    neurons: int


@dataclass
class _Kept:
    """Indices of the units that stay, per layer that stays; None where channels stay whole."""

    layers: list[int]
    channels: Tensor | None
    parts: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def widths(self) -> list[Widths]:
        return [Widths(*(len(self.parts[index][name]) for name in ("heads", "kv", "neurons"))) for index in self.layers]


class Transformer:
    """A transformers model with what belongs to it, as something to prune. Use `open_subject` to make one."""

    kind: Literal["encoder", "decoder"]

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        *,
        tokenizer: Any = None,
        folder: Path | None = None,
        head: list[nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.tokenizer = tokenizer
        self.folder = folder
        self.head: list[nn.Module] = head or []
        count = model.config.num_hidden_layers
        recorded = (getattr(model.config, "secateur", None) or {}).get("layer_index")
        self.layer_index: tuple[int, ...] = tuple(recorded) if recorded else tuple(range(count))
        self.output: Literal["logits", "embedding", "states"] = (
            "embedding" if self.head else "states" if model.base_model is model else "logits"
        )
        self._check_parameters()

    # ------------------------------------------------------------------------------------------- structure

    @property
    def prefix(self) -> str:
        """What stands before the base model's names: "model." in a model with a head, "" in a base model."""
        return "" if self.model.base_model is self.model else f"{self.model.base_model_prefix}."

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        config = self.model.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def hidden_size(self) -> int:
        """Residual channels."""
        return int(self.model.config.hidden_size)

    def widths(self) -> list[Widths]:
        """Heads, key/value heads and neurons of every layer that exists."""
        result = []
        for config in self.model.config.per_layer_config:
            skip = getattr(config, "skip", [])
            heads = 0 if "attention" in skip else config.num_attention_heads
            kv = 0 if "attention" in skip else getattr(config, "num_key_value_heads", None) or heads
            neurons = getattr(config, self.family.neurons, None) or 4 * config.hidden_size
            result.append(Widths(heads, kv, 0 if "ffn" in skip else neurons))
        return result

    def layers(self) -> list[str]:
        """Module paths of the layers."""
        return [f"{self.prefix}{self.family.layers}.{index}" for index in range(self.model.config.num_hidden_layers)]

    def norms(self) -> list[str]:
        """Module paths of every norm over the residual channels."""
        found: dict[str, None] = {}
        for name, _ in self.model.named_parameters():
            place = self._place(name)
            if place.axes == ("channels",) and name.endswith(".weight"):
                found[name.removesuffix(".weight")] = None
        return list(found)

    def consumers(self) -> dict[str, Consumer]:
        """Site name -> the linear whose input columns are the site's units."""
        result = {}
        for index, (path, width) in enumerate(zip(self.layers(), self.widths(), strict=True)):
            out = f"{path}.{self.family.attention.out}"
            if width.heads:
                result[f"layers.{index}.heads"] = Consumer(out, self.head_dim, self.family.conv1d)
                if width.kv < width.heads:
                    block = self.head_dim * width.heads // width.kv
                    result[f"layers.{index}.kv_groups"] = Consumer(out, block, self.family.conv1d)
            if width.neurons:
                path = f"{path}.{self.family.ffn.out}"
                result[f"layers.{index}.neurons"] = Consumer(path, 1, self.family.conv1d)
        return result

    def head_slices(self, layer: int) -> Iterator[tuple[str, int, int, int]]:
        """Where each whole set of heads stands in the input projections of `layer`: parameter, dim, start, length.

        Query heads; keys and values too where every query head has its own.
        """
        width = self.widths()[layer]
        for name, _ in self.model.named_parameters():
            place = self._place(name)
            if place.layer != layer or place.block != "attention" or place.module == self.family.attention.out:
                continue
            for dim, axis in enumerate(place.axes or ()):
                start = 0
                for part in axis.split("+"):
                    if not part.endswith("*"):
                        continue
                    length = self.head_dim * (width.heads if part == "heads*" else width.kv)
                    if part == "heads*" or width.kv == width.heads:
                        yield name, dim, start, length
                    start += length

    def _place(self, name: str) -> _Place:
        """Where a parameter or buffer belongs, and its axes in the order they are stored."""
        family = self.family
        inner = name.removeprefix(self.prefix)
        module, _, leaf = inner.rpartition(".")
        layer: int | None = None
        tables: dict[str, Mapping[str, tuple[str, ...]]] = {"": family.shared}
        if inner.startswith(f"{family.layers}."):
            number, _, module = module.removeprefix(f"{family.layers}.").partition(".")
            layer = int(number)
            tables = {"attention": family.attention.tensors, "ffn": family.ffn.tensors, "": family.layer}
        for block, table in tables.items():
            if module in table:
                axes = table[module]
                if leaf == "bias":
                    axes = axes[-1:] if family.conv1d and len(axes) == 2 else axes[:1]
                return _Place(layer, block, module, leaf, axes)
        for block, where in (("attention", family.attention), ("ffn", family.ffn)):
            if layer is not None and module in (*where.before, *where.after):
                return _Place(layer, block, module, leaf, ("channels",))
        return _Place(layer, "", module, leaf, None)

    def _check_parameters(self) -> None:
        for name, _ in self.model.named_parameters():
            place = self._place(name)
            if place.layer is not None and place.axes is None:
                raise UnsupportedError(
                    f"{name} is no part of a plain {self.family.model_type} layer, so it can't be cut with it: "
                    "merge adapters and drop cross-attention first"
                )

    # ----------------------------------------------------------------------------------------------- units

    def units(self, *axes: str, multiple: int = 8, batch: int = 1, length: int = 128) -> Units:
        """What could go, on these axes (all if none is named), with exact costs as polynomials of kept counts.

        Measures: params; bytes (weights as saved); flops (one forward pass of `batch` x `length` tokens, as
        `torch.utils.flop_counter` counts: 2 per multiply-add of the matrix products, attention as two full
        [length, length] products per head without a discount for causality or sliding windows); kv_cache
        (decoders: bytes of keys and values after `length` tokens); memory = bytes + kv_cache.
        `multiple` rounds neurons and channels. Raises `UnsupportedError` for an axis that isn't there.
        """
        sites = self._sites(multiple)
        kinds = {site.kind for site in sites.values()}
        for axis in axes:
            if axis not in kinds:
                there = ", ".join(name for name in AXES if name in kinds)
                raise UnsupportedError(f"axis {axis!r} is not one of this {self.family.model_type} model's: {there}")
        terms, base = self._terms(batch, length)
        whole = Units(sites, terms, base)
        return whole.only(*axes) if axes else whole

    def _sites(self, multiple: int = 8) -> dict[str, Site]:
        widths = self.widths()
        count = len(widths)
        every = np.arange(count)
        gone = {"attention": [not width.heads for width in widths], "ffn": [not width.neurons for width in widths]}
        sites = {"layers": Site("layers", count, minimum=1)}
        for kind, missing in gone.items():
            # What has gone in an earlier cut keeps its index here, and costs nothing.
            fixed = np.array(missing) if any(missing) else None
            sites[kind] = Site(kind, count, owner=("layers", every), fixed=fixed)
        for index, width in enumerate(widths):
            name = f"layers.{index}"
            attention = ("attention", np.full(width.heads, index))
            if width.kv < width.heads:
                group = np.repeat(np.arange(width.kv), width.heads // width.kv)
                owner = ("attention", np.full(width.kv, index))
                sites[f"{name}.kv_groups"] = Site(f"{name}.kv_groups", width.kv, owner=owner)
                sites[f"{name}.heads"] = Site(
                    f"{name}.heads", width.heads, group=group, owner=(f"{name}.kv_groups", group)
                )
            elif width.heads:
                sites[f"{name}.heads"] = Site(f"{name}.heads", width.heads, owner=attention)
            if width.neurons:
                owner = ("ffn", np.full(width.neurons, index))
                sites[f"{name}.neurons"] = Site(f"{name}.neurons", width.neurons, owner=owner, multiple=multiple)
        least = min(multiple, self.hidden_size)
        sites["channels"] = Site("channels", self.hidden_size, multiple=multiple, minimum=least)
        return sites

    def _monomials(self, place: _Place, shape: torch.Size, width: Widths | None) -> Iterator[tuple[float, list[str]]]:
        """A tensor's size as a sum of (coefficient, sites): the product of its axes, each a sum of parts."""

        def parts(axis: str, size: int) -> list[tuple[int, str | None]]:
            if not axis:
                return [(size, None)]
            return [self._part(part, place.layer, width) for part in axis.split("+")]

        axes = [parts(axis, size) for axis, size in zip(place.axes or ("",) * len(shape), shape, strict=True)]
        for chosen in itertools.product(*axes):
            yield math.prod(size for size, _ in chosen), sorted(site for _, site in chosen if site)

    def _part(self, part: str, layer: int | None, width: Widths | None) -> tuple[int, str]:
        if part == "channels":
            return 1, "channels"
        if part == "neurons":
            return 1, f"layers.{layer}.neurons"
        grouped = part == "kv*" and width is not None and width.kv < width.heads
        return self.head_dim, f"layers.{layer}.{'kv_groups' if grouped else 'heads'}"

    def _condition(self, place: _Place, width: Widths | None) -> dict[str, Any]:
        """With what a tensor leaves: its layer, and its sub-block unless it is the output bias or a norm after one."""
        if place.layer is None:
            return {}
        with_layer = {"units": (("layers", place.layer),)}
        block: Block | None = {"attention": self.family.attention, "ffn": self.family.ffn}.get(place.block)
        if block is None or width is None or not (width.heads if place.block == "attention" else width.neurons):
            return with_layer
        out = self.model.base_model.get_submodule(f"{self.family.layers}.{place.layer}.{block.out}")
        if (place.module == block.out and place.leaf == "bias") or (
            place.module in block.after and out.bias is not None
        ):
            return with_layer
        site = "heads" if place.block == "attention" else "neurons"
        return with_layer | {"present": (f"layers.{place.layer}.{site}",)}

    def _terms(self, batch: int, length: int) -> tuple[tuple[Term, ...], dict[str, float]]:
        total: dict[Term, float] = {}
        base: dict[str, float] = {"params": 0.0, "bytes": 0.0, "flops": 0.0, "memory": 0.0}
        widths = self.widths()

        def add(measure: str, coefficient: float, sites: list[str], condition: Mapping[str, Any]) -> None:
            if sites or condition:
                key = Term(measure, 1.0, tuple(sites), **condition)
                total[key] = total.get(key, 0.0) + coefficient
            else:
                base[measure] = base.get(measure, 0.0) + coefficient

        for name, parameter in self.model.named_parameters():
            place = self._place(name)
            width = None if place.layer is None else widths[place.layer]
            condition = self._condition(place, width)
            for size, sites in self._monomials(place, parameter.shape, width):
                add("params", size, sites, condition)
                for measure in ("bytes", "memory"):
                    add(measure, size * parameter.element_size(), sites, condition)

        for name, linear in self._linears():
            place = self._place(f"{name}.weight")
            width = None if place.layer is None else widths[place.layer]
            once = place.layer is None and place.module in self.family.per_sequence and self._once(place.module)
            tokens = batch if once else batch * length
            for size, sites in self._monomials(place, linear.weight.shape, width):
                add("flops", 2.0 * tokens * size, sites, self._condition(place, width))

        for index, width in enumerate(widths):
            if width.heads:
                heads = f"layers.{index}.heads"
                add("flops", 4.0 * batch * length**2 * self.head_dim, [heads], {"units": (("layers", index),)})
        for measure, coefficient, sites, condition in self._cache(widths, batch, length):
            for name in (measure, "memory"):
                add(name, coefficient, sites, condition)
        return tuple(replace(term, coefficient=value) for term, value in total.items()), base

    def _cache(
        self, widths: list[Widths], batch: int, length: int
    ) -> Iterator[tuple[str, float, list[str], dict[str, Any]]]:
        """Cost of what is cached in generation: nothing here."""
        yield from ()

    def _linears(self) -> Iterator[tuple[str, Any]]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                yield name, module

    def _once(self, module: str) -> bool:
        """A classifier reads one position of a sequence, unless it labels tokens."""
        return module != "classifier" or "TokenClassification" not in type(self.model).__name__

    # ------------------------------------------------------------------------------------------------- cut

    def cut(self, selection: Selection, *, norm_correction: bool = True) -> tuple[Transformer, Cut]:
        """A smaller copy with the selection made real, and the receipt; this subject stays as it is.

        Heads, KV groups, neurons, sub-blocks and layers: exactly equal to silencing them. Channels of RMSNorm
        models: exact with `norm_correction`, for with d of D channels kept, zero channels make
        RMS_D(x) = RMS_d(x) sqrt(d/D), so weights grow by sqrt(D/d) and epsilon by D/d. LayerNorm subtracts a mean
        as well, for which no such factor exists: there, norms simply run over the kept channels.
        The widths are those of the selection; odd ones are named in the notes. Raises `InputError` for a selection
        that doesn't fit or leaves nothing, `UnsupportedError` for one this model can't take.
        """
        keep = self._resolve(selection)
        kept = self._kept(keep)
        sites = self._sites()
        removed = {name: (int((~stays).sum()), sites[name].count) for name, stays in keep.items() if not stays.all()}
        before = self._count()
        if not removed:
            return self._copy(copy.deepcopy(self.model), self.layer_index), Cut({}, before, before)
        widths = kept.widths()
        channels = self.hidden_size if kept.channels is None else len(kept.channels)
        state = self._sliced(kept)
        notes = self._odd_widths(widths, channels)
        config = self._config(widths, channels, kept.layers)
        if kept.channels is not None:
            notes += self._check_channels()
            if norm_correction:
                notes += self._correct_norms(state, config, channels)
        self._fold_layer_scale(state, config, kept.layers)
        model = self._build(config, state)
        result = self._copy(model, tuple(self.layer_index[index] for index in kept.layers))
        result._resize_head(channels)
        return result, Cut(removed, before, result._count(), tuple(notes))

    def silence(self, selection: Selection) -> Transformer:
        """The same shapes with the units that go set to zero: the reference which a cut must equal.

        Layers that go are bypassed. Where channels go, LayerNorms run over the kept channels (see `cut`);
        RMSNorms need no help.
        """
        keep = self._resolve(selection)
        kept = self._kept(keep)
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                place = self._place(name)
                if place.axes is None or (place.layer is not None and place.layer not in kept.parts):
                    continue
                for dim, axis in enumerate(place.axes):
                    index = self._index(axis, place.layer, kept)
                    if index is not None:
                        gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                        gone[index] = False
                        tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0.0)
        layers: Any = model.base_model.get_submodule(self.family.layers)
        for number in range(len(self.layer_index)):
            if number not in kept.parts:
                layers[number] = _Bypass()
        if kept.channels is not None:
            self._check_channels()
            for name in self.norms():
                norm = model.get_submodule(name) if _has(model, name) else None
                if isinstance(norm, nn.LayerNorm):
                    model.set_submodule(name, _KeptLayerNorm(norm, kept.channels))
        return self._copy(model, self.layer_index)

    def _copy(self, model: PreTrainedModel, layer_index: tuple[int, ...]) -> Transformer:
        result = copy.copy(self)
        result.model = model
        result.layer_index = layer_index
        result.head = copy.deepcopy(self.head)
        return result

    def _count(self) -> dict[str, float]:
        parameters = list(self.model.parameters()) + [p for module in self.head for p in module.parameters()]
        return {
            "params": float(sum(p.numel() for p in parameters)),
            "bytes": float(sum(p.numel() * p.element_size() for p in parameters)),
        }

    def _resolve(self, selection: Selection) -> dict[str, np.ndarray]:
        sites = self._sites()
        keep = {}
        for name, stays in selection.keep.items():
            if name not in sites:
                raise InputError(f"selection names {name}, which this model has not: it has {_listed(sites)}")
            array = stays.detach().cpu().numpy() if isinstance(stays, Tensor) else np.asarray(stays)
            if array.shape != (sites[name].count,):
                raise InputError(
                    f"selection has {tuple(array.shape)} entries at {name}: expected ({sites[name].count},)"
                )
            keep[name] = array.astype(bool)
        return dict(Units(sites).effective(keep))

    def _kept(self, keep: Mapping[str, np.ndarray]) -> _Kept:
        def indices(site: str, count: int) -> Tensor:
            return torch.from_numpy(np.flatnonzero(keep[site])) if site in keep else torch.arange(count)

        widths = self.widths()
        channels = indices("channels", self.hidden_size)
        kept = _Kept(indices("layers", len(widths)).tolist(), channels if len(channels) < self.hidden_size else None)
        for index in kept.layers:
            width, name = widths[index], f"layers.{index}"
            heads = indices(f"{name}.heads", width.heads)
            kv = indices(f"{name}.kv_groups", width.kv) if width.kv < width.heads else heads
            if width.kv < width.heads and len(heads):
                counts = torch.bincount(heads // (width.heads // width.kv), minlength=width.kv)[kv]
                if len(set(counts.tolist())) > 1:
                    raise UnsupportedError(
                        f"selection keeps {counts.tolist()} query heads in the KV groups of {name}.heads: grouped "
                        "attention needs equally many in each; rank inside the groups"
                    )
            kept.parts[index] = {
                "heads": heads,
                "kv": kv if len(heads) else heads,
                "neurons": indices(f"{name}.neurons", width.neurons),
            }
        if not kept.layers or not len(channels) or not any(w.heads or w.neurons for w in kept.widths()):
            what = "no channel" if not len(channels) else "no attention and no FFN in any layer"
            raise InputError(f"selection keeps {what if kept.layers else 'no layer'}: nothing would remain to run")
        return kept

    def _index(self, axis: str, layer: int | None, kept: _Kept) -> Tensor | None:
        """Positions along one stored axis that stay; None: all of them."""
        if not axis or (axis == "channels" and kept.channels is None):
            return None
        if axis == "channels":
            return kept.channels
        assert layer is not None
        width, parts = self.widths()[layer], kept.parts[layer]
        pieces, offset = [], 0
        for part in axis.split("+"):
            count, index = {
                "neurons": (width.neurons, parts["neurons"]),
                "heads*": (width.heads, parts["heads"]),
                "kv*": (width.kv, parts["kv"]),
            }[part]
            block = self.head_dim if part.endswith("*") else 1
            pieces.append(offset + (index[:, None] * block + torch.arange(block)).flatten())
            offset += count * block
        return torch.cat(pieces)

    def _sliced(self, kept: _Kept) -> dict[str, Tensor]:
        """The state dict of the result: every tensor cut along its axes and renamed to its new layer."""
        number = {old: new for new, old in enumerate(kept.layers)}
        before = self.widths()
        state = {}
        for name, tensor in self.model.state_dict().items():
            place = self._place(name)
            if place.layer is not None:
                if place.layer not in number:
                    continue
                if self._leaves(place, kept, before[place.layer]):
                    continue
                start = f"{self.prefix}{self.family.layers}."
                name = f"{start}{number[place.layer]}.{place.module}.{place.leaf}"
            result = tensor.detach()
            for dim, axis in enumerate(place.axes or ()):
                index = self._index(axis, place.layer, kept)
                if index is not None:
                    result = result.index_select(dim, index.to(tensor.device))
            state[name] = result.clone() if result.data_ptr() == tensor.data_ptr() else result
        return state

    def _leaves(self, place: _Place, kept: _Kept, width: Widths) -> bool:
        assert place.layer is not None
        parts = kept.parts[place.layer]
        gone = {"attention": not len(parts["heads"]), "ffn": not len(parts["neurons"])}.get(place.block, False)
        return gone and "present" in self._condition(place, width)

    def _config(self, widths: list[Widths], channels: int, layers: list[int]) -> Any:
        """The config of a model of these widths: a plain one where it can say it, else with `per_layer_config`."""
        family, old = self.family, self.model.config
        data = old.to_dict()
        for name in ("per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", "architectures"):
            data.pop(name, None)
        native = type(old).attribute_map
        heads_name, layers_name, hidden_name = (
            native.get(name, name) for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
        )
        has_kv = "num_key_value_heads" in data
        data[layers_name], data[hidden_name] = len(widths), channels
        if data.get("layer_types"):
            data["layer_types"] = [data["layer_types"][index] for index in layers]
        data["secateur"] = (data.get("secateur") or {}) | {"layer_index": [self.layer_index[index] for index in layers]}

        heads = max(width.heads for width in widths) or data[heads_name]
        kv = max(width.kv for width in widths) or data.get("num_key_value_heads") or heads
        neurons = max(width.neurons for width in widths) or self.widths()[0].neurons or 4 * channels
        plain = all(width == Widths(heads, kv, neurons) for width in widths) and (
            channels == heads * self.head_dim
            if not family.states_head_dim
            else not family.heads_divide or channels % heads == 0
        )
        data[family.neurons] = neurons
        if family.states_head_dim or not plain:
            data["head_dim"] = self.head_dim
        if not plain and (not family.states_head_dim or family.heads_divide):
            # The class refuses other counts; every layer states its own.
            data[heads_name] = math.gcd(channels, heads)
        else:
            data[heads_name] = heads
        if has_kv:
            data["num_key_value_heads"] = kv if plain else min(kv, data[heads_name])
        if not plain:
            data["allow_global_per_layer_attribute_access"] = True
            data["per_layer_config"] = {
                index: _overrides(width, has_kv, family.neurons) for index, width in enumerate(widths)
            }
        config = type(old).from_dict(data)
        config._attn_implementation = old._attn_implementation
        return saving.mark(config, family) if not plain else config

    def _build(self, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
        architecture = saving.architecture(type(self.model), config, self.family)
        with no_init_weights():
            model: PreTrainedModel = architecture(config)
        model.load_state_dict(dict(state), strict=True, assign=True)
        model.tie_weights()
        model.to(self.model.device)
        if self.model.can_generate():
            model.generation_config = copy.deepcopy(self.model.generation_config)
        model.requires_grad_(True)
        return model.train(self.model.training)

    # -------------------------------------------------------------------------------- corrections and notes

    def _check_channels(self) -> list[str]:
        """Refuse a channels cut which would miss a tensor; note what it can't make exact."""
        for name, tensor in self.model.named_parameters():
            if self._place(name).axes is None and self.hidden_size in tensor.shape:
                raise UnsupportedError(
                    f"channels can't be cut: {name} {tuple(tensor.shape)} has an axis of hidden_size "
                    f"{self.hidden_size} but is unknown in {self.family.model_type}"
                )
        for module in self.head:
            if any(True for _ in module.parameters()):
                raise UnsupportedError(
                    f"channels can't be cut: the sentence-transformers module {type(module).__name__} has weights "
                    "of its own on the embedding"
                )
        if any(isinstance(self.model.get_submodule(name), nn.LayerNorm) for name in self.norms()):
            return ["LayerNorm has no exact correction for fewer channels: norms now run over the kept ones"]
        return []

    def _correct_norms(self, state: dict[str, Tensor], config: Any, channels: int) -> list[str]:
        """RMSNorm over d of D channels, made equal to D channels of which D - d are zero.

        w / sqrt(S/D + eps) = w sqrt(D/d) / sqrt(S/d + eps D/d), S the sum of squares. The config has one epsilon,
        which per-head norms of queries and keys share: their inputs grow by sqrt(D/d) and so does the root.
        Gemma multiplies embeddings by sqrt(hidden_size): the table grows by sqrt(D/d), and where the LM head is
        the same table, the final norm drops its factor.
        """
        family = self.family
        if not hasattr(config, "rms_norm_eps"):
            return []
        ratio = self.hidden_size / channels
        root, notes = math.sqrt(ratio), []
        config.rms_norm_eps = config.rms_norm_eps * ratio
        tied = bool(getattr(config, "tie_word_embeddings", False)) and self.model.get_output_embeddings() is not None
        for name, tensor in state.items():
            place = self._place(name)
            final = family.scaled_embedding and tied and place.layer is None
            if place.axes == ("channels",) and place.leaf == "weight" and not final:
                tensor.copy_((tensor.double() + family.norm_offset) * root - family.norm_offset)
            elif place.module in family.qk_norms or (family.scaled_embedding and place.module == "embed_tokens"):
                tensor.mul_(root)
            elif family.scaled_embedding and tied and place.module == "lm_head":
                tensor.copy_(state[f"{self.prefix}embed_tokens.weight"])
        if family.scaled_embedding and tied:
            notes.append(
                "the embedding scale sqrt(hidden_size) was folded into the tied table: logits are exact, "
                "the final hidden state is scaled"
            )
        return notes

    def _fold_layer_scale(self, state: dict[str, Tensor], config: Any, layers: list[int]) -> None:
        """GPT-2 may divide attention by the layer's number: fold it into the queries before layers move."""
        if not getattr(config, "scale_attn_by_inverse_layer_idx", False) or len(layers) == len(self.layer_index):
            return
        config.scale_attn_by_inverse_layer_idx = False
        for new, old in enumerate(layers):
            for leaf in ("weight", "bias"):
                tensor = state.get(f"{self.prefix}{self.family.layers}.{new}.attn.c_attn.{leaf}")
                if tensor is not None:
                    tensor[..., : tensor.shape[-1] // 3] /= old + 1

    def _odd_widths(self, widths: list[Widths], channels: int) -> list[str]:
        odd = {width.neurons for width in widths if width.neurons % 8 and width not in self.widths()}
        odd |= {channels} if channels % 8 and channels != self.hidden_size else set()
        return [f"widths that are no multiple of 8 run slower: {', '.join(map(str, sorted(odd)))}"] if odd else []

    def _resize_head(self, channels: int) -> None:
        for module in self.head:
            for name in ("embedding_dimension", "word_embedding_dimension"):
                if module.__dict__.get(name):
                    modes = getattr(module, "pooling_output_dimension", channels) // getattr(module, name)
                    setattr(module, name, channels)
                    if "pooling_output_dimension" in module.__dict__:
                        module.pooling_output_dimension = channels * max(modes, 1)

    # ------------------------------------------------------------------------------------------------- run

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False) -> Output:
        """Run the model on a batch with `input_ids` and `attention_mask` [B, S]; other keys are left aside."""
        accepted = inspect.signature(self.model.forward).parameters
        inputs = {name: batch[name] for name in _INPUTS if name in batch and name in accepted}
        if "use_cache" in accepted:
            inputs["use_cache"] = False  # type: ignore[assignment]
        states: list[Tensor] = []
        hooks = []
        if hidden:
            layers = [self.model.get_submodule(path) for path in self.layers()]
            hooks.append(
                layers[0].register_forward_pre_hook(
                    lambda _, args, kw: states.append(_states(args, kw)), with_kwargs=True
                )
            )
            hooks += [
                layer.register_forward_hook(
                    lambda _, args, out: states.append(out[0] if isinstance(out, tuple) else out)
                )
                for layer in layers
            ]
        try:
            result = self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return Output(self._prediction(result, batch), tuple(states))

    def _prediction(self, result: Any, batch: Mapping[str, Tensor]) -> Tensor:
        if self.output == "logits":
            logits: Tensor = result.logits if "logits" in result else result[0]
            return logits
        states: Tensor = result.last_hidden_state
        if self.output == "states":
            return states
        mask = batch.get("attention_mask", torch.ones(states.shape[:2], device=states.device, dtype=torch.long))
        features: dict[str, Any] = {"token_embeddings": states, "attention_mask": mask}
        for module in self.head:
            features = module(features)
        embedding: Tensor = features["sentence_embedding"]
        return embedding

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A valid random input of `batch` sequences of `length` tokens, without padding."""
        vocabulary, pad = self.model.config.vocab_size, getattr(self.model.config, "pad_token_id", None)
        tokens = torch.randint(0, vocabulary, (batch, length))
        if pad is not None:
            tokens[tokens == pad] = (pad + 1) % vocabulary
        data = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return {name: tensor.to(self.model.device) for name, tensor in data.items()}

    def probe(
        self,
        kind: Literal["heads", "kv_groups", "neurons"],
        kept: int,
        batch: int,
        length: int,
        device: str | torch.device = "cpu",
    ) -> Callable[[], Any]:
        """A callable that runs one attention or FFN sub-block with `kept` units, for latency tables.

        It has random weights and input [batch, length, hidden_size]. Norms that serve the sub-block alone, and
        the residual sum, are part of it; the LayerNorm of a post-norm layer stays when the sub-block goes, so it is
        not. With 0 units it does nothing.
        """
        first = next((width for width in self.widths() if width.heads and width.neurons), None)
        if first is None:
            raise UnsupportedError("no layer has both its attention and its FFN: open the uncut model to probe it")
        if kind == "neurons":
            width, block, whole = Widths(0, 0, kept), self.family.ffn, first.neurons
        elif kind == "kv_groups" and first.kv < first.heads:
            width, block, whole = Widths(kept * first.heads // first.kv, kept, 0), self.family.attention, first.kv
        elif kind == "heads" and first.kv < first.heads:
            if kept % first.kv:
                raise InputError(f"heads={kept} does not spread evenly over {first.kv} KV groups")
            width, block, whole = Widths(kept, first.kv, 0), self.family.attention, first.heads
        elif kind == "heads":
            width, block, whole = Widths(kept, kept, 0), self.family.attention, first.heads
        else:
            raise InputError(f"probe kind {kind!r}: expected heads, neurons, or kv_groups in a grouped model")
        if not 0 <= kept <= whole:
            raise InputError(f"probe of {kept} {kind}: a layer here has {whole}")
        return self._probe(width, block, batch, length, torch.device(device)) if kept else lambda: None

    def _probe(self, width: Widths, block: Block, batch: int, length: int, device: torch.device) -> Callable[[], Any]:
        config = self._config([width], self.hidden_size, [0])
        config.vocab_size = 8
        config.bos_token_id = config.eos_token_id = None
        config.pad_token_id = None if config.pad_token_id is None else 0
        base = saving.architecture(type(self.model.base_model), config, self.family)
        model = base(config).to(device=device, dtype=self.model.dtype).eval()
        layer = model.get_submodule(self.family.layers)[0]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        module = layer.get_submodule(block.module)
        hook = module.register_forward_pre_hook(lambda _, args, kw: calls.append((args, kw)), with_kwargs=True)
        with torch.no_grad():
            tokens = torch.ones(batch, length, dtype=torch.long, device=device)
            model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                **({"use_cache": False} if self.kind == "decoder" else {}),
            )
        hook.remove()
        args, kwargs = calls[0]
        hidden = torch.randn(batch, length, self.hidden_size, device=device, dtype=self.model.dtype)
        before = [layer.get_submodule(name) for name in block.before]
        after = [layer.get_submodule(name) for name in block.after]
        out = None if block.out.startswith(f"{block.module}.") else layer.get_submodule(block.out)

        @torch.no_grad()
        def run() -> Tensor:
            states = hidden
            for norm in before:
                states = norm(states)
            result = module(states, *args[1:], **kwargs) if args else module(**kwargs | {"hidden_states": states})
            states = result[0] if isinstance(result, tuple) else result
            if out is not None:
                states = out(states)
            for norm in after:
                states = norm(states)
            output: Tensor = hidden + states if before else states
            return output

        return run

    def save(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write the model and all that belongs to it into `folder` (see `saving.save`)."""
        saving.save(self, Path(folder), card)


@dataclass(frozen=True)
class _Place:
    layer: int | None
    block: str
    """ "attention", "ffn" or ""."""
    module: str
    leaf: str
    axes: tuple[str, ...] | None
    """None: not in the family's table."""


class _Bypass(nn.Module):
    """A layer that passes its input on."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


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


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _listed(names: Mapping[str, Any], most: int = 6) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
