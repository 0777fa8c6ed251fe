"""Linears that are only read, with weights in 8 bits, or two of 4 bits in a byte: for teachers larger than a device.

The integers are torchao's (`quantise.integers`); here they are plain buffers, which move and are saved as any are, and
take half a byte in 4 bits, where torchao's own layout for any device spends a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import UnsupportedError
from secateur.recover.quantization import quantise

__all__ = ["PackedLinear", "adopt", "is_packed", "pack"]


class PackedLinear(nn.Module):
    """``x W^T + b`` with W [out, in] in integers of `bits`, made floating point again for each pass.

    Symmetric: in 8 bits a row shares a scale, in 4 bits `quantise.GROUP` inputs of a row do.
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        given: Any = linear.weight
        made = given if hasattr(given, "qdata") else quantise.integers(given, bits)
        held: Tensor = made.qdata
        if bits == 4:
            held = held[:, ::2] & 15 | held[:, 1::2] << 4
        self.register_buffer("integers", held)
        self.register_buffer("scale", made.scale.reshape(len(held), -1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @property
    def weight(self) -> Tensor:
        """W in floating point."""
        held = self.integers
        if self.bits == 4:  # shifts keep the sign
            held = torch.stack([(held << 4) >> 4, held >> 4], -1).flatten(1)
        groups = held.unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        weight: Tensor = (groups * self.scale[..., None]).flatten(1)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return functional.linear(inputs, self.weight, self.bias)


def pack(model: nn.Module, bits: int, *, within: Iterable[str] | None = None) -> list[str]:
    """Make linears `PackedLinear`s, in place; returns the names of those that are.

    within: modules whose linears are packed; all but output embeddings if None.

    Raises `InputError` and `MissingExtraError` as `quantise.weight_only`, `UnsupportedError` for a model whose experts
    stand in tensors of their own: packing its few linears would save nothing.
    """
    quantise.check(model)
    blocks = None if within is None else list(within)
    chosen, _ = quantise.linears(model, bits, blocks)
    packed = sum(model.get_parameter(f"{name}.weight").numel() for name in chosen)
    places = [model] if blocks is None else [model.get_submodule(path) for path in blocks]
    whole = sum(parameter.numel() for place in places for parameter in place.parameters())
    if packed < whole / 2:
        raise UnsupportedError(
            f"linears hold {packed / whole:.0%} of the weights of {type(model).__name__}, and only they are packed: "
            "leave its weights as they are"
        )
    _replace(model, chosen, bits)
    return chosen


def adopt(model: nn.Module) -> list[str]:
    """Make linears with torchao's integers of 8 bits `PackedLinear`s, in place; returns their names.

    A model that was read so is then run, moved and told apart like any other.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and hasattr(module.weight, "qdata")
    ]
    _replace(model, found, 8)
    return found


def is_packed(model: nn.Module) -> bool:
    """Whether some of its linears are packed."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _replace(model: nn.Module, names: Iterable[str], bits: int) -> None:
    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), leaf, PackedLinear(linear, bits))
