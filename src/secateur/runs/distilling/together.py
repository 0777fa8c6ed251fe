"""Several models as one, to be measured: what they say together, and whether that can be told."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError, InputError, MeasurementError, UnsupportedError
from secateur.measure import loyalty
from secateur.measure.latency import Environment
from secateur.recover.distillation import ensembles, teachers
from secateur.recover.training import objectives
from secateur.runs import backends
from secateur.runs.backends import Trade, language
from secateur.runs.distilling.course import Said, classes, predicted
from secateur.runs.distilling.members import check_classes, check_output, of_tokens
from secateur.vocabulary import Figure

__all__ = ["as_one", "averaged", "check", "ensemble", "named"]

_ALL = "ensemble"
"""What all of them together are called."""


def as_one(trade: Trade, one: Any, voices: Any) -> Any:
    """A subject like `one` that answers as `voices` do, for measuring only."""
    joint = copy.copy(one)
    if trade is language:
        joint.forward = voices
    else:
        from secateur.runs.backends import network  # texts do without

        joint.model = network.Joint(partial(predicted, voices))
    return joint


def named(models: Sequence[Any]) -> list[str]:
    """What several models are called beside one another: as short as tells them apart.

    Raises `InputError` for models that are not all of one trade, or one that is named twice.
    """
    called = [backends.called(one) for one in models]
    for number, one in enumerate(models):
        if backends.of_model(one) is not backends.of_model(models[0]):
            raise InputError(f"{called[0]} and {called[number]} are a network and a model of texts: measure them apart")
        if any(_place(one) == _place(other) for other in models[:number]):
            raise InputError(f"against names {called[number]} twice: name each model once")
    short = [Path(one).name for one in called]
    for found in (short, called):
        if len({*found, _ALL}) > len(found):
            return found
    return [f"{name} {number}" for number, name in enumerate(called, 1)]


def _place(model: Any) -> Any:
    """By what two names of one model are equal; what is no name is itself."""
    if not isinstance(model, str | Path):
        return id(model)
    return Path(model).resolve() if Path(model).exists() else str(model)


def check(trade: Trade, student: Any, others: Mapping[str, Any], place: Environment) -> None:
    """Refuse a model among `others` that is there twice, or gives other things or classes than the student."""
    seen = dict[str, str]()
    for name, one in others.items():
        if getattr(one, "stored", None) is not None:  # quantised weights have no bytes of their own to tell
            continue
        digest = trade.digest(one)
        if digest in seen:
            raise InputError(f"{seen[digest]} and {name} are the same model, weight for weight: name each once")
        seen[digest] = name
    width = _width(trade, student, place)
    for name, one in others.items():
        if trade is language:
            check_output(student, one, "the model", name)
            check_classes(student, one, "the model", name)
        elif (theirs := _width(trade, one, place)) != width:
            ours, its = (f"rows of {found}" if found else "no rows" for found in (width, theirs))
            raise InputError(f"the model gives {ours} and {name} {its}: use models of the same classes")


def averaged(trade: Trade, subjects: Sequence[Any], place: Environment) -> Any:
    """The averaged ensemble of models, as a subject: the mean of their probabilities, or of one number each.

    None where they tell neither: embeddings, states and boxes have no mean.
    """
    first = subjects[0]
    if trade is language:
        if first.output != "logits":
            return None
        asked = [teachers.live(one.model, one.forward) for one in subjects]
        number, tokens = language.tells_number(first), of_tokens(first)
        width = min(one.model.config.vocab_size for one in subjects) if tokens else None
    else:
        if (count := _width(trade, first, place)) is None:
            return None
        asked = [teachers.live(one.model, partial(classes, one)) for one in subjects]
        number, width = count == 1, None
    return as_one(trade, first, partial(_mean, asked) if number else ensembles.Averaged(asked, vocabulary=width))


def ensemble(
    trade: Trade, student: Any, others: Sequence[Any], held_out: Any, place: Environment
) -> dict[str, dict[str, Figure]]:
    """How good `averaged` of `others` is on held-out data, and the student's loyalty to it, as parts of a measurement;
    nothing where that can't be told.
    """
    joint = None if trade is not language and held_out.targets else averaged(trade, others, place)
    if joint is None:
        return {}
    try:
        first, _, both = trade.compared(joint, student, held_out, place)
    except (DataError, MeasurementError):
        return {}
    # How alike outputs are is about vectors, and what stands here for those of several is no mean of theirs.
    both = {name: figure for name, figure in both.items() if name not in ("spearman", "cosine")}
    return {_ALL: first, f"both {_ALL}": both} if first else {f"both {_ALL}": both}


def _mean(asked: Sequence[Any], batch: Mapping[str, Any], *, hidden: bool = False) -> Said:
    """The mean of the one number that each of them tells."""
    if hidden:
        raise UnsupportedError("hidden states of several models have no mean")
    return Said(loyalty.averaged([ask(batch).prediction.float() for ask in asked]))


@torch.no_grad()
def _width(trade: Trade, subject: Any, place: Environment) -> int | None:
    """How many numbers a network gives for each example; None where that is no row of them."""
    if trade is language:
        return None
    try:
        found: Tensor = objectives.logits(trade.forward(subject, trade.example(subject, place)))
    except UnsupportedError:
        return None
    return int(found.shape[1]) if found.dim() == 2 else None
