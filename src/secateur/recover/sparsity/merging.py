"""Experts of a cluster replaced by one of them, or by their mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import InputError

__all__ = ["closest", "fill", "per_expert", "reconstruct", "representatives"]

_TIE = 1e-9
"""Relative difference of squared distances that is rounding."""


def closest(parts: Sequence[Tensor], members: Sequence[int]) -> int:
    """argmin_i ||theta_i - mean(theta)||_2 over the experts `members`, theta_i being all of `parts` at i as one vector.

    To first order, what the loss rises by when expert i goes, its place taken by the cluster's mean, grows with that
    distance. The two experts of a pair are equally near: there, and in other ties, the larger theta stays, then the
    first.

    parts: packed tensors [E, ...]; computed in float64, one expert of one tensor at a time.
    Source: STUN (arXiv 2409.06211), the choice of a cluster's representative. Departure: the rule for ties.
    """
    if not len(members):
        raise InputError("a cluster without experts: give at least one")
    gaps, norms = np.zeros(len(members)), np.zeros(len(members))
    for part in parts:
        centre = torch.zeros_like(part[0], dtype=torch.float64)
        for i in members:
            centre += part[i].detach().double() / len(members)
        for place, i in enumerate(members):
            one = part[i].detach().double()
            gaps[place] += float((one - centre).square().sum())
            norms[place] += float(one.square().sum())
    near = np.flatnonzero(gaps <= gaps.min() + _TIE * norms.max())
    return int(members[int(near[np.argmax(norms[near])])])


def representatives(parts: Sequence[Tensor], clusters: Sequence[Sequence[int]]) -> list[int]:
    """The expert that stays of each cluster; see `closest`."""
    return [closest(parts, members) for members in clusters]


def reconstruct(tensor: Tensor, clusters: Sequence[Sequence[int]], chosen: Sequence[int], *, kappa: int = 3) -> Tensor:
    """[clusters, ...]: one slice of `tensor` [E, ...] for each cluster, as a layer with fewer experts stores them.

    The mean of the members' slices where the layer has at most `kappa` clusters, else the slice of the chosen one, bit
    for bit. For the experts' weights and for the rows (and the bias) of the router alike: what is routed to the j-th
    row meets the j-th expert. The mean lowers the error of a layer with few experts left, but moves the borders
    between them; hence selective.

    Source: STUN (arXiv 2409.06211), selective reconstruction; `kappa` is the number of clusters of the layer.
    """
    if len(chosen) != len(clusters):
        raise InputError(f"{len(chosen)} chosen experts for {len(clusters)} clusters: give one of each")
    if len(clusters) > kappa:
        return tensor.detach()[torch.as_tensor(chosen, device=tensor.device)]
    means = []
    for members in clusters:
        part = tensor.detach()[torch.as_tensor(list(members), device=tensor.device)]
        means.append(part[0] if len(part) == 1 else part.double().mean(0).to(tensor.dtype))
    return torch.stack(means)


def per_expert(module: nn.Module, count: int) -> dict[str, Tensor]:
    """Name -> tensor of a module that holds one slice for each expert: weights, a router's rows and its bias."""
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tensor.detach() for name, tensor in held if tensor.dim() and len(tensor) == count}


def fill(
    theirs: nn.Module, ours: nn.Module, clusters: Sequence[Sequence[int]], chosen: Sequence[int], *, kappa: int
) -> None:
    """Write what `reconstruct` gives of each tensor of `theirs` into `ours`, which holds a slice for each cluster.

    Both are packed experts, or both a router.
    """
    new = per_expert(ours, len(clusters))
    for name, tensor in per_expert(theirs, sum(map(len, clusters))).items():
        new[name].copy_(reconstruct(tensor, clusters, chosen, kappa=kappa))
