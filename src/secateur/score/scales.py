"""Scales of batch norms: how much each channel is turned up, where training has pushed the useless ones to zero.

A unit may go with several norms (convolutions that a shortcut joins): their scales are told apart here, so that a
caller may merge masks as well as scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.errors import UnsupportedError
from secateur.score.hooks import finite
from secateur.score.slices import Slices

__all__ = ["members", "prunable"]


def members(model: nn.Module, slices: Slices) -> dict[str, dict[str, Tensor]]:
    """Site -> norm -> float32 [count]: |gamma| of each unit in that norm, the mean where a unit has several scales.

    Only norms whose scale is trained, and that hold every unit of the site; sites without one are left out, since
    nothing of them can be ranked this way. ``members(...)[site]``, averaged over norms, is the score of
    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """
    norms = _norms(model)
    result: dict[str, dict[str, Tensor]] = {}
    for site, parts in slices.items():
        count = max(int(unit.max()) for _, _, unit in parts) + 1
        for weight, _, unit in parts:
            if id(weight) not in norms:
                continue
            inside = unit >= 0
            size = weight.detach().float().abs().cpu()[inside]
            many = torch.zeros(count).index_add_(0, unit[inside], torch.ones(int(inside.sum())))
            if bool((many > 0).all()):
                mean = torch.zeros(count).index_add_(0, unit[inside], size) / many
                result.setdefault(site, {})[norms[id(weight)]] = finite(site, mean)
    return result


def prunable(model: nn.Module, slices: Slices) -> list[tuple[Tensor, Tensor]]:
    """(gamma, booleans [C]) of each norm in `members`: which of its scales belong to units that may go, in order.

    Raises `UnsupportedError` where there is none: frozen batch norms, and norms of other kinds, have nothing to push.
    """
    norms = _norms(model)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for site, row in members(model, slices).items():
        for weight, _, unit in slices[site]:
            if id(weight) in norms and norms[id(weight)] in row:
                before = found.get(id(weight))
                inside = unit >= 0
                found[id(weight)] = (weight, inside if before is None else inside | before[1])
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no batch norm whose scale can be trained and whose channels can go: "
            "build it with ordinary, not frozen, batch norms"
        )
    return list(found.values())


def _norms(model: nn.Module) -> dict[int, str]:
    return {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.weight is not None
        and module.weight.requires_grad
    }
