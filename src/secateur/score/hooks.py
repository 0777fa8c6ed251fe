"""Hooks that record what flows through modules and are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.finite import all_finite, require_finite
from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError, NumericalError

__all__ = ["Batch", "Side", "finite", "module_at", "observe", "real_tokens", "sound", "stream"]

Batch = Any
"""Whatever the caller's forward takes; a mapping may hold "attention_mask" [B, S], 0 where padding."""

Side = Literal["input", "output"]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`; `InputError` where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise InputError(f"the model has no module {path!r}: give a path of named_modules()") from None


@contextmanager
def observe(model: nn.Module, places: Mapping[tuple[str, Side], Callable[[Tensor], object]]) -> Iterator[None]:
    """Within the block, hand what enters or leaves each module to its function. Hooks go in every case."""
    with ExitStack() as stack:
        for (path, side), look in places.items():
            module = module_at(model, path)

            def on_input(
                _: nn.Module,
                args: tuple[object, ...],
                kwargs: Mapping[str, object],
                look: Callable[[Tensor], object] = look,
            ) -> None:
                look(_tensor(args if args else tuple(kwargs.values())))

            def on_output(_: nn.Module, args: object, output: object, look: Callable[[Tensor], object] = look) -> None:
                look(_tensor(output))

            if side not in ("input", "output"):
                raise InputError(f"side {side!r} is neither 'input' nor 'output'")
            handle = (
                module.register_forward_pre_hook(on_input, with_kwargs=True)
                if side == "input"
                else module.register_forward_hook(on_output)
            )
            stack.callback(handle.remove)
        yield


def stream(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    places: Mapping[tuple[str, Side], Callable[[Tensor, Tensor | None], None]],
) -> int:
    """Run all batches without gradients in evaluation mode; a place gets (activation [B, S, C], mask or None).

    Returns the number of batches. The model's mode is restored. Raises `DataError` without batches, `InputError`
    where a module was never reached (a silent skip would score its units as worthless).
    """
    mask: Tensor | None = None
    reached: set[tuple[str, Side]] = set()

    def looker(place: tuple[str, Side]) -> Callable[[Tensor], None]:
        def look(activation: Tensor) -> None:
            reached.add(place)
            places[place](*_as_sequences(activation, mask, place[0]))

        return look

    count = 0
    with evaluating(model), torch.no_grad(), observe(model, {place: looker(place) for place in places}):
        for given in batches:
            batch = devices.move(given, model)
            mask = real_tokens(batch)
            forward(batch)
            count += 1
    if not count:
        raise DataError("there are no batches to score with: give at least one")
    missed = [path for path, side in places if (path, side) not in reached]
    if missed:
        raise InputError(f"module {missed[0]!r} was never run by the forward pass: it can't be scored from activations")
    return count


@contextmanager
def sound(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Within the block, the first module at `paths` whose output is not finite raises `NumericalError` with its name.

    For forward passes in evaluation mode without gradients. What is not finite spreads: forwards to all blocks behind,
    backwards to all before, so that neither a loss nor a gradient tells where it came from.
    """
    looks: dict[tuple[str, Side], Callable[[Tensor], object]] = {
        (path, "output"): partial(require_finite, path) for path in paths
    }
    with evaluating(model), torch.no_grad(), observe(model, looks):
        yield


def real_tokens(batch: Batch) -> Tensor | None:
    """Booleans [B, S], False where a token is padding; None where the batch says nothing about it."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) or hasattr(batch, "get") else None
    return None if mask is None else mask.bool()


def finite(name: str, values: Tensor) -> Tensor:
    """`values`, or `NumericalError` naming where they are not finite."""
    if not all_finite(values):
        raise NumericalError(f"{name}: NaN or infinity in what was measured; check the weights and the data there")
    return values


def _tensor(value: object) -> Tensor:
    """The first tensor of what a module was given or returned."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            if isinstance(part, Tensor):
                return part
    raise InputError(f"no tensor in {type(value).__name__}: only modules that pass tensors can be watched")


def _as_sequences(x: Tensor, mask: Tensor | None, path: str) -> tuple[Tensor, Tensor | None]:
    """[B, S, C] with its mask; [B, C] becomes S = 1, and [B*S, C] is folded back by the mask."""
    if mask is not None and x.dim() == 2 and x.shape[0] == mask.numel():
        x = x.reshape(*mask.shape, -1)
    if x.dim() == 2:
        return x.unsqueeze(1), None
    if x.dim() != 3 or (mask is not None and x.shape[:2] != mask.shape):
        wanted = "[B, C] or [B, S, C]" if mask is None else f"[{mask.shape[0]}, {mask.shape[1]}, C]"
        raise InputError(f"module {path!r} passes shape {tuple(x.shape)}, expected {wanted}")
    return x, mask if mask is None else mask.to(x.device)
