"""Weights held at zero while the others train, and the patterns that zeros form in kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur.errors import InputError

__all__ = ["Masks", "apply", "convolutions", "draw", "hold", "positions", "share", "shuffle"]

Masks = Mapping[str, Tensor]
"""Name of a parameter -> booleans of its shape, True where the weight stays."""


def convolutions(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of every convolution: what unstructured pruning is over; linears and norms are left alone."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        # A weight that two layers share is one, under the first name, as in `named_parameters`.
        if isinstance(module, nn.modules.conv._ConvNd) and all(module.weight is not one for one in found.values()):
            found.setdefault(f"{path}.weight" if path else "weight", module.weight)
    return found


def apply(model: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks close. Raises `InputError` for a name or a shape that does not fit."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            where = f"of shape {tuple(parameters[name].shape)}" if name in parameters else "not there"
            raise InputError(f"a mask of shape {tuple(mask.shape)} for {name}, which is {where}: give one that fits")
        with torch.no_grad():
            parameters[name].mul_(mask.to(parameters[name]))


@contextmanager
def hold(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Within the block, closed weights are zero and get no gradient: no step of SGD or AdamW moves them from 0.

    Momentum and weight decay of a weight that is 0 and has gradient 0 are 0 too, so nothing needs to be masked after
    a step. Source: the weight-level pruning of arXiv 1810.05270.
    """
    apply(model, masks)
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        for name, mask in masks.items():
            stack.callback(parameters[name].register_hook(_closing(mask)).remove)
        yield


def _closing(mask: Tensor) -> Callable[[Tensor], Tensor]:
    closed = ~mask.bool()

    def close(gradient: Tensor) -> Tensor:
        nonlocal closed
        closed = devices.move(closed, gradient)  # once: a step copies nothing
        return gradient.masked_fill(closed, 0.0)

    return close


def share(masks: Masks) -> float:
    """Share of all masked weights that stays."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def positions(masks: Masks) -> dict[tuple[int, ...], Tensor]:
    """Size of kernel -> [k, ...]: how often each position of a kernel stays, over all masks with such kernels."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for mask in masks.values():
        size = tuple(mask.shape[2:])
        found.setdefault(size, []).append(mask.reshape(-1, *size).double())
    return {size: torch.cat(parts).mean(0) for size, parts in found.items()}


def draw(like: Masks, pattern: Mapping[tuple[int, ...], Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Masks of the shapes of `like` in which each position of a kernel stays as often as `pattern` says.

    Exactly round(share x kernels) kernels keep each position, at random places: the guided sparsification of
    arXiv 1810.05270. Raises `InputError` for a size of kernel that the pattern does not have.
    """
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Tensor] = {}
    for name, mask in like.items():
        size = tuple(mask.shape[2:])
        if size not in pattern:
            known = ", ".join("x".join(map(str, one)) for one in pattern)
            raise InputError(f"{name} has kernels of {'x'.join(map(str, size))}, the pattern only of {known}")
        shares = pattern[size].flatten()
        kernels = mask.shape[0] * mask.shape[1]
        chosen = torch.zeros(kernels, len(shares), dtype=torch.bool)
        for place, kept in enumerate(shares.tolist()):
            chosen[torch.randperm(kernels, generator=generator)[: round(kept * kernels)], place] = True
        result[name] = chosen.reshape(mask.shape)
    return result


def shuffle(masks: Masks, *, seed: int = 0) -> dict[str, Tensor]:
    """As many weights of each tensor, at random places."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator)
        result[name] = mask.flatten().cpu()[order].view(mask.shape)
    return result
