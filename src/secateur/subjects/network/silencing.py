"""Silencing: a forward pass of the old shapes in which what goes is zero, and counts in no mean, variance or maximum.

It is the reference that a cut must equal, and knows nothing of the cut: labels say where zeros belong. Parameters stay
as they are (`raw`) where zeros of the other factor, or zeros put into the result, do what zeros in them would do. Any
other operator is given a copy with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.subjects.network.labels import Flow, pad_rank, varying
from secateur.subjects.network.operators import Arguments, Keywords, dimensions, is_view, name_of, names, tensors_in

__all__ = ["call", "leave_raw", "raw", "silence"]

_RAW = "_secateur_raw"

_PRODUCTS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "convolution": ((0, 1), (2,)),
    "_convolution": ((0, 1), (2,)),
    "mm": ((0, 1), ()),
    "bmm": ((0, 1), ()),
    "addmm": ((1, 2), (0,)),
    "baddbmm": ((1, 2), (0,)),
}
"""Operator -> places of the two factors, and of what is added."""

_AFFINE = names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_layer_norm _fused_rms_norm "
    "native_group_norm embedding"
)
"""Operators whose results are silenced by channel, so that their parameters need not be."""

_FINITE = _AFFINE.union(_PRODUCTS)
"""Operators of whose results no infinity is expected: a product silences them fastest."""

_ZERO_FOR_ZERO = names(
    "relu gelu silu mish hardswish leaky_relu tanh neg abs mul max_pool2d_with_indices avg_pool2d avg_pool1d "
    "_adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d cat stack clone _to_copy contiguous _unsafe_view "
    "native_dropout dropout repeat roll flip"
)
"""Operators that give zero where labelled operands are zero."""


def silence(flow: Flow, kept: Tensor, func: OpOverload, args: Arguments, out: object) -> None:
    """Zero what goes in the results of an operator; views show what is zero already."""
    if is_view(func):
        if raw(args[0]):
            for value in tensors_in(out):
                setattr(value, _RAW, True)
        return
    name = name_of(func)
    silent = name.removesuffix("_") in _ZERO_FOR_ZERO or _adds_alike(flow, name, args, out) or _clips(name, args)
    if silent and not any(raw(value) for value in tensors_in(args)):
        return
    for value in tensors_in(out):
        mask = _mask(flow, kept, value)
        if mask is None:
            continue
        if name in _FINITE:
            value.mul_(mask)
        else:
            value.masked_fill_(~mask, 0)


def leave_raw(parameter: Tensor) -> None:
    """Let a parameter be as it is, though some of it goes."""
    setattr(parameter, _RAW, True)


def raw(value: object) -> bool:
    """Whether a tensor is a parameter, or a view of one, that is not zero where it goes."""
    return getattr(value, _RAW, False)


def _adds_alike(flow: Flow, name: str, args: Arguments, out: object) -> bool:
    """Whether two tensors are added that go at the same places."""
    if name not in ("add", "add_", "sub", "sub_") or not isinstance(args[1], Tensor) or args[1].dim() != args[0].dim():
        return False
    dims = [sorted(sorted(varying(label)) for label in flow.labels(value)) for value in (args[0], args[1], out)]
    return dims[0] == dims[1] == dims[2]


def _clips(name: str, args: Arguments) -> bool:
    """Whether values are brought into a range in which zero lies."""
    return name in ("hardtanh", "hardtanh_") and (len(args) < 3 or args[1] <= 0 <= args[2])


def call(flow: Flow, kept: Tensor, func: OpOverload, args: Arguments, kwargs: Keywords) -> Any:
    """The operator itself, or where it looks at many channels at once, what it gives for those that are kept."""
    name = name_of(func)
    if not is_view(func) and any(raw(value) for value in tensors_in(args)):
        args = _zero_raw(flow, kept, func, name, args)
    special = _SPECIAL.get(name)
    if special is not None and args and isinstance(args[0], Tensor):
        mask = _mask(flow, kept, args[0])
        if mask is not None:
            result = special(func, mask, args, kwargs)
            if result is not None:
                return result
    return func(*args, **kwargs)


def _zero_raw(flow: Flow, kept: Tensor, func: OpOverload, name: str, args: Arguments) -> Arguments:
    """The arguments with zeros where raw ones go, if it matters."""
    if name in _AFFINE and not raw(args[0]):
        return args
    if name == "embedding" or torch.Tag.pointwise in func.tags:
        return args
    spared: tuple[int, ...] = ()
    if name in _PRODUCTS:
        (one, other), spared = _PRODUCTS[name]
        for mine, partner in ((one, other), (other, one)):
            if raw(args[mine]) and not raw(args[partner]) and not flow.blank(args[partner]):
                spared = (*spared, mine)
    return [value if place in spared else _with_zeros(flow, kept, value) for place, value in enumerate(args)]


def _with_zeros(flow: Flow, kept: Tensor, value: Any) -> object:
    if isinstance(value, list | tuple):
        return [_with_zeros(flow, kept, one) for one in value]
    mask = _mask(flow, kept, value) if raw(value) else None
    if mask is None:
        return value
    result = value.masked_fill(~mask, 0)
    flow.mark(result, flow.labels(value))
    return result


def _mask(flow: Flow, kept: Tensor, value: object) -> Tensor | None:
    """What stays of a tensor; None if all of it does."""
    labels = flow.labels(value)
    if not labels:
        return None
    known = flow.masks.get(id(labels))
    if known is None:
        mask: Tensor | None = None
        for label in labels:
            one = kept[label]
            mask = one if mask is None else mask & one
        known = flow.masks[id(labels)] = labels, None if mask is None or bool(mask.all()) else mask
    return known[1]


def _over(mask: Tensor, dims: Sequence[int]) -> bool:
    return bool(varying(mask) & set(dims))


def _moments(x: Tensor, mask: Tensor, dims: Sequence[int], correction: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and variance over `dims` of the elements that are kept, with `dims` kept at size 1."""
    full = mask.expand(x.shape).to(x.dtype)
    count = full.sum(list(dims), keepdim=True)
    mean = (x * full).sum(list(dims), keepdim=True) / count.clamp(min=1)
    variance = ((x - mean) ** 2 * full).sum(list(dims), keepdim=True) / (count - correction).clamp(min=1)
    return mean, variance


def _squeeze(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return x if keepdim else x.squeeze(tuple(dims))


def _mean(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> Tensor | None:
    x = args[0]
    dims = dimensions(args[1] if len(args) > 1 else kwargs.get("dim"), x.dim())
    if not _over(mask, dims):
        return None
    keepdim = bool(args[2]) if len(args) > 2 else kwargs.get("keepdim", False)
    return _squeeze(_moments(x, mask, dims)[0], dims, keepdim)


def _spread(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> Tensor | tuple[Tensor, Tensor] | None:
    x, name = args[0], func.overloadpacket.__name__
    dims = dimensions(args[1] if len(args) > 1 and not isinstance(args[1], bool) else kwargs.get("dim"), x.dim())
    if not _over(mask, dims):
        return None
    correction = kwargs.get("correction", 1)
    if len(args) > 2 and func._overloadname != "correction":
        correction = int(args[2])
    correction = 1 if correction is None else correction
    keepdim = kwargs.get("keepdim", args[3] if len(args) > 3 else False)
    mean, variance = _moments(x, mask, dims, correction)
    mean, variance = _squeeze(mean, dims, keepdim), _squeeze(variance, dims, keepdim)
    if name.startswith("std"):
        variance = variance.sqrt()
    return (variance, mean) if name.endswith("_mean") else variance


def _fill_with(fill: float, place: int) -> Callable[..., object]:
    def special(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> object:
        x = args[0]
        if func._overloadname == "other" or not x.is_floating_point():
            return None
        dims = dimensions(args[place] if len(args) > place else kwargs.get("dim"), x.dim())
        if not _over(mask, dims):
            return None
        return func(x.masked_fill(~mask, fill), *args[1:], **kwargs)

    return special


def _masked_input(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> object:
    return func(args[0].masked_fill(~mask, 0), *args[1:], **kwargs)


def _layer_norm(
    func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords
) -> tuple[Tensor, Tensor, Tensor] | None:
    x, shape, weight, bias, eps = args
    dims = list(range(x.dim() - len(shape), x.dim()))
    if not _over(mask, dims):
        return None
    mean, variance = _moments(x, mask, dims)
    scale = (variance + eps).rsqrt()
    out = (x - mean) * scale
    out = out * weight if weight is not None else out
    return (out + bias if bias is not None else out), mean, scale


def _rms_norm(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> tuple[Tensor, Tensor] | None:
    x, shape, weight, eps = args
    dims = list(range(x.dim() - len(shape), x.dim()))
    if not _over(mask, dims):
        return None
    scale = (_moments(x * x, mask, dims)[0] + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    out = x * scale
    return (out * weight if weight is not None else out), scale


def _group_norm(func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = args[:3]
    groups, eps = args[6], args[7]
    shape = (x.shape[0], groups, -1)
    full = pad_rank(mask, x.dim()).expand(x.shape).reshape(shape)
    mean, variance = _moments(x.reshape(shape), full, [2])
    out = ((x.reshape(shape) - mean) * (variance + eps).rsqrt()).reshape(x.shape)
    row = (1, -1, *([1] * (x.dim() - 2)))
    out = out * weight.view(row) if weight is not None else out
    return (out + bias.view(row) if bias is not None else out), mean, variance


def _batch_norm(
    func: OpOverload, mask: Tensor, args: Arguments, kwargs: Keywords
) -> tuple[Tensor, Tensor, Tensor] | None:
    x, weight, bias = args[:3]
    dims = [dim for dim in range(x.dim()) if dim != 1]
    flags = [value for value in args if isinstance(value, bool)]
    if "no_training" in func.overloadpacket.__name__ or not any(flags[:1]) or not _over(mask, dims):
        return None
    eps = [value for value in args if isinstance(value, float)][-1]
    mean, variance = _moments(x, mask, dims)
    row = (1, -1, *([1] * (x.dim() - 2)))
    out = (x - mean) * (variance + eps).rsqrt()
    out = out * weight.view(row) if weight is not None else out
    return (out + bias.view(row) if bias is not None else out), mean, variance


_SPECIAL: dict[str, Callable[..., Any]] = {
    "mean": _mean,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "sum": _masked_input,
    "linalg_vector_norm": _masked_input,
    "norm": _masked_input,
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _spread),
    **dict.fromkeys(("amax", "max", "_softmax", "softmax", "_log_softmax", "_safe_softmax"), _fill_with(-math.inf, 1)),
    **dict.fromkeys(("amin", "min"), _fill_with(math.inf, 1)),
}
