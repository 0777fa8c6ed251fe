"""Layers whose inputs and weights are integers times a scale, and how their weights are packed in a file.

A layer computes ``Q(x) Q(W)^T + b`` with ``Q(v) = s clip(round(v / s), -2^(b-1), 2^(b-1) - 1)``: one scale s for all of
x, one for each output of W. Zero is zero, so that a mask of weights survives. It is simulated: the numbers are those
that an engine for integers computes, the time is not. In ONNX it becomes QuantizeLinear and DequantizeLinear (`qdq`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateur.errors import InputError, ModelError

__all__ = [
    "Attention",
    "Conv2d",
    "Form",
    "Linear",
    "Scales",
    "blank_scales",
    "find_layers",
    "install",
    "pack",
    "pack_state",
    "quantise",
    "quantised_layers",
    "stored_bytes",
    "unfold",
    "unpack",
    "unpack_state",
]


def quantise(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Q(v) of the top of this module; `scale` is broadcast."""
    limit = 2 ** (bits - 1)
    return torch.clamp(torch.round(values / scale), -limit, limit - 1) * scale


@dataclass(frozen=True, eq=False)
class Scales:
    """What quantises a layer: bits of inputs and weights, the input's scale [], the weight's scale [d_out]."""

    bits: int
    inputs: Tensor
    weights: Tensor


class Linear(nn.Linear):
    """A linear layer of integers; `weight` holds Q(W) as floats, ready to be read."""

    bits: int
    input_scale: Tensor
    weight_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        weight = quantise(self.weight, self.weight_scale[:, None], self.bits)
        return functional.linear(quantise(x, self.input_scale, self.bits), weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution of integers, one scale for each output channel."""

    bits: int
    input_scale: Tensor
    weight_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, d_out, H', W']."""
        weight = quantise(self.weight, self.weight_scale[:, None, None, None], self.bits)
        found: Tensor = self._conv_forward(quantise(x, self.input_scale, self.bits), weight, self.bias)
        return found


class Attention(nn.Module):
    """`nn.MultiheadAttention` with its four projections as two linear layers, which can be quantised one by one.

    The same arguments and results; PyTorch's fused paths, which pass the layers by, are not taken.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        width = attention.embed_dim
        bias = attention.in_proj_bias
        self.in_proj = _set_weights(
            nn.Linear(width, 3 * width, bias=False, device="meta"), attention.in_proj_weight, bias
        )
        outer = attention.out_proj
        self.out_proj = _set_weights(nn.Linear(width, width, bias=False, device="meta"), outer.weight, outer.bias)
        # What nn.TransformerEncoderLayer asks before it takes a fused path.
        self.in_proj_bias, self._qkv_same_embed_dim = None, False
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        batched = query.dim() == 3
        if query is key is value:
            parts = self.in_proj(query).chunk(3, -1)
        else:
            parts = tuple(self.in_proj(one).chunk(3, -1)[place] for place, one in enumerate((query, key, value)))
        if not batched:
            parts = tuple(part.unsqueeze(0) for part in parts)
        elif not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.embed_dim // self.num_heads)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[..., None, None, :]):
            if mask is not None:
                wide = mask.unflatten(0, (-1, self.num_heads)) if mask is attn_mask and mask.dim() == 3 else mask
                scores = scores.masked_fill(wide, -math.inf) if wide.dtype == torch.bool else scores + wide
        shares = functional.dropout(scores.softmax(-1), self.dropout, self.training)
        found = self.out_proj((shares @ v).transpose(1, 2).flatten(2))
        seen = (shares.mean(1) if average_attn_weights else shares) if need_weights else None
        if not batched:
            return found[0], None if seen is None else seen[0]
        return (found if self.batch_first else found.transpose(0, 1)), seen


def _set_weights(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer.weight = cast(nn.Parameter, weight)
    if bias is not None:
        layer.bias = cast(nn.Parameter, bias)
    return layer


# ------------------------------------------------------------------------------------------------------- networks


def unfold(model: nn.Module, paths: Iterable[str] | None = None) -> tuple[str, ...]:
    """Replace, in place, each `nn.MultiheadAttention` that holds its input projections in one matrix by `Attention`.

    Those at `paths`, or all; returns their paths. The parameter `in_proj_weight` is then `in_proj.weight`.
    """
    modules = dict(model.named_modules())
    if paths is None:
        paths = [path for path, one in modules.items() if type(one) is nn.MultiheadAttention and _plain(one)]
    done = []
    for path in paths:
        found = modules.get(path)
        if not isinstance(found, nn.MultiheadAttention) or not path:
            raise ModelError(f"the cut names the attention {path}, which is not there: build the original")
        model.set_submodule(path, Attention(found))
        done.append(path)
    return tuple(done)


def _plain(attention: nn.MultiheadAttention) -> bool:
    return attention._qkv_same_embed_dim and attention.bias_k is None and not attention.add_zero_attn


def find_layers(model: nn.Module, call: Callable[[], object]) -> tuple[list[str], dict[str, str]]:
    """(paths of the layers that can be quantised, path -> why another layer with a matrix can't).

    call: runs the model on examples. A layer must be a plain `nn.Linear` or `nn.Conv2d` and be called as a module:
    code that reads its weights and multiplies by itself would pass the quantised layer by.
    """
    wanted = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda _, args, output, path=path: called.add(path))
        for path, module in wanted.items()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    found, reasons = [], {}
    for path, module in wanted.items():
        if type(module) not in (nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv2d):
            reasons[path] = f"is a {type(module).__name__}"
        elif getattr(module, "padding_mode", "zeros") != "zeros":
            reasons[path] = f"pads by {module.padding_mode}"
        elif path not in called:
            reasons[path] = "is read by other code and not called as a layer"
        else:
            found.append(path)
    return found, reasons


def install(model: nn.Module, scales: Mapping[str, Scales]) -> None:
    """Make the layers at these paths quantised ones, in place, and their weights Q(W)."""
    modules = dict(model.named_modules())
    for path, given in scales.items():
        module: Any = modules[path]
        module.__class__ = Conv2d if isinstance(module, nn.Conv2d) else Linear
        module.bits = given.bits
        least = torch.finfo(module.weight.dtype).smallest_normal  # a row of zeros has no scale of its own
        module.register_buffer("input_scale", given.inputs.detach().clone().to(module.weight).clamp(min=least))
        module.register_buffer("weight_scale", given.weights.detach().clone().to(module.weight).clamp(min=least))
        with torch.no_grad():
            shape = (-1, *[1] * (module.weight.dim() - 1))
            module.weight.copy_(quantise(module.weight, module.weight_scale.view(shape), given.bits))


def blank_scales(layer: nn.Module | None, path: str, bits: int) -> Scales:
    """Scales of 1 for the layer at `path`, to be filled from a file."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ModelError(f"the cut names the layer {path}, which is not there: build the original")
    return Scales(bits, torch.ones(()), torch.ones(len(layer.weight)))


def quantised_layers(model: nn.Module) -> dict[str, Linear | Conv2d]:
    """Path -> quantised layer."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Linear | Conv2d)}


# ---------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class Form:
    """The pattern by which a matrix is packed: n of m consecutive units, each of `unit` weights, stay in every row."""

    n: int
    m: int
    unit: int = 1

    @property
    def places(self) -> int:
        """Bits for the place of a unit among m."""
        return max(1, math.ceil(math.log2(self.m)))


def pack(integers: Tensor, mask: Tensor, form: Form, bits: int) -> dict[str, Tensor]:
    """{"values", "places"}, uint8 [bytes] each: the integers that stay, row by row, and where each unit of them stood.

    integers: int8 [d_out, d_in] of at most `bits`; mask: booleans, exactly n of m units everywhere.
    """
    held = mask.unflatten(1, (-1, form.m, form.unit))
    whole = held.all(3)
    if not bool((held.any(3) == whole).all()) or not bool((whole.sum(2) == form.n).all()):
        raise InputError(f"a mask that is not {form.n}:{form.m} in units of {form.unit} can't be packed so")
    places = whole.nonzero()[:, 2]
    return {"values": _bits(integers[mask], bits), "places": _bits(places, form.places)}


def unpack(parts: Mapping[str, Tensor], shape: tuple[int, int], form: Form, bits: int) -> tuple[Tensor, Tensor]:
    """(integers, mask) of `pack`."""
    rows, columns = shape
    groups = columns // (form.m * form.unit)
    places = _numbers(parts["places"], form.places, rows * groups * form.n).view(rows, groups, form.n)
    units = torch.zeros(rows, groups, form.m, dtype=torch.bool).scatter_(2, places, True)
    mask = units[..., None].expand(*units.shape, form.unit).reshape(shape)
    values = _numbers(parts["values"], bits, int(mask.sum()))
    limit = 2 ** (bits - 1)
    integers = torch.zeros(shape, dtype=torch.int8)
    integers[mask] = torch.where(values >= limit, values - 2 * limit, values).to(torch.int8)
    return integers, mask


def _bits(numbers: Tensor, width: int) -> Tensor:
    """The lowest `width` bits of each number, one after another, in bytes."""
    from secateur.formats import unpacking  # which loads transformers

    return unpacking.bits(((numbers.to(torch.int32).flatten()[:, None] >> torch.arange(width)) & 1).flatten())


def _numbers(packed: Tensor, width: int, count: int) -> Tensor:
    from secateur.formats import unpacking

    if 8 * packed.numel() < count * width:
        raise ModelError("the file of a packed network is damaged: save the result again")
    return (unpacking.unpack_bits(packed, count * width).view(count, width).long() << torch.arange(width)).sum(1)


def stored_bytes(layer: Linear | Conv2d, form: Form | None = None) -> float:
    """Bytes of a layer's integers in a file, packed by the pattern of its mask where it has one."""
    count = layer.weight.numel()
    if form is None:
        return math.ceil(count * layer.bits / 8)
    units = count * form.n / (form.m * form.unit)
    return math.ceil(units * form.unit * layer.bits / 8) + math.ceil(units * form.places / 8)


def pack_state(
    model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], forms: Mapping[str, Form]
) -> dict[str, Tensor]:
    """A state with the weights of quantised layers as integers, packed where a mask of a known form closes some."""
    found = dict(state)
    for path, layer in quantised_layers(model).items():
        name = f"{path}.weight"
        flat = layer.weight.detach().flatten(1).cpu()
        integers = torch.round(flat / layer.weight_scale.cpu()[:, None]).to(torch.int8)
        del found[name]
        if name in masks and name in forms:
            parts = pack(integers, masks[name].flatten(1), forms[name], layer.bits)
            found.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
        else:
            found[f"{name}.values"] = _bits(integers, layer.bits)
    return found


def unpack_state(
    model: nn.Module, state: Mapping[str, Tensor], forms: Mapping[str, Form]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of `pack_state`: (state as the model holds it, masks). `model` has its quantised layers already."""
    found, masks = dict(state), dict[str, Tensor]()
    for path, layer in quantised_layers(model).items():
        name = f"{path}.weight"
        parts = {part: found.pop(f"{name}.{part}") for part in ("values", "places") if f"{name}.{part}" in found}
        scale = found.get(f"{path}.weight_scale")
        if "values" not in parts or scale is None:
            raise ModelError(f"the file of a packed network lacks the integers of {name}: save the result again")
        shape = cast(tuple[int, int], tuple(layer.weight.flatten(1).shape))
        if "places" in parts and name in forms:
            integers, mask = unpack(parts, shape, forms[name], layer.bits)
            masks[name] = mask.view_as(layer.weight)
        else:
            limit = 2 ** (layer.bits - 1)
            values = _numbers(parts["values"], layer.bits, layer.weight.numel())
            integers = torch.where(values >= limit, values - 2 * limit, values).to(torch.int8).view(shape)
        found[name] = (integers.to(scale.dtype) * scale[:, None]).view_as(layer.weight)
    return found, masks
