"""Measure several models as one ensemble, or refuse those that do not fit together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from secateur._utils.batches import Batch
from secateur.errors import DataError, InputError, MeasurementError, UnsupportedError
from secateur.measure import loyalty
from secateur.measure.latency import Environment
from secateur.methods.predictions import tells_labels, tells_numbers
from secateur.recover.distillation import ensembles, teachers
from secateur.recover.training import objectives
from secateur.runs import backends
from secateur.runs.backends import AnyBackend, Row, Source
from secateur.runs.distilling.models import Learner, as_transformer, check_classes, check_output, gives_tokens
from secateur.runs.distilling.setup import Answer, Ask, class_logits, predict
from secateur.subjects import Traced, Transformer

__all__ = ["average_models", "check_models", "joint_subject", "measure_ensemble", "name_models"]

_ALL = "ensemble"
"""What all of them together are called."""


def joint_subject(subject: Learner, answer: Ask) -> Learner:
    """A subject like this one that answers as `answer` does, for measuring only."""
    joint = copy.copy(subject)
    if isinstance(joint, Transformer):
        joint.forward = answer  # type: ignore[method-assign]
    else:
        from secateur.runs.backends.network import Joint  # texts do without

        joint.model = Joint(partial(_as_network, answer))
    return joint


def _as_network(answer: Ask, batch: Batch) -> Tensor:
    """Classes as networks give them: of pixels [B, C, h, w]."""
    prediction = predict(answer, batch)
    return prediction.permute(0, 3, 1, 2) if prediction.dim() == 4 else prediction


def name_models(models: Sequence[Source]) -> list[str]:
    """What several models are called beside one another: as short as tells them apart.

    Raises `InputError` for models that are not all of one family, or one that is named twice.
    """
    names = [backends.name_source(model) for model in models]
    for number, model in enumerate(models):
        if backends.of_source(model) is not backends.of_source(models[0]):
            raise InputError(f"{names[0]} and {names[number]} are a network and a model of texts: measure them apart")
        if any(_identity(model) == _identity(other) for other in models[:number]):
            raise InputError(f"against names {names[number]} twice: name each model once")
    short = [Path(name).name for name in names]
    for labels in (short, names):
        if len({*labels, _ALL}) > len(labels):
            return labels
    return [f"{name} {number}" for number, name in enumerate(names, 1)]


def _identity(model: Source) -> object:
    """By what two names of one model are equal; what is no name is itself."""
    if not isinstance(model, str | Path):
        return id(model)
    return Path(model).resolve() if Path(model).exists() else str(model)


def check_models(
    backend: AnyBackend, student: Learner, others: Mapping[str, Learner], environment: Environment
) -> None:
    """Refuse a model among `others` that is there twice, or gives other things or classes than the student."""
    names = dict[str, str]()
    for name, model in others.items():
        if getattr(model, "stored", None) is not None:  # quantised weights have no bytes of their own to tell
            continue
        digest = backend.digest(model)
        if digest in names:
            raise InputError(f"{names[digest]} and {name} are the same model, weight for weight: name each once")
        names[digest] = name
    width = _width(backend, student, environment)
    for name, model in others.items():
        if isinstance(student, Transformer):
            check_output(student, as_transformer(model), "the model", name)
            check_classes(student, as_transformer(model), "the model", name)
        elif (theirs := _width(backend, model, environment)) != width:
            ours, its = (f"rows of {columns}" if columns else "no rows" for columns in (width, theirs))
            raise InputError(f"the model gives {ours} and {name} {its}: use models of the same classes")


def average_models(backend: AnyBackend, subjects: Sequence[Learner], environment: Environment) -> Learner | None:
    """The averaged ensemble of models, as a subject: the mean of their probabilities, or of their numbers.

    None where they tell neither: embeddings, states and boxes have no mean, nor has it a meaning of labels of which
    several may hold.
    """
    first = subjects[0]
    width: int | None = None
    if isinstance(first, Transformer):
        if first.output != "logits" or tells_labels(first):
            return None
        asked = [teachers.live(subject.model, subject.forward) for subject in subjects]
        number = tells_numbers(first)
        if gives_tokens(first):
            width = min(int(as_transformer(subject).model.config.vocab_size) for subject in subjects)
    else:
        if (count := _width(backend, first, environment)) is None:
            return None
        asked = [teachers.live(subject.model, partial(class_logits, cast(Traced, subject))) for subject in subjects]
        number = count == 1
    answer = partial(_mean, asked) if number else ensembles.Averaged(asked, vocabulary=width)
    return joint_subject(first, answer)


def measure_ensemble(
    backend: AnyBackend, student: Learner, others: Sequence[Learner], held_out: object, environment: Environment
) -> dict[str, Row]:
    """How good the average of `others` is on held-out data, and the student's loyalty to it, as parts of a measurement.

    Empty where that can't be told.
    """
    boxes = getattr(held_out, "targets", ())
    joint = None if boxes else average_models(backend, others, environment)
    if joint is None:
        return {}
    try:
        first, _, both = backend.compare(joint, student, held_out, environment)
    except (DataError, MeasurementError):
        return {}
    # How alike outputs are is about vectors, and what stands here for those of several is no mean of theirs.
    both = {name: figure for name, figure in both.items() if name not in ("spearman", "cosine")}
    return {_ALL: first, f"both {_ALL}": both} if first else {f"both {_ALL}": both}


def _mean(asked: Sequence[Ask], batch: Batch, *, hidden: bool = False) -> Answer:
    """The mean of the numbers that each of them tells."""
    if hidden:
        raise UnsupportedError("hidden states of several models have no mean")
    return Answer(loyalty.average([ask(batch).prediction.float() for ask in asked]))


@torch.no_grad()
def _width(backend: AnyBackend, subject: Learner, environment: Environment) -> int | None:
    """How many numbers a network gives for each example; None where that is no row of them."""
    if isinstance(subject, Transformer):
        return None
    try:
        output = backend.forward(subject, backend.make_example(subject, environment))
        logits: Tensor = objectives.logits(output)
    except (UnsupportedError, MeasurementError):
        return None
    return int(logits.shape[1]) if logits.dim() == 2 else None
