"""Sharpness-aware minimisation: the gradient is taken where the loss is highest near the weights.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (arXiv 2010.01412), equations 2
and 3, with p = 2: ``e = rho g / |g|``, and the step at w goes along the gradient at ``w + e``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.recover.training.checkpoints import whole

__all__ = ["climb", "norm"]

_TINY = 1e-12


def norm(gradients: Sequence[Tensor]) -> float | Tensor:
    """The joint L2 norm of gradients, a number on their device; 0 without any."""
    norms = [whole(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms])) if norms else 0.0


@contextmanager
def climb(modules: Sequence[nn.Module], trained: Sequence[Tensor], rho: float) -> Iterator[None]:
    """Within the block `trained` stand at ``w + rho g / |g|`` of their gradients g, which are empty; after it at w.

    The gradients of the block remain. Running statistics of batch norms, which have seen this step's batch already,
    stay as they are. Nothing is read by the host.
    """
    moved = [parameter for parameter in trained if parameter.grad is not None]
    with torch.no_grad():
        scale = rho / (norm([parameter.grad for parameter in moved if parameter.grad is not None]) + _TINY)
        before = [parameter.detach().clone() for parameter in moved]
        for parameter in moved:
            assert parameter.grad is not None
            parameter.add_(parameter.grad * (scale if isinstance(scale, float) else scale.to(parameter.grad.device)))
            parameter.grad = None
    norms = [one for module in modules for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    rates = [one.momentum for one in norms]
    counts = [None if one.num_batches_tracked is None else one.num_batches_tracked.clone() for one in norms]
    for one in norms:
        one.momentum = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(moved, before, strict=True):
                parameter.copy_(weight)
        for one, rate, count in zip(norms, rates, counts, strict=True):
            one.momentum = rate
            if count is not None and one.num_batches_tracked is not None:
                one.num_batches_tracked.copy_(count)
