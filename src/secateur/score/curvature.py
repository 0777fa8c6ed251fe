"""Curvature: how sharp a minimum is, by the trace of the Hessian of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur._utils.modes import evaluating
from secateur.errors import DataError

__all__ = ["trace"]

Batch = Any
"""Whatever the loss takes."""


def trace(
    loss: Callable[[Batch], Tensor],
    model: nn.Module,
    batches: Iterable[Batch],
    weights: Sequence[Tensor],
    *,
    draws: int = 1,
    seed: int = 0,
) -> float:
    """Mean over batches of tr H, H the Hessian of the loss in `weights`: E[v' H v] over v of random signs.

    In evaluation mode; gradients and modes stay as they were. The deviation of a draw is sqrt(2 sum_{i != j} H_ij^2).

    Args:
        loss: batch -> mean loss, differentiable twice.
        model: whose modes are set.
        batches: one estimate of `draws` vectors each.
        weights: tensors that the loss depends on.
        draws: vectors for each batch.
        seed: of the signs.

    Source: M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix (1990).
    """
    order, found = torch.Generator().manual_seed(seed), list[float]()
    learnt = [weight for weight in weights if weight.is_floating_point()]
    flags = [weight.requires_grad for weight in learnt]
    try:
        for weight in learnt:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have one derivative only
            for batch in batches:
                first = torch.autograd.grad(loss(batch), learnt, create_graph=True, materialize_grads=True)
                for _ in range(draws):
                    signs = [(2 * torch.randint(2, one.shape, generator=order) - 1).to(one) for one in learnt]
                    product = torch.stack([(g * v).sum() for g, v in zip(first, signs, strict=True)]).sum()
                    if not product.requires_grad:  # a loss that is linear in all weights
                        found.append(0.0)
                        continue
                    second = torch.autograd.grad(product, learnt, retain_graph=True, materialize_grads=True)
                    found.append(sum(float((h * v).sum()) for h, v in zip(second, signs, strict=True)))
    finally:
        for weight, flag in zip(learnt, flags, strict=True):
            weight.requires_grad_(flag)
    if not found:
        raise DataError("there are no batches to look at: give at least one")
    return sum(found) / len(found)
