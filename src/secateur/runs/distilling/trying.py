"""What is tried before anything is measured or written: whether there is a loss, and how long a step of it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device

from secateur._utils.modes import evaluating
from secateur._utils.plugins import line
from secateur.errors import InputError, SecateurError
from secateur.runs.backends import language
from secateur.runs.distilling import caches, training
from secateur.runs.distilling.course import Course, aside
from secateur.vocabulary import Evidence

__all__ = ["check_number", "planned", "tried"]

_WRITTEN = 4
"""Tokens that a student is let write on trial."""


def check_number(course: Course, pupil: Any) -> None:
    """Refuse options about classes where the student tells one number."""
    lesson = course.lesson
    if course.of_texts:
        one = language.tells_number(pupil)
    else:
        one = course.ask(pupil)(course.stream[0]).prediction.shape[-1] == 1
    wrong = {
        f"direction {lesson.direction} compares classes, and the student tells one number: use --direction mse":
            lesson.direction != "mse",
        "task is cross-entropy of classes, and the student tells one number: leave task out": lesson.task,
        "teachers are averaged or chosen by their classes, and these tell one number each: name one teacher":
            len(course.names) > 1,
    }  # fmt: skip
    for words, holds in wrong.items():
        if one and holds:
            raise InputError(words)


def tried(course: Course, pupil: Any, between: Sequence[Any]) -> None:
    """Ask for the loss of the first batch once, in each link of the chain, so that what can't be compared is refused
    before anything is measured or written.

    Of a student that writes itself, a batch as it is given, and one that it writes on from prompts by a few tokens.
    Raises `InputError` and `DataError`.
    """
    lesson, above = course.lesson, tuple(course.masters)
    if lesson.on_policy:
        for learner in (*between, pupil):
            _written(course, learner, above)
            above = (learner,)
        return
    by_characters = course.by_characters(pupil)
    step = [course.stream[index] for index in range(max(1, lesson.accumulated))]
    first = {**step[0], **({"done": 0.0} if lesson.warm_up else {})}
    for learner in (*between, pupil):
        device = next(learner.model.parameters()).device
        asked = course.voices(learner, above, lesson.temperature) if above and not by_characters else None
        goal = training.goal(course, learner, above, asked)
        each = [goal.count(batch) for batch in step]
        totals = {name: sum(one[name] for one in each) for name in each[0]}
        for module in goal.extra:
            module.to(device)
        with torch.no_grad(), evaluating(learner.model):
            goal.objective(send_to_device(first, device), totals)
        above = (learner,)
    for number, name in enumerate(course.names if by_characters else ()):
        if not totals[f"{aside(number)}.pairs"]:
            raise InputError(
                f"the teacher {name} reads no characters of the first batch as one token where the student does, "
                "and has nothing to say to it: use another teacher, or other texts"
            )


def _written(course: Course, learner: Any, above: Sequence[Any]) -> None:
    """Let a student write, and ask for the loss of that; chance and modes stay as they were."""
    name, batches = type(learner.model).__name__, training.rollouts(course, learner)
    goal = training.goal(course, learner, above, course.voices(learner, above, course.lesson.temperature))
    device = next(learner.model.parameters()).device
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
                loss, _ = goal.objective(send_to_device(batch, device), goal.count(batch))
            except SecateurError:
                raise
            except Exception as error:
                raise InputError(f"what {name} writes can't be scored by its teacher: {line(error)}") from error
            if not torch.isfinite(loss):
                raise InputError(f"what {name} writes can't be scored by its teacher: the loss is {float(loss)}")


def planned(course: Course, student: Any) -> Evidence:
    """What would be trained, and how long that takes, by one step of a copy."""
    lesson, above = course.lesson, tuple(course.masters)
    if not above:  # a server is not asked: the student's own time
        alone = replace(course, lesson=replace(lesson, task=1.0, server="", cache=0))
        one = training.teach(alone, student.copy(), (), None, "", 1, lesson.bits)
    else:
        one = training.teach(course, student.copy(), above, None, "", 1, lesson.bits)
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    return Evidence(
        recipe="distill",
        target=f"{lesson.steps} steps",
        predicted={
            "params": float(sum(p.numel() for p in student.model.parameters())),
            "trained parameters": float(trained),
            "teacher parameters": float(sum(p.numel() for m in above for p in m.model.parameters())),
            ("tokens" if course.of_texts else "examples"): float(one.tokens * lesson.steps),
            "seconds per step": one.seconds,
            "seconds": one.seconds * lesson.steps,
            **caches.cost(course, student, one.tokens * lesson.steps),
        },
        settings={"model": type(student.model).__name__, "teachers": list(course.names)},
        verdict="dry run",
    )
