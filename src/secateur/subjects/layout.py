"""Where everything stands in one transformer: names, axes and widths, read from the family's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from secateur.subjects.families import Axes, Block, Family

__all__ = ["Layout", "Place", "Widths"]


@dataclass(frozen=True)
class Widths:
    """How many units a layer has; 0 heads: no attention, 0 neurons: no FFN."""

    heads: int
    kv: int
    neurons: int

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.kv < self.heads


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: its layer, sub-block ("attention", "ffn" or ""), module and leaf, and its axes as stored.

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
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.hidden_size = int(config.hidden_size)
        ropes = getattr(config, "rope_parameters", None) or {}
        self.fixed_ratio = family.checks_ropes and "short_factor" in ropes
        """The config class wants hidden_size / heads as they are: channels stay, other heads need a modelling file."""

    @cached_property
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
        return [f"{self.prefix}{self.family.layers}.{index}" for index in range(len(self.widths))]

    def norms(self) -> list[str]:
        """Module paths of every norm over the residual channels."""
        weights = (name for name, _ in self.model.named_parameters() if name.endswith(".weight"))
        return [name.removesuffix(".weight") for name in weights if self.place(name).axes == ("channels",)]

    def linears(self) -> Iterator[tuple[str, Any]]:
        """Every matrix product, by module path."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                yield name, module

    def block(self, kind: str) -> Block | None:
        """The sub-block of that kind ("attention" or "ffn")."""
        return {"attention": self.family.attention, "ffn": self.family.ffn}.get(kind)

    @cached_property
    def _layer_tables(self) -> dict[str, dict[str, Axes]]:
        tables: dict[str, dict[str, Axes]] = {"": dict(self.family.layer)}
        for kind, block in (("attention", self.family.attention), ("ffn", self.family.ffn)):
            norms: dict[str, Axes] = dict.fromkeys((*block.before, *block.after), ("channels",))
            tables[kind] = {**block.tensors, **norms}
        return tables

    def place(self, name: str) -> Place:
        """Where a parameter or buffer belongs."""
        family = self.family
        inner = name.removeprefix(self.prefix)
        module, _, leaf = inner.rpartition(".")
        layer: int | None = None
        tables: Mapping[str, Mapping[str, Axes]] = {"": family.shared}
        if inner.startswith(f"{family.layers}."):
            number, _, module = module.removeprefix(f"{family.layers}.").partition(".")
            layer, tables = int(number), self._layer_tables
        for kind, table in tables.items():
            if module in table:
                axes = table[module]
                if leaf == "bias":
                    axes = axes[-1:] if family.conv1d and len(axes) == 2 else axes[:1]
                return Place(layer, kind, module, leaf, axes)
        return Place(layer, "", module, leaf, None)

    def leaves_with_block(self, place: Place) -> bool:
        """Whether a tensor leaves with its sub-block; the output bias stays, and a norm after it then stays too."""
        block = self.block(place.block)
        if block is None or place.layer is None:
            return False
        width = self.widths[place.layer]
        if not (width.heads if place.block == "attention" else width.neurons):
            return False  # what an earlier cut has left
        if place.module == block.out:
            return place.leaf != "bias"
        if place.module in block.after:
            out = self.model.base_model.get_submodule(f"{self.family.layers}.{place.layer}.{block.out}")
            return out.bias is None
        return True
