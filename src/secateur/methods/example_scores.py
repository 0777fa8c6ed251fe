"""Scores of training examples from short trainings, the subset that they choose, and the outputs of a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from secateur._utils.batches import Batch
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.recover.training import initialise, objectives, rehearsal
from secateur.score import difficulty
from secateur.select import balance, ranking
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.recording import Example
from secateur.vocabulary import Budget, Selection, Training

__all__ = ["Ask", "ask_logits", "ask_teacher", "check_scoring", "count_classes", "score_by_training", "select_examples"]

Ask = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> logits [B, C]."""


def ask_logits(inputs: Example, network: nn.Module, batch: Batch) -> Tensor:
    """The logits [B, C] of a batch, whose inputs are given as `inputs` are; with these, an `Ask`."""
    return objectives.logits(inputs.ask(network, batch["inputs"]))


def count_classes(network: nn.Module, ask: Ask, data: Examples) -> int:
    """How many classes a network tells, by two examples."""
    few = data.take(range(min(2, len(data)))).in_order(2)
    return rehearsal.glance(network, partial(ask, network), few)["logits"].shape[1]


def check_scoring(score: str, runs: int, epochs: float) -> None:
    """Refuse trainings from which `score` can't be read: memorisation compares pairs on halves of the data.

    runs: how many trainings; epochs: of each of them.
    """
    if not 0 <= epochs < math.inf:
        raise InputError(f"score_epochs={epochs:g}: give 0 or more; without any, the teacher is looked at as it is")
    if score == "memorisation" and (runs % 2 or not epochs):
        given = f"memorisation of runs={runs}, epochs={epochs:g}"
        raise InputError(f"{given}: runs come in pairs, and each is a training: give 4 runs of 10 epochs, say")


def score_by_training(
    model: nn.Module,
    data: Examples,
    ask: Ask,
    score: str,
    training: Training,
    *,
    epochs: float,
    seed: int,
    number: int = 0,
) -> dict[str, Tensor]:
    """{"score": [N]} of one short training, the `number`-th, of a network like `model`, from new weights.

    training: how, with its batch and rate; for `epochs`, and without any `model` is looked at as it is.
    """
    own, batch = seed + number, training.whole("batch")
    network = initialise.fresh(model, seed=own, linear=None)[0] if epochs else model
    needs = difficulty.NEEDS[score]
    inside = rehearsal.half(len(data), seed=seed, number=number) if "inside" in needs else None
    seen = data if inside is None else data.take(inside.nonzero().flatten())
    record = rehearsal.rehearse(
        network, partial(ask, network), examples.batches(seen, batch=batch, seed=own), lambda: data.in_order(batch),
        training=training, epochs=epochs, seed=own, needs=needs, progress=False,
    )  # fmt: skip
    return {"score": difficulty.by_name(score, [record if inside is None else record | {"inside": inside}])}


def select_examples(whole: ExampleSet, score: str, budget: Budget, *, balanced: bool) -> Selection:
    """The best by `score` of the examples that are left in `whole`, the same share of each class if `balanced`."""
    units, column = whole.units("examples"), whole.scores[score][whole.kept]
    if balanced:
        assert whole.labels is not None
        return balance.by_budget(units, "examples", column, budget, whole.labels, whole.source.classes)
    return ranking.by_budget(units, {"examples": column}, budget)


def ask_teacher(teacher: nn.Module, ask: Ask, left: ExampleSet, *, batch: int) -> dict[str, Tensor]:
    """{"logits": [K, C] float16 of the teacher in evaluation mode, "examples": [K] their places in the source}.

    Logits are less each row's largest, which changes no softmax: the best class keeps its 0 whatever the scale, and
    what lies more than 65,504 below it, float16's range, has a probability of 0 all the same.
    """
    logits = rehearsal.glance(teacher, partial(ask, teacher), left.data.in_order(batch))["logits"]
    below = logits - logits.amax(-1, keepdim=True)
    half = below.clamp(min=torch.finfo(torch.float16).min).half()
    return {"logits": half, "examples": torch.from_numpy(left.kept)}
