"""Gradient descent inside the backward pass: each weight is updated as soon as its gradient is there, which then goes.

There is no optimiser state, and no moment at which all gradients exist, so that a model can be trained whole in little
more than the memory of its weights. Clipping by the norm of all gradients needs them all: that is a backward pass of
its own. Several processes share each batch out, and sum each gradient as soon as all have it. Source: LOMO
(arXiv 2306.09782).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils import devices, distributed, storage
from secateur._utils.batches import Batches
from secateur.errors import DataError, NumericalError, RunError
from secateur.recover.training.objectives import Objective
from secateur.recover.training.objectives import count as count_tokens
from secateur.recover.training.schedule import learning_rate
from secateur.vocabulary import Recovery

__all__ = ["descend", "step"]

Shape = Callable[[str, Tensor, float], Tensor]
"""(name of a parameter, its gradient, the learning rate) -> the gradient to descend."""

Look = Callable[[str, Tensor, Tensor], None]
"""(name of a parameter, the parameter before its update, the gradient to descend before clipping)."""


def step(
    loss: Tensor,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    clip: float | None = 1.0,
    shape: Shape | None = None,
    look: Look | None = None,
) -> float:
    """Update `parameters` in place, w <- w - lr min(1, clip / |g|) g, |g| over all of them; returns |g| (0 unclipped).

    loss: a scalar with its graph, which is spent. One backward pass, two with `clip`: the first for the norm alone.
    shape: what the gradient becomes before anything else is done with it, in both passes.
    look: sees every weight beside its gradient, once.

    Of several processes each gives the loss of its share: their gradients are summed before anything else is done.

    Raises `NumericalError`, naming the parameter, for a gradient that is not finite: with `clip` before a weight moves.
    """
    squares: list[Tensor] = []

    def gradient(name: str, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        found = parameter.grad if shape is None else shape(name, parameter.grad, lr)
        if not bool(torch.isfinite(found).all()):
            raise NumericalError(f"the gradient of {name} is not finite: lower the learning rate or check the data")
        return found

    def measure(name: str, parameter: nn.Parameter) -> None:
        squares.append(torch.linalg.vector_norm(gradient(name, parameter).float()).square())

    norm, scale = 0.0, 1.0
    if clip is not None:
        with _each(parameters, measure):
            loss.backward(retain_graph=True)
        norm = math.sqrt(float(sum(squares))) if squares else 0.0
        scale = min(1.0, clip / norm) if norm > 0 else 1.0

    def update(name: str, parameter: nn.Parameter) -> None:
        found = gradient(name, parameter)
        if look is not None:
            look(name, parameter.detach(), found)
        parameter.detach().add_(found.to(parameter.dtype), alpha=-lr * scale)

    with _each(parameters, update):
        loss.backward()
    return norm


@contextmanager
def _each(parameters: Mapping[str, nn.Parameter], act: Callable[[str, nn.Parameter], None]) -> Iterator[None]:
    """Within the block a backward pass hands over each parameter once its gradient is whole; the gradient then goes.

    Of several processes, once the gradient is that of all of them.
    """
    queue = _Queue(parameters, act)
    with ExitStack() as stack:
        for name, parameter in parameters.items():
            parameter.grad = None
            stack.callback(parameter.register_post_accumulate_grad_hook(partial(queue.add, name)).remove)
        try:
            yield
            queue.flush()
        finally:
            for parameter in parameters.values():
                parameter.grad = None


class _Queue:
    """Parameters whose gradients are whole, in one order for all processes: that in which the first one has them.

    Processes may have them in different orders, or some not at all, where their shares take different ways through the
    model (experts). What a process has before its turn waits; what it has not counts as 0.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], act: Callable[[str, nn.Parameter], None]) -> None:
        self.parameters, self.act, self.names = parameters, act, list(parameters)
        self.left = dict.fromkeys(self.names if distributed.count() > 1 else ())
        self.waiting: dict[str, None] = {}
        self.turn = ""

    def add(self, name: str, _: Tensor) -> None:
        """This process has the gradient of `name`."""
        if distributed.count() == 1:
            self._hand_over(name)
            return
        self.waiting[name] = None
        while self.waiting:
            self.turn = self.turn or self._agree(next(iter(self.waiting)))
            if self.turn not in self.waiting:
                return
            self._sum()

    def flush(self) -> None:
        """The backward pass is over."""
        while self.left:
            self.turn = self.turn or self._agree(next(iter(self.left)))
            self._sum()

    def _agree(self, name: str) -> str:
        """What the first process gives as `name`."""
        return self.names[int(distributed.broadcast(torch.tensor(self.names.index(name))))]

    def _sum(self) -> None:
        parameter = self.parameters[self.turn]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.total(parameter.grad)
        self._hand_over(self.turn)
        self.waiting.pop(self.turn, None)
        del self.left[self.turn]
        self.turn = ""

    def _hand_over(self, name: str) -> None:
        with torch.no_grad():
            self.act(name, self.parameters[name])
        self.parameters[name].grad = None


def descend(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    *,
    steps: int,
    lr: float,
    warmup: float = 0.1,
    schedule: str = "linear",
    clip: float | None = 1.0,
    shape: Shape | None = None,
    look: Look | None = None,
    beside: Mapping[str, Tensor] | None = None,
    count: Callable[[Any], Mapping[str, int]] = count_tokens,
    checkpoint: str | Path | None = None,
    every: int = 100,
) -> Recovery:
    """Train every parameter of `model` that requires a gradient, in place, by `step`; returns what it took.

    batches: `batches[i]` for any i >= 0; a list or tuple is repeated.
    objective: (batch, totals) -> (loss, parts), as for `loop.train`; one batch is one step.
    lr, warmup, schedule: see `schedule.learning_rate`.
    beside: tensors that `shape` and `look` fill, kept with the weights in checkpoints.
    checkpoint: folder; a run that finds its file there goes on from it and ends with the same bytes.
    every: steps between checkpoints; the last step writes one, too.

    Several processes (torchrun, accelerate launch) give what one gives: of each batch, which has a row for each of them
    at least, process r of P takes every P-th row. They begin with the weights of the first, which alone calls `look`,
    holds what is `beside`, and reads and writes checkpoints.

    The model keeps its modes: nothing here is drawn at random, so dropout should be off. Raises `NumericalError` naming
    the step for a loss or a gradient that is not finite, `RunError` for a checkpoint that is damaged or of another run.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = dict(beside or {})
    settings = {"steps": steps, "lr": lr, "warmup": warmup, "schedule": schedule, "clip": clip}
    path = None if checkpoint is None else Path(checkpoint) / "descent.safetensors"

    def save() -> None:
        assert path is not None
        tensors: dict[str, Tensor] = {f"0.{name}": parameter for name, parameter in parameters.items()}
        tensors |= {f"1.{name}": tensor for name, tensor in held.items()}
        storage.write(path, tensors, json.dumps({"settings": settings, "state": state}))

    state = distributed.by_first(partial(_resume, path, parameters, held, settings))
    process, processes = distributed.index(), distributed.count()
    with torch.no_grad():
        for parameter in parameters.values():
            distributed.broadcast(parameter)
    for place in range(state["step"], steps):
        began = time.perf_counter()
        batch = batches[place % len(batches)] if isinstance(batches, list | tuple) else batches[place]
        totals = count(batch)
        rate = learning_rate(place, steps=steps, lr=lr, warmup=warmup, schedule=schedule)
        with torch.enable_grad():
            share = {name: rows[process::processes] for name, rows in batch.items()} if processes > 1 else batch
            loss = objective(devices.move(share, model), totals)[0]
        value = float(distributed.total(loss.detach().clone()))
        if not math.isfinite(value):
            raise NumericalError(f"loss is {value} at step {place + 1}: lower the learning rate or check the data")
        try:
            step(loss, parameters, lr=rate, clip=clip, shape=shape, look=None if process else look)
        except NumericalError as problem:
            raise NumericalError(f"step {place + 1}: {problem}") from problem
        state["step"] = place + 1
        state["tokens"] += totals.get("tokens", totals.get("examples", 0))
        state["seconds"] += time.perf_counter() - began
        state["losses"].append((place + 1, value))
        if path is not None and (state["step"] % every == 0 or state["step"] == steps):
            distributed.by_first(save)
    losses = tuple((int(number), float(value)) for number, value in state["losses"])
    thin = max(1, math.ceil(len(losses) / 300))
    return Recovery(steps, int(state["tokens"]), float(state["seconds"]), 0.0, losses[thin - 1 :: thin], settings)


def _resume(
    path: Path | None,
    parameters: Mapping[str, nn.Parameter],
    held: Mapping[str, Tensor],
    settings: Mapping[str, object],
) -> dict[str, Any]:
    """The state of a checkpoint, whose tensors are put in place; that of a beginning where there is none."""
    if path is None or not path.exists():
        return {"step": 0, "tokens": 0, "seconds": 0.0, "losses": []}
    try:
        tensors, text = storage.read(path)
        stored = json.loads(text)
        state: dict[str, Any] = stored["state"]
    except (DataError, ValueError, KeyError) as problem:
        raise RunError(f"checkpoint {path} can't be read: remove it to start anew ({problem})") from problem
    ours: dict[str, Tensor] = {f"0.{name}": parameter for name, parameter in parameters.items()}
    ours |= {f"1.{name}": tensor for name, tensor in held.items()}
    same = ours.keys() == tensors.keys() and all(ours[name].shape == tensors[name].shape for name in ours)
    if stored["settings"] != json.loads(json.dumps(settings)) or not same:
        raise RunError(f"checkpoint {path} belongs to another run: use the same settings or another folder")
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
    return state
