"""Recompute statistics of batch norms after a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_norms", "reestimate"]

B = TypeVar("B")


def has_norms(model: nn.Module) -> bool:
    """Whether there are batch norms with running statistics."""
    return bool(_norms(model))


def reestimate(model: nn.Module, forward: Callable[[B], object], batches: Iterable[B]) -> int:
    """Set the running means and variances of all batch norms to their plain averages over `batches`.

    forward: runs one batch through `model`. No weight changes, and all else runs in evaluation mode; the model comes
    back in evaluation mode. Returns the number of norms; where it is 0 nothing has run.
    """
    norms = _norms(model)
    model.eval()
    if not norms:
        return 0
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                forward(batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.eval()
    return len(norms)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
