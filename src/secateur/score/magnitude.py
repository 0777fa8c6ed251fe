"""Magnitude: norm of a unit's weights. Needs no data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.score.hooks import finite, module_at
from secateur.score.slices import Slices, gather, total

__all__ = ["Columns", "batch_norm", "consumer_weight", "coupled_norm", "groups", "norm"]


class Columns(Protocol):
    """A linear whose input columns are a site's units: unit u owns columns [u * block, (u + 1) * block)."""

    @property
    def module(self) -> str:
        """Path of the linear in the model."""
        ...

    @property
    def block(self) -> int:
        """Columns per unit."""
        ...

    @property
    def conv1d(self) -> bool:
        """True where the weight is stored [d_in, d_out] (GPT-2's Conv1D)."""
        ...


def norm(weight: Tensor, *, block: int = 1, p: float = 2.0, dim: int = 1) -> Tensor:
    """Float32 [count]: (sum |w|^p)^(1/p) over the slices of each unit.

    weight: [d_out, d_in] or any shape; a unit is `block` neighbouring indices along `dim` (input columns: 1).
    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1).
    """
    slices = weight.detach().float().movedim(dim, 0)
    if slices.shape[0] % block:
        raise InputError(f"dimension {dim} of shape {tuple(weight.shape)} does not divide into blocks of {block}")
    norms: Tensor = torch.linalg.vector_norm(slices.reshape(slices.shape[0] // block, -1), ord=p, dim=1)
    return norms


def groups(model: nn.Module, consumers: Mapping[str, Columns], *, p: float = 2.0) -> dict[str, Tensor]:
    """Site -> [count]: `norm` of the consumer columns of each unit."""
    return {
        site: finite(
            site, norm(consumer_weight(model, consumer), block=consumer.block, p=p, dim=0 if consumer.conv1d else 1)
        )
        for site, consumer in consumers.items()
    }


def coupled_norm(slices: Slices, *, p: float = 2.0, normalise: bool = True) -> dict[str, Tensor]:
    """Site -> float32 [count]: (sum |w|^p)^(1/p) over all weights that go with a unit, as a share of the site's mean.

    normalise: False gives the norm as it is. Source: Fang et al., "DepGraph", CVPR 2023: norms of all that is coupled.
    """
    result = {}
    for site, summed in gather(slices, lambda weight, dim: _powers(weight.detach(), dim, p)).items():
        score = summed ** (1 / p)
        result[site] = finite(site, (score / score.mean().clamp(min=1e-30) if normalise else score).float())
    return result


def batch_norm(model: nn.Module, slices: Slices) -> dict[str, Tensor]:
    """Site -> float32 [count]: mean |gamma| over the scales of batch norms that go with a unit.

    Sites without a batch norm are left out: this score has nothing to say of them.
    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. There every
    channel has one scale; those that a residual sum ties take the mean of theirs here.
    """
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    scales = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    slices = {site: [part for part in parts if id(part[0]) in scales] for site, parts in slices.items()}
    slices = {site: parts for site, parts in slices.items() if parts}
    sums = total(slices, lambda scale: scale.detach().float().abs())
    counts = total(slices, torch.ones_like)
    return {site: finite(site, (sums[site] / counts[site]).float()) for site in slices}


def _powers(weight: Tensor, dim: int, p: float) -> Tensor:
    """Float64 [size of dim]: sum |w|^p of each index, as memory lies and a cache-full at a time."""
    if dim > 1 or weight.dim() < 2:
        others = [other for other in range(weight.dim()) if other != dim]
        row = torch.linalg.vector_norm(weight.float(), ord=p, dim=others) if others else weight.float().abs()
        return row.double().cpu() ** p
    flat = weight.flatten(1) if dim == 0 else weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    parts = flat.split(max(1, _CACHED // max(1, math.prod(flat.shape[1:]))))
    if dim == 0:
        norms = [torch.linalg.vector_norm(part.float(), ord=p, dim=1) for part in parts]
        return torch.cat(norms).double().cpu() ** p
    sums = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in parts:
        shown = part.float()
        power = torch.einsum("oik,oik->oi", shown, shown) if p == 2 else (shown.abs() ** p).sum(2)
        sums += power.sum(0)
    return sums.cpu()


_CACHED = 1 << 18
"""Numbers that are looked at together."""


def consumer_weight(model: nn.Module, consumer: Columns) -> nn.Parameter:
    """The consumer's weight as it is stored: [d_out, d_in], or [d_in, d_out] where `conv1d`."""
    weight = getattr(module_at(model, consumer.module), "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise InputError(f"module {consumer.module!r} has no weight matrix: a consumer is a linear layer")
    return weight
