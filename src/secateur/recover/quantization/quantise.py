"""Weights of linears in 8 or 4 bits, after training or while it goes on; the arithmetic is torchao's.

All quantisers here are symmetric and have no zero point, so that 0 stays exactly 0 and a pruned model keeps its
pattern: with bits b and w a row of a weight (b = 8) or `GROUP` inputs of one (b = 4),

    s = max|w| / (2^(b-1) - 1/2),    q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1),    w' = s q

Fake quantisation in training computes the same w' in floating point, with straight-through gradients (none for what is
clamped): what `prepare` trains is what `weight_only` makes of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

__all__ = [
    "BITS",
    "GROUP",
    "check",
    "config",
    "dense",
    "finish",
    "integers",
    "linears",
    "multiply",
    "prepare",
    "torchao",
    "unfit",
    "weight_only",
]

BITS = (8, 4)
GROUP = 32
"""Inputs that share a scale in 4 bits; in 8 bits a row shares one."""

_INT4 = getattr(torch, "int4", None)  # known to torch, not to its stubs

_HELD = ("torchao", "torch.sparse", "compressed_tensors")
"""Where the classes of tensors live that hold quantised or packed weights."""


def check(model: nn.Module) -> None:
    """Raise `InputError`, naming the weight, if one is quantised or packed already: only floating point can be."""
    for name, module in model.named_modules():
        if _is_fake_quantised(module):
            raise InputError(f"{name} is fake-quantised ({type(module).__name__}): call quantise.finish first")
    for name, parameter in model.named_parameters():
        kind = type(parameter.data if type(parameter) is nn.Parameter else parameter)
        if kind.__module__.startswith(_HELD):
            raise InputError(
                f"{name} is already quantised or packed ({kind.__name__}): give the model as it was before"
            )
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            held = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"{name} is already quantised ({held}): give the model as it was before")
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise InputError("the model's config says that it is quantised already: give the model as it was before")


def linears(model: nn.Module, bits: int, within: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """(linears that will have `bits`, those that won't with the reason), inside the modules `within` or in all.

    Output embeddings stay as they are, and in 4 bits those whose inputs are no multiple of `GROUP`.
    """
    if bits not in BITS:
        raise InputError(f"bits={bits}: give one of {', '.join(map(str, BITS))}")
    prefixes = None if within is None else tuple(f"{path}." for path in within)
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    chosen, left = [], {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if module is outputs:
            left[name] = "output embedding"
        elif prefixes is not None and not f"{name}.".startswith(prefixes):
            left[name] = "outside the blocks"
        elif reason := unfit(module.in_features, bits):
            left[name] = reason
        else:
            chosen.append(name)
    if not chosen:
        why = next((f" ({name}: {reason})" for name, reason in left.items()), "")
        raise InputError(f"the model has no linear to quantise in {bits} bits{why}")
    return chosen, left


def unfit(columns: int, bits: int) -> str:
    """Why a matrix of this many columns can't have `bits`; empty if it can."""
    return f"{columns} inputs are no multiple of {GROUP}" if bits < 8 and columns % GROUP else ""


def integers(weight: Tensor, bits: int) -> Any:
    """A matrix [rows, columns] of any layer as torchao's integers: `qdata` of its shape and `scale` [rows, groups].

    A row is one group in 8 bits. `dense` gives the floats that they stand for, in the number type of `weight`.
    """
    ao = torchao().quantization
    grain = ao.PerAxis(0) if bits == 8 else ao.PerGroup(GROUP)
    kind = torch.int8 if bits == 8 else _INT4
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    ao.quantize_(layer, ao.IntxWeightOnlyConfig(weight_dtype=kind, granularity=grain))
    return layer.weight.data


def config(bits: int) -> AOBaseConfig:
    """torchao's configuration of weights in `bits`, symmetric: a scale for each row in 8 bits, each `GROUP` in 4."""
    quantization = torchao().quantization
    if bits == 8:
        row = quantization.PerRow()
        return quantization.Int8WeightOnlyConfig(granularity=row, set_inductor_config=False, version=2)
    return quantization.IntxWeightOnlyConfig(weight_dtype=_INT4, granularity=quantization.PerGroup(GROUP))


def weight_only(
    model: nn.Module, bits: int, *, within: Iterable[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Quantise the weights of linears, in place, after training; what is multiplied stays in floating point.

    Returns what `linears` says. In 4 bits each weight takes a byte of memory here; a file packs two of them into one.

    Raises:
        InputError: a weight is quantised or packed already, or there is no linear to quantise.
        MissingExtraError: torchao is not installed.
    """
    check(model)
    chosen, left = linears(model, bits, within)
    names = set(chosen)
    torchao().quantization.quantize_(model, config(bits), filter_fn=lambda _, name: name in names)
    return chosen, left


def prepare(
    model: nn.Module, bits: int, *, within: Iterable[str] | None = None, activations: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Fake-quantise the weights of linears, in place, for quantisation-aware training; returns what `linears` says.

    Parameters keep their names, values and gradients. With `activations`, what flows into these linears is
    fake-quantised to 8 bits as well, with a scale and a zero point for each token.

    Raises as `weight_only`.
    """
    check(model)
    chosen, left = linears(model, bits, within)
    ao, names = torchao(), set(chosen)
    kind, grain = (torch.int8, ao.quantization.PerAxis(0)) if bits == 8 else (_INT4, ao.quantization.PerGroup(GROUP))
    weights = ao.qat.IntxFakeQuantizeConfig(kind, grain)
    flowing = ao.qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if activations else None
    step = ao.qat.QATConfig(activation_config=flowing, weight_config=weights, step="prepare")
    ao.quantization.quantize_(model, step, filter_fn=lambda _, name: name in names)
    return chosen, left


def finish(model: nn.Module) -> None:
    """Make fake-quantised linears plain ones again, in place, with the weights that were trained: for `weight_only`."""
    ao = torchao()
    ao.quantization.quantize_(
        model, ao.qat.QATConfig(step="convert"), filter_fn=lambda module, _: _is_fake_quantised(module)
    )


def _is_fake_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torchao")


def dense(weight: Tensor) -> Tensor:
    """The weight in floating point, as it is multiplied; a plain one as it is."""
    return weight.dequantize() if type(weight).__module__.startswith("torchao") else weight


def multiply(x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """``x W^T + b`` of a frozen W [out, in] that `weight` makes floats of, [..., in] -> [..., out].

    The floats are made once in each pass and not kept from one to the other: torchao's own product leaves those of
    every layer to the backward pass, which then takes more than a model of floats.
    """
    product: Tensor = _Product.apply(x, weight, bias)
    return product


class _Kept(Protocol):
    """What a pass forward leaves for the one backward."""

    weight: Callable[[], Tensor]
    dtype: torch.dtype


class _Product(torch.autograd.Function):
    """See `multiply`."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return functional.linear(x, weight(), bias)

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient @ ctx.weight().to(gradient.dtype)).to(ctx.dtype), None, None


def torchao() -> SimpleNamespace:
    """torchao's `quantization` and `qat`. Raises `MissingExtraError` where it is not installed."""
    try:
        from torchao import quantization
        from torchao.quantization import qat
    except ImportError as error:
        raise MissingExtraError("quantisation needs torchao: pip install 'secateur[quantise]'") from error
    return SimpleNamespace(quantization=quantization, qat=qat)
