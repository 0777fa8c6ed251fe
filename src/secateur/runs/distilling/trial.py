"""One trial step before anything is measured or written: whether the loss is finite, and the time of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur._utils.plugins import line
from secateur.errors import InputError, SecateurError
from secateur.methods.distillation import OWN_DIRECTIONS, own_direction
from secateur.runs.distilling import caches, training
from secateur.runs.distilling.models import Learner
from secateur.runs.distilling.setup import Setup, reading_name
from secateur.subjects import Transformer
from secateur.vocabulary import Evidence

__all__ = ["check_number", "plan", "try_losses"]

_WRITTEN = 4
"""Tokens that a student is let write on trial."""


def check_number(setup: Setup, student: Learner) -> None:
    """Refuse options about classes where the student tells numbers, or labels of which several may hold.

    Refused is also what compares such labels, where the student tells none.
    """
    settings = setup.settings
    if isinstance(student, Transformer):
        own = own_direction(student)
    else:
        own = "mse" if setup.ask(student)(setup.batches[0]).prediction.shape[-1] == 1 else ""
    if settings.direction == "binary" and not own:
        raise InputError(
            "direction binary is of classifiers of texts with the problem_type multi_label_classification, and the "
            "student is none: leave direction out"
        )
    told = OWN_DIRECTIONS.get(own, "")
    wrong = {
        f"direction {settings.direction} compares classes, and the student tells {told}: use --direction {own}":
            settings.direction not in (own, "mse"),
        f"task is cross-entropy of classes, and the student tells {told}: leave task out": settings.task,
        f"teachers are averaged or chosen by their classes, and these tell {told}: name one teacher":
            len(setup.names) > 1,
    }  # fmt: skip
    for words, holds in wrong.items():
        if own and holds:
            raise InputError(words)


def try_losses(setup: Setup, student: Learner, between: Sequence[Learner]) -> None:
    """Ask for the loss of the first batch once, in each link of the chain, so that what can't be compared is refused
    before anything is measured or written.

    Of a student that writes itself, a batch as it is given, and one that it writes on from prompts by a few tokens.
    Raises `InputError` and `DataError`.
    """
    settings, above = setup.settings, tuple(setup.teachers)
    if settings.on_policy:
        for learner in (*between, student):
            _try_rollouts(setup, learner, above)
            above = (learner,)
        return
    by_characters = setup.by_characters(student)
    step = [setup.batches[index] for index in range(max(1, settings.batches_per_step))]
    first = {**step[0], **({"done": 0.0} if settings.warm_up else {})}
    for learner in (*between, student):
        device = devices.find_device(learner.model)
        asked = setup.join(learner, above, settings.temperature) if above and not by_characters else None
        objective = training.make_objective(setup, learner, above, asked)
        each = [objective.count(batch) for batch in step]
        totals = {name: sum(one[name] for one in each) for name in each[0]}
        for module in objective.extra:
            module.to(device)
        with torch.no_grad(), evaluating(learner.model):
            objective.loss(devices.move(first, device), totals)
        above = (learner,)
    for number, name in enumerate(setup.names if by_characters else ()):
        if not totals[f"{reading_name(number)}.pairs"]:
            raise InputError(
                f"the teacher {name} reads no characters of the first batch as one token where the student does, "
                "and has nothing to say to it: use another teacher, or other texts"
            )


def _try_rollouts(setup: Setup, learner: Learner, above: Sequence[Learner]) -> None:
    """Let a student write, and ask for the loss of that; chance and modes stay as they were."""
    if not above:  # a server is not asked on trial
        return
    name, batches = type(learner.model).__name__, training.rollouts(setup, learner)
    objective = training.make_objective(setup, learner, above, setup.join(learner, above, setup.settings.temperature))
    device = devices.find_device(learner.model)
    batches.new = min(batches.new, _WRITTEN)
    with torch.no_grad(), evaluating(learner.model):
        for batches.share in (0.0, 1.0):  # a text as it is given has the full length, what is written is short
            try:
                batch = batches[0]
            except SecateurError:
                raise
            except Exception as error:  # whatever a model's own code raises
                raise InputError(f"{name} can't write on from a prompt, as on-policy asks: {line(error)}") from error
            try:
                loss, _ = objective.loss(devices.move(batch, device), objective.count(batch))
            except SecateurError:
                raise
            except Exception as error:
                raise InputError(f"what {name} writes can't be scored by its teacher: {line(error)}") from error
            if not torch.isfinite(loss):
                raise InputError(f"what {name} writes can't be scored by its teacher: the loss is {float(loss)}")


def plan(setup: Setup, student: Learner) -> Evidence:
    """What would be trained, and how long that takes, by one step of a copy."""
    settings, above = setup.settings, tuple(setup.teachers)
    if not above:  # a server is not asked: the student's own time
        alone = replace(setup, settings=replace(settings, task=1.0, server="", cache=0, on_policy=0.0))
        one = training.train_student(alone, student.copy(), (), None, "", 1, settings.bits)
    else:
        one = training.train_student(setup, student.copy(), above, None, "", 1, settings.bits)
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    return Evidence(
        recipe="distill",
        target=f"{settings.steps} steps",
        predicted={
            "params": float(sum(p.numel() for p in student.model.parameters())),
            "trained parameters": float(trained),
            "teacher parameters": float(sum(p.numel() for m in above for p in m.model.parameters())),
            ("tokens" if setup.of_texts else "examples"): float(one.tokens * settings.steps),
            "seconds per step": one.seconds,
            "seconds": one.seconds * settings.steps,
            **caches.cache_cost(setup, student, one.tokens * settings.steps),
        },
        settings={"model": type(student.model).__name__, "teachers": list(setup.names)},
        verdict="dry run",
    )
