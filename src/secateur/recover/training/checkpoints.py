"""Checkpoints of the training loop: what stands in one, how it is written, and how a run goes on from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secateur._utils import distributed, storage
from secateur._utils.distributed import shard_like
from secateur.errors import DataError, RunError
from secateur.recover.training import optimizers
from secateur.recover.training.averaging import Average

__all__ = ["Best", "State", "resume", "save", "tensors_of", "whole"]

_AVERAGE = "ema."
"""What names of averaged weights begin with."""
_GROWTH = 2000
"""Steps after which `State.scale` is tried twice as large, as in torch.amp.GradScaler."""


@dataclass
class State:
    """What a checkpoint holds beside tensors. Random states are not among it: each micro-batch seeds its own."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    window: list[float] = field(default_factory=list)
    best: float = math.inf
    best_step: int = -1
    unit: str = "tokens"
    waited: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    stopped: bool = False
    saved: int = -1
    scale: float = 2.0**16
    """What a loss in float16 is multiplied by, so that small gradients do not vanish."""
    fitting: int = 0
    """Steps since `scale` was last changed."""

    def advance(self, loss: float, tokens: int, seconds: float, *, stride: int, last: int) -> None:
        """One step done; every `stride` steps the mean loss since the last point is kept."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.window.append(loss)
        if self.step % stride == 0 or self.step == last:
            self.losses.append((self.step, sum(self.window) / len(self.window)))
            self.window.clear()

    def judge(self, value: float, patience: int | None) -> None:
        """One evaluation done; `patience` of them without a new best stop the run."""
        self.evaluations.append((self.step, value))
        self.waited += 1
        if value < self.best:
            self.best, self.best_step, self.waited = value, self.step, 0
        self.stopped = patience is not None and self.waited >= patience

    def adapt_scale(self, fits: bool) -> None:
        """Halve `scale` after a step whose gradient did not fit in float16; double it after 2000 that did."""
        self.fitting = self.fitting + 1 if fits else 0
        if not fits:
            self.scale /= 2
        elif self.fitting == _GROWTH:
            self.scale, self.fitting = self.scale * 2, 0


def save(
    path: Path,
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    state: State,
    average: Average | None = None,
) -> None:
    """Write a checkpoint at `path`: weights, their average, what the optimiser knows, and `state`.

    settings: what a run that goes on from it must have, too. Raises `RunError` where it can't be written.
    """
    tensors = {name: whole(tensor) for name, tensor in tensors_of(modules).items()}
    tensors |= optimizers.state_of(optimizer)
    if average is not None:
        tensors |= {_AVERAGE + name: whole(tensor) for name, tensor in average.tensors.items()}
    text = json.dumps({"settings": settings, "state": asdict(state)})
    distributed.by_first(lambda: storage.write(path, tensors, text))


def resume(
    path: Path,
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    average: Average | None = None,
) -> State:
    """The state of the checkpoint at `path`; modules, optimiser and average get the tensors that stand there.

    Raises `RunError` for a checkpoint that is damaged, of another run or of another model.
    """
    try:
        tensors, text = storage.read(path)
        stored = json.loads(text)
        state = State(**stored["state"])
    except (DataError, ValueError, TypeError, KeyError) as problem:
        raise RunError(f"checkpoint {path} can't be read: remove it to train from the start ({problem})") from problem
    for key, value in settings.items():
        if stored["settings"].get(key) != value:
            raise RunError(
                f"checkpoint {path} belongs to a run with {key}={stored['settings'].get(key)!r}, this one has "
                f"{value!r}: use the same settings or another folder"
            )
    ours = tensors_of(modules)
    theirs = {name: tensor for name, tensor in tensors.items() if not name.startswith((optimizers.PREFIX, _AVERAGE))}
    for number, module in enumerate(modules):
        for place, part in module.named_modules():
            upgrade = getattr(part, "upgrade_state", None)  # of what an older version wrote
            if upgrade is not None:
                upgrade(theirs, f"{number}.{place}." if place else f"{number}.")
    wrong = sorted(ours.keys() ^ theirs.keys()) or [n for n in ours if ours[n].shape != theirs[n].shape]
    if wrong:
        raise RunError(f"checkpoint {path} is of another model, {wrong[0]} differs: use another folder")
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(shard_like(theirs[name], tensor))
    optimizers.restore_state(optimizer, tensors)
    if average is not None:
        for name, tensor in average.tensors.items():
            tensor.copy_(shard_like(tensors[_AVERAGE + name], tensor))
    state.losses = [(int(step), float(value)) for step, value in state.losses]
    state.evaluations = [(int(step), float(value)) for step, value in state.evaluations]
    state.saved = state.step
    return state


def tensors_of(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """All that training changes: trained parameters and persistent buffers, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for number, module in enumerate(modules):
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
                found[f"{number}.{name}"] = tensor
    return found


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; a shard is gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


class Best:
    """The weights of the best evaluation, beside the checkpoint where there is one, else in memory."""

    def __init__(self, modules: Sequence[nn.Module], path: Path | None) -> None:
        self._modules, self._path = modules, path
        self._tensors: dict[str, Tensor] = {}

    def save(self) -> None:
        """Keep the weights as they are."""
        tensors = {name: whole(tensor) for name, tensor in tensors_of(self._modules).items()}
        if self._path is None:
            self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        else:
            distributed.by_first(partial(storage.write, self._path, tensors, "{}"))

    def restore(self) -> None:
        """Give the modules the weights that were kept."""
        tensors = self._tensors if self._path is None else storage.read(self._path)[0]
        with torch.no_grad():
            for name, tensor in tensors_of(self._modules).items():
                tensor.copy_(shard_like(tensors[name], tensor))
