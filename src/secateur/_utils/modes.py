"""Training and evaluation mode of modules, and the default number type, set for a block; moving to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from secateur.errors import InputError

__all__ = [
    "check_device", "default_dtype", "evaluating", "find_place", "forget_passes", "keep_modes", "move_to_device",
    "restore_modes",
]  # fmt: skip

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def restore_modes(*models: nn.Module) -> Iterator[None]:
    """Restore the mode of each module after the block."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            if module.training != mode:  # to set it takes much longer than to look
                module.training = mode


@contextmanager
def default_dtype(dtype: object) -> Iterator[None]:
    """Within the block, tensors that say no number type have this one, as while `from_pretrained` builds a model.

    Sinusoids that no file holds are made in it, frequencies of rotary positions say their own. Of another type than
    those of 16 to 64 bits nothing changes.
    """
    before = torch.get_default_dtype()
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1
    torch.set_default_dtype(dtype if known else before)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def keep_modes(*names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function give networks, its arguments of these names, back in the modes that they came in."""

    def keep(function: Callable[_P, _R]) -> Callable[_P, _R]:
        known = signature(function)

        @wraps(function)
        def call(*given: _P.args, **named: _P.kwargs) -> _R:
            try:
                bound = known.bind_partial(*given, **named).arguments
            except TypeError:  # as `function` will say itself
                return function(*given, **named)
            with restore_modes(*_networks([bound.get(name) for name in names])):
                return function(*given, **named)

        return call

    return keep


def _networks(given: object) -> Iterator[nn.Module]:
    """The modules in lists and tuples, and those of subjects."""
    if isinstance(given, nn.Module):
        yield given
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _networks(one)
    elif isinstance(model := getattr(given, "model", None), nn.Module):
        yield model


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Have the models in evaluation mode within the block, so that no statistics change, and restore it afterwards."""
    with restore_modes(*models):
        for model in models:
            if any(module.training for module in model.modules()):
                model.eval()
        yield


def forget_passes(*models: nn.Module) -> None:
    """Let modules drop what they keep of passes in evaluation mode, as some do whenever a mode is set; modes stay.

    The attention of timm's LeViT, TinyViT and EfficientFormerV2 keeps its biases: a copy takes them along, and a
    smaller one would add those of all heads.
    """
    with restore_modes(*models):
        for model in models:
            model.eval()


def check_device(device: str) -> None:
    """Raise `InputError` for a device that does not exist, is not available, or holds no values (meta)."""
    find_place(device)


def find_place(device: str) -> torch.device:
    """The device of that name, with its number where it has several. Raises `InputError` as `check_device` does."""
    if device == "auto":
        raise InputError("device=auto splits a transformer's folder that is read whole: name one device, such as cuda")
    with _explain_device_errors(device):
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds shapes and no values; give cpu or cuda")
        return torch.empty(1, device=device).device


def move_to_device(model: nn.Module, device: str) -> None:
    """Move a model to a device. Raises `InputError` where `check_device` does, or where it has no room."""
    check_device(device)
    with _explain_device_errors(device):
        model.to(device)


@contextmanager
def _explain_device_errors(device: str) -> Iterator[None]:
    """Turn torch's error about a device into an `InputError` of one line."""
    try:
        yield
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} can't hold the model: {reason}") from error
