"""Short trainings that record what the network answered for every example after every epoch.

Scores of examples are read from these records; several rehearsals from other beginnings tell chance from difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils import devices, distributed
from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.recover.training import dense, loop
from secateur.recover.training.compose import Parts
from secateur.vocabulary import Training

__all__ = ["RECORDED", "classes", "glance", "half", "rehearse"]

RECORDED = ("logits", "labels", "features", "right")
"""What a rehearsal can write down."""

Batch = Mapping[str, Any]


def classes(ask: Callable[[Batch], Tensor]) -> Callable[[Batch, Mapping[str, int]], tuple[Tensor, Parts]]:
    """The objective ``1/N sum -log softmax(z)[y]`` of a classifier of examples or pixels; see `dense.class_loss`.

    ask: batch -> logits [B, C], or [B, C, h, w] where batches hold masks.
    """

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        answer, labels = ask(batch), batch["labels"]
        answer = _logits(answer) if labels.dim() == 1 else answer
        return dense.class_loss(answer, labels) / totals["examples"], {}

    return objective


def rehearse(
    model: nn.Module,
    ask: Callable[[Batch], Tensor],
    feed: Any,
    in_order: Callable[[], Iterator[Batch]],
    *,
    epochs: float,
    needs: Collection[str] = RECORDED,
    **how: Any,
) -> dict[str, Tensor]:
    """Train `model` in place on classes, and record: logits [N, C], labels [N], features [N, d], right [visits, N].

    Logits and features are those at the end, of all that `in_order` gives, whether or not it is in the `feed`; `right`
    says after each epoch, and at the end, which examples were classified rightly, in evaluation mode and without
    augmentation. Without any epoch the model is looked at as it is.

    Args:
        model: what is trained, a classifier.
        ask: batch -> logits [B, C] of `model`.
        feed: batches to train on, `len(feed)` to an epoch; see `loop.train`.
        in_order: gives all examples once, in their order, in batches with "labels".
        epochs: how long; scores of the data diet are read early.
        needs: which of these four are recorded; nothing else is held, and the model is looked at after each epoch only
            for "right". "features" are what goes into the last linear layer.
        how: further arguments of `loop.train`, such as lr and seed.

    Raises `InputError` for outputs that are not [B, C], for a network whose last layer is not linear where features are
    wanted, and for epochs below 0.
    """
    if not 0 <= epochs < math.inf:
        raise InputError(f"epochs={epochs}: give 0 or more")
    asked: Training | None = how.get("training")
    each = distributed.count() * ((asked.accumulate if asked else how.get("accumulate")) or 1)
    steps = round(epochs * len(feed) / each)
    visits: list[Tensor] = []

    def note() -> float:
        looks = _looks(model, ask, in_order())
        visits.append(torch.cat([look["logits"].argmax(-1) == look["labels"] for look in looks]))
        return 1.0 - float(visits[-1].float().mean())

    epoch = max(1, round(len(feed) / each))
    watch: dict[str, Any] = {"evaluate": note, "evaluate_every": epoch} if "right" in needs else {}
    if steps >= 1:
        loop.train(model, feed, classes(ask), steps=steps, count=_count, **watch, **how)
    elif watch:
        note()
    at_end = [name for name in RECORDED if name in needs and name != "right"]
    record = _gather(_looks(model, ask, in_order(), features="features" in needs), at_end) if at_end else {}
    return record | ({"right": torch.stack(visits)} if watch else {})


def half(count: int, *, seed: int, number: int) -> Tensor:
    """[count] booleans: the half of the examples that rehearsal `number` learns from.

    Of the numbers 2j and 2j + 1 the halves are complements: each example is inside of one, and outside of the other.
    """
    draw = torch.Generator().manual_seed((seed << 20) + number // 2)
    first = torch.zeros(count, dtype=torch.bool)
    first[torch.randperm(count, generator=draw)[: count // 2]] = True
    return ~first if number % 2 else first


def _logits(output: Tensor) -> Tensor:
    if output.dim() != 2:
        raise InputError(f"the model gives {tuple(output.shape)}: a classifier gives logits [B, C]")
    return output


def _count(batch: Batch) -> dict[str, int]:
    return {"examples": len(batch["labels"])}


def glance(
    model: nn.Module, ask: Callable[[Batch], Tensor], batches: Iterator[Batch], *, features: bool = False
) -> dict[str, Tensor]:
    """What a classifier makes of `batches`: logits [N, C], labels [N] where there are any, features [N, d] if asked.

    float32, on the CPU.
    """
    return _gather(_looks(model, ask, batches, features=features), ("logits", "labels", "features"))


@torch.no_grad()
def _looks(
    model: nn.Module, ask: Callable[[Batch], Tensor], batches: Iterator[Batch], *, features: bool = False
) -> Iterator[dict[str, Tensor]]:
    """What `glance` gives, of one batch after another."""
    with evaluating(model), _entering(model, features) as entered:
        for given in batches:
            batch = devices.move(given, model)
            logits = _logits(ask(batch))
            look = {"logits": logits.float().cpu()}
            if "labels" in batch:
                look["labels"] = batch["labels"].cpu()
            if features:
                look["features"] = _last(entered, logits).float().cpu()
                entered.clear()
            yield look


def _gather(looks: Iterable[Mapping[str, Tensor]], names: Collection[str]) -> dict[str, Tensor]:
    """Of all looks in one, what is named and there."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for look in looks:
        for name in found.keys() & look.keys():
            found[name].append(look[name])
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


@contextmanager
def _entering(model: nn.Module, wanted: bool) -> Iterator[list[tuple[int, Tensor]]]:
    """A list of (outputs, input) of each linear layer that runs inside, in the order of running."""
    entered: list[tuple[int, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)] if wanted else []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args: entered.append((module.out_features, args[0])) if args else None
        )
        for layer in layers
    ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _last(entered: list[tuple[int, Tensor]], logits: Tensor) -> Tensor:
    """The input [B, d] of the last linear layer that ran, if it is what gave the logits."""
    if not entered or entered[-1][0] != logits.shape[-1] or entered[-1][1].dim() != 2:
        raise InputError("this score needs the input of a last linear layer that gives the logits: this network has "
                         "none; take el2n, forgetting or random")  # fmt: skip
    return entered[-1][1]
