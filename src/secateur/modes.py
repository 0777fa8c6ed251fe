"""Training and evaluation mode of modules, put back as they were, each module's own; and where they are held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from secateur.errors import InputError

__all__ = ["evaluating", "held", "restored"]


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


def held(model: nn.Module, device: str) -> None:
    """Move a model to a device. Raises `InputError` for one that is none, or is not there."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} can't hold the model: {reason}") from error
