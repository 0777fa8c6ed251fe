"""Quantisation-aware training: layers that round inputs and weights while they train, and their conversion to integers.

`prepare` puts torchao's fake quantisers into a network, `calibrate` gives the ranges of inputs, training follows, and
`convert` takes them out again and returns the scales. Weights are rounded by torchao's own fake quantiser, one scale
``max|w| / (2^(b-1) - 1)`` for each output. It has none with one symmetric scale for a whole tensor, which is what
inputs get here (`Inputs`): that one stands on PyTorch's `fake_quantize_per_tensor_affine`. Gradients pass both straight
inside the range, and not at all outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur.errors import DataError, InputError, NumericalError
from secateur.recover.quantization.quantise import torchao

__all__ = [
    "Calibration",
    "Inputs",
    "calibrate",
    "convert",
    "entropy_limit",
    "fake_quantised_layers",
    "frozen",
    "prepare",
]

B = TypeVar("B")

Calibration = Literal["max", "percentile", "entropy"]

_BINS = 2048
_SAMPLE = 2**16
"""How many numbers of a tensor its histogram is made of, about."""


class Inputs(nn.Module):
    """Rounds a tensor to integers of `bits`, symmetric, one scale: ``s = limit / (2^(b-1) - 1)``.

    While it observes, `limit` follows the largest |x| (or its quantile, at `share`) of each batch, slowly.
    """

    limit: Tensor
    zero: Tensor

    def __init__(self, bits: int, momentum: float = 0.99, share: float = 1.0) -> None:
        super().__init__()
        self.bits, self.momentum, self.share = bits, momentum, share
        self.observing, self.enabled = False, True
        self.register_buffer("limit", torch.zeros(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32), persistent=False)
        self.note: Callable[[Tensor], None] | None = None
        """Told |x| [n] while calibration lasts."""

    @property
    def scale(self) -> Tensor:
        """The step from one integer to the next."""
        least = torch.finfo(self.limit.dtype).smallest_normal
        step: Tensor = self.limit / (2 ** (self.bits - 1) - 1)
        return step.clamp(min=least)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if self.note is not None:
            self.note(x.detach().abs().flatten().float())
        if not self.enabled:
            return x
        if self.observing:
            now = quantile(x.detach().abs().flatten().float(), self.share)
            self.limit.lerp_(now.to(self.limit), 1.0 - self.momentum)
        half = 2 ** (self.bits - 1)
        found: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -half, half - 1)
        return found


class _Convolution(nn.Conv2d):
    """A convolution with the two fake quantisers of torchao's `FakeQuantizedLinear`, the weight seen [d_out, d_in]."""

    activation_fake_quantizer: nn.Module
    weight_fake_quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        weight: Tensor = self.weight_fake_quantizer(self.weight.flatten(1)).view_as(self.weight)
        found: Tensor = self._conv_forward(self.activation_fake_quantizer(x), weight, self.bias)
        return found


def prepare(
    model: nn.Module, layers: Iterable[str], *, bits: int = 8, momentum: float = 0.99, share: float = 1.0
) -> None:
    """Put fake quantisers into these linear layers and convolutions, in place; parameters keep their names.

    bits: 8 or 4. momentum, share: see `Inputs`. Raises `MissingExtraError` without torchao.
    """
    if bits not in (4, 8):
        raise InputError(f"bits={bits}: give 8 or 4")
    ao = torchao()
    kind = getattr(torch, f"int{bits}")
    # Held as far as torchao knows: scales come from `_follow`.
    config = ao.qat.IntxFakeQuantizeConfig(kind, "per_channel", is_symmetric=True, is_dynamic=False)
    names = set(layers)
    swap = ao.qat.QATConfig(weight_config=config, step="prepare")
    ao.quantization.quantize_(
        model, swap, filter_fn=lambda module, name: name in names and isinstance(module, nn.Linear)
    )
    modules = dict(model.named_modules())
    for name in sorted(names):
        layer: Any = modules[name]
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = _Convolution
            layer.weight_fake_quantizer = ao.qat.IntxFakeQuantizer(config)
        layer.activation_fake_quantizer = Inputs(bits, momentum, share)
        weights = layer.weight_fake_quantizer
        weights.following, weights.bits = True, bits
        weights.register_forward_pre_hook(_follow)
        # As buffers, so that checkpoints hold them.
        for part, dtype in (("scale", torch.float32), ("zero_point", torch.int32)):
            delattr(weights, part)
            weights.register_buffer(part, torch.zeros(len(layer.weight), 1, dtype=dtype))
        layer.to(layer.weight.device)


def _follow(weights: Any, args: tuple[Tensor, ...]) -> None:
    """Take the scales from the weight [d_out, d_in], unless they are held.

    torchao's own are ``max|w| / (2^(b-1) - 1/2)``: the largest weight of a row then rounds to 2^(b-1), which is out of
    range where it is positive, and gets no gradient for as long as it is the largest.
    """
    if weights.following:
        limit = args[0].detach().float().abs().amax(1, keepdim=True)
        step = limit / (2 ** (weights.bits - 1) - 1)
        # Not in place: a layer that is called twice has the first ones in its graph.
        weights.scale = step.clamp(min=torch.finfo(step.dtype).smallest_normal)


def fake_quantised_layers(model: nn.Module) -> dict[str, Any]:
    """Path -> layer with fake quantisers."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "activation_fake_quantizer", None), Inputs)
    }


@torch.no_grad()
def calibrate(
    model: nn.Module,
    forward: Callable[[B], object],
    batches: Iterable[B],
    *,
    by: Calibration = "max",
    share: float = 0.9999,
) -> None:
    """Give every `Inputs` its limit from what flows in a few batches, while nothing is rounded.

    - max: the largest |x|;
    - percentile: the mean over batches of the quantile of |x| at `share`;
    - entropy: the limit whose integers tell most of the distribution of |x| (`entropy_limit`).

    Raises `DataError` without batches, `NumericalError` naming a layer with inputs that are not finite.
    """
    layers = fake_quantised_layers(model)
    found: dict[str, list[Tensor]] = {path: [] for path in layers}
    with _without_rounding(layers, off=True):
        for path, layer in layers.items():
            layer.activation_fake_quantizer.note = partial(_note_limit, found[path], path, by, share)
        for batch in batches:
            forward(batch)
    for path, layer in layers.items():
        if not found[path]:
            raise DataError(f"no batch reached {path}: give at least one to calibrate on")
        inputs = layer.activation_fake_quantizer
        if by == "entropy":
            limit = entropy_limit(found[path], inputs.bits)
        else:
            limits = torch.stack(found[path])
            limit = float(limits.max() if by == "max" else limits.mean())
        inputs.limit.fill_(limit)
        layer.weight_fake_quantizer(layer.weight.flatten(1))  # whose scales are then there, if they are held at once


def _note_limit(found: list[Tensor], path: str, by: Calibration, share: float, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericalError(f"the inputs of {path} hold NaN or infinity: check the network and its data")
    if by == "entropy":
        thin = values[:: max(1, len(values) // _SAMPLE)]
        found.append(torch.cat([thin, values.max()[None]]).cpu())
    else:
        found.append(quantile(values, share if by == "percentile" else 1.0))


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of [n] numbers at `share`, of any number of them; a share of 1 is the largest."""
    if share >= 1.0:
        return values.max()
    return values.kthvalue(max(1, math.ceil(share * values.numel()))).values


def entropy_limit(parts: Iterable[Tensor], bits: int) -> float:
    """The limit L for |x| at which ``KL(P || Q)`` is least.

    P is the histogram of |x| with all beyond L in its last bin; Q is P within L in 2^(b-1) bins, spread evenly over the
    places of P that are not empty. Source: the calibration of NVIDIA TensorRT's 8-bit inference (S. Migacz, 2017).
    """
    values = torch.cat(list(parts))
    top = float(values.max())
    if top <= 0:
        return 0.0
    levels = 2 ** (bits - 1)
    counts = torch.histc(values, _BINS, 0.0, top).double()
    best, least = _BINS, math.inf
    for stop in range(levels, _BINS + 1, max(1, levels // 8)):
        inner = counts[:stop]
        whole = inner.clone()
        whole[-1] += counts[stop:].sum()
        level = torch.arange(stop) * levels // stop
        held = (inner > 0).double()
        sums, places = (torch.zeros(levels, dtype=torch.float64).index_add_(0, level, one) for one in (inner, held))
        spread = held * (sums / places.clamp(min=1.0))[level]
        p, q = whole / whole.sum(), spread / spread.sum().clamp(min=1e-12)
        inside = p > 0
        distance = float((p[inside] * (p[inside] / q[inside].clamp(min=1e-9)).log()).sum())
        if distance < least:
            best, least = stop, distance
    return top * best / _BINS


@contextmanager
def _without_rounding(layers: Mapping[str, Any], off: bool) -> Iterator[None]:
    parts = [part for one in layers.values() for part in (one.activation_fake_quantizer, one.weight_fake_quantizer)]
    for part in parts:
        part.enabled = not off
    try:
        yield
    finally:
        for part in parts:
            part.enabled, part.note = True, None


def frozen(model: nn.Module, *, inputs: bool, weights: bool) -> None:
    """Hold the scales of inputs, or of weights, as they are, or let them follow the batches and the weights."""
    for layer in fake_quantised_layers(model).values():
        layer.activation_fake_quantizer.observing = not inputs
        layer.weight_fake_quantizer.following = not weights


@torch.no_grad()
def convert(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Take the fake quantisers out, in place; returns path -> (scale of inputs [], scales of weights [d_out]).

    Weights are left rounded, as floats. Scales that are held (`frozen`) are those that weights were trained under;
    others are taken from the weights as they are.
    """
    ao = torchao()
    found = {}
    for path, layer in fake_quantised_layers(model).items():
        weights = layer.weight_fake_quantizer
        layer.weight.copy_(weights(layer.weight.flatten(1)).view_as(layer.weight))
        found[path] = (layer.activation_fake_quantizer.scale.clone(), weights.scale.flatten().clone())
        if isinstance(layer, _Convolution):
            del layer.activation_fake_quantizer, layer.weight_fake_quantizer
            setattr(layer, "__class__", nn.Conv2d)  # noqa: B010
    ao.quantization.quantize_(model, ao.qat.QATConfig(step="convert"))
    return found
