"""Training and evaluation mode of modules, put back as they were: each module's own, since some may be frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "restored"]


@contextmanager
def restored(*models: nn.Module) -> Iterator[None]:
    """After the block each module is in the mode in which it was before."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Within the block the models are in evaluation mode: no statistics change. Then each module is as it was."""
    with restored(*models):
        for model in models:
            model.eval()
        yield
