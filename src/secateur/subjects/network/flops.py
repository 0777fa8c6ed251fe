"""FLOPs of a recorded pass, operator by operator: a number times sizes of dimensions that may shrink.

What counts, and by which formula, is `torch.utils.flop_counter`'s: matrix products, convolutions and attention,
multiply and add as two. Those formulas are products of sizes, so a count follows from the sizes that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from secateur.subjects.network.labels import Flow
from secateur.subjects.network.operators import Arguments, EagerMode, Keywords

__all__ = ["Counter", "Product", "Size", "products"]

_aten = torch.ops.aten


def _on_cpu(query: object, key: object, value: object, *_: object, **__: object) -> int:
    """Attention, given as tensors or as their shapes."""
    return int(sdpa_flop_count(*(getattr(one, "shape", one) for one in (query, key, value))))


# torch counts attention only by its kernels on other devices; on a CPU it would be left out silently.
_MORE: dict[Any, Any] = {_aten._scaled_dot_product_flash_attention_for_cpu: _on_cpu}

Dimension = tuple[Tensor, int]
Factors = Sequence[Sequence[Dimension]]


@dataclass(frozen=True, eq=False)
class Size:
    """How long a dimension is, and which labels may lie along it: (label tensor, dimension)."""

    length: int
    labels: tuple[tuple[Tensor, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Product:
    """FLOPs of (a part of) one operator: `factor` times the sizes. Without sizes, nothing of it is known to shrink."""

    factor: float
    sizes: tuple[Size, ...] = ()

    @property
    def whole(self) -> float:
        """FLOPs while nothing is cut."""
        return self.factor * math.prod(size.length for size in self.sizes)


def products(flow: Flow, func: OpOverload, args: Arguments, kwargs: Keywords, out: object) -> list[Product]:
    """What an operator costs. An operator whose formula is not known to be a product of sizes gets none."""
    packet = func.overloadpacket
    total = _cost(packet, args, kwargs, out)
    if not total:
        return []
    if packet not in _FACTORS:
        return [Product(total)]
    summands = [tuple(_size(flow, places) for places in factors) for factors in _FACTORS[packet](*args)]
    share = total / sum(math.prod(size.length for size in sizes) for sizes in summands)
    return [Product(share, sizes) for sizes in summands]


def _cost(packet: OpOverloadPacket, args: Arguments, kwargs: Keywords, out: Any) -> float:
    """FLOPs of one operator. The formulas of the most frequent are written out, for torch's take longer."""
    if packet is _aten.convolution:
        (x, weight), transposed = args[:2], args[6]
        return float(2 * x.shape[0] * math.prod((x if transposed else out).shape[2:]) * weight.numel())
    if packet is _aten.mm or packet is _aten.addmm:
        a, b = args[-2:]
        return float(2 * a.numel() * b.shape[1])
    formula = _MORE.get(packet, flop_registry.get(packet))
    return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=out))


class Counter(EagerMode):
    """Adds up in `total` the FLOPs of what runs, as `FlopCounterMode` does with less work, and attention on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.total += _cost(func.overloadpacket, args, kwargs or {}, out)
        return out


def _size(flow: Flow, places: Sequence[Dimension]) -> Size:
    """One size that several operands share; any of them may have the labels."""
    tensor, dim = places[0]
    labels = [
        (label, dim) for tensor, dim in places for label in flow.labels(tensor) if label.shape[dim] == tensor.shape[dim]
    ]
    return Size(tensor.shape[dim], tuple(labels))


# Each formula is a number times a sum of products of these sizes; what is not named here does not shrink.


def _matrices(a: Tensor, b: Tensor, *_: object) -> list[Factors]:
    return [[[(a, 0)], [(a, 1), (b, 0)], [(b, 1)]]]


def _batched_matmul(a: Tensor, b: Tensor, *_: object) -> list[Factors]:
    return [[[(a, 0), (b, 0)], [(a, 1)], [(a, 2), (b, 1)], [(b, 2)]]]


def _convolution(x: Tensor, weight: Tensor, *_: object) -> list[Factors]:
    return [[[(x, 0)], [(weight, 0)], [(weight, 1)]]]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> list[Factors]:
    # Heads of keys and values may be fewer (grouped queries): those of the query count.
    lead: Factors = [[(query, 0), (key, 0), (value, 0)], [(query, 1)]]
    return [[*lead, [(query, 3), (key, 3)]], [*lead, [(value, 3)]]]


_FACTORS: dict[Any, Callable[..., list[Factors]]] = {
    _aten.mm: _matrices,
    _aten.addmm: lambda _, a, b, *rest: _matrices(a, b),
    _aten.bmm: _batched_matmul,
    _aten.baddbmm: lambda _, a, b, *rest: _batched_matmul(a, b),
    _aten.convolution: _convolution,
    _aten._convolution: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
}
