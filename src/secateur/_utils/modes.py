"""Training and evaluation mode of modules, put back as they were, each module's own; and where they are held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from secateur.errors import InputError

__all__ = ["evaluating", "held", "restored", "there"]


@contextmanager
def restored(*models: nn.Module) -> Iterator[None]:
    """After the block each module is in the mode in which it was before."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            if module.training != mode:  # to set it takes much longer than to look
                module.training = mode


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Within the block the models are in evaluation mode: no statistics change. Then each module is as it was."""
    with restored(*models):
        for model in models:
            if any(module.training for module in model.modules()):
                model.eval()
        yield


def there(device: str) -> None:
    """Raise `InputError` for a device that is none, is not there, or holds no values."""
    with _told(device):
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds shapes and no values; give cpu or cuda")
        torch.empty(1, device=device)


def held(model: nn.Module, device: str) -> None:
    """Move a model to a device. Raises `InputError` where `there` does, or where it has no room."""
    there(device)
    with _told(device):
        model.to(device)


@contextmanager
def _told(device: str) -> Iterator[None]:
    """In one line, what torch says of a device."""
    try:
        yield
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} can't hold the model: {reason}") from error
