"""How each link of the chain is trained: towards what, on which batches, and by which answers of its teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils.rundir import Run
from secateur.measure import size
from secateur.recover.distillation import alignment, matching, policy, taps
from secateur.recover.quantization import quantise
from secateur.recover.sparsity import masks, slimming
from secateur.recover.training import loop, objectives
from secateur.runs.distilling import caches
from secateur.runs.distilling.course import Course
from secateur.runs.distilling.lessons import BETA
from secateur.subjects import matrices
from secateur.vocabulary import Recovery

__all__ = ["Goal", "goal", "rollouts", "teach"]


@dataclass(frozen=True)
class Goal:
    """What a student is trained towards, what counts its batches, and what is trained along with it."""

    objective: Any
    count: Any
    extra: Sequence[nn.Module] = ()


def teach(
    course: Course, student: Any, above: Sequence[Any], run: Run | None, name: str, steps: int = 0, bits: int = 0
) -> Recovery:
    """Train `student` in place. Without a run, which a cache and a checkpoint need, by live teachers.

    With `bits` it answers with weights of so many meanwhile, and its zeros stay.
    """
    with _rounded(student, bits):
        return _taught(course, student, above, run, name, steps)


@contextmanager
def _rounded(student: Any, bits: int) -> Iterator[None]:
    if not bits:
        yield
        return
    found = matrices.masks_of(matrices.matrices(student.model, student.layers()))
    quantise.prepare(student.model, bits, within=student.layers())
    try:
        with masks.hold(student.model, {name: mask for name, mask in found.items() if not bool(mask.all())}):
            yield
    finally:
        quantise.finish(student.model)


def _taught(course: Course, student: Any, above: Sequence[Any], run: Run | None, name: str, steps: int) -> Recovery:
    lesson, batches = course.lesson, course.stream
    asked: Any = None
    torch.manual_seed(lesson.seed)
    # An assistant is asked live: it has just learned, and is no large model behind a server.
    kept = run is not None and (lesson.server or lesson.cache) and all(one in course.masters for one in above)
    if run is not None and kept:
        batches, asked = caches.told(course, student, above, run)
    elif above and not course.by_characters(student):
        asked = course.voices(student, above, lesson.temperature)
    if lesson.on_policy:
        batches = rollouts(course, student)
    found = goal(course, student, above, asked, live=not kept)
    if lesson.warm_up:
        batches = slimming.Numbered(batches, lesson.count)
    return loop.train(
        student.model, batches, found.objective, steps=steps or lesson.steps, lr=lesson.lr, seed=lesson.seed,
        dropout=False, count=found.count, extra=found.extra, frozen=[] if kept else [one.model for one in above],
        checkpoint=None if run is None else run.folder(name), title=name,
        flops_per_token=_flops(course, student, above), **lesson.training,
    )  # fmt: skip


def goal(course: Course, student: Any, above: Sequence[Any], asked: Any, *, live: bool = True) -> Goal:
    """Towards its teachers, `asked` as one; those that are aligned by characters are asked each for itself."""
    lesson = course.lesson
    if lesson.on_policy:
        return Goal(policy.objective(
            student.forward, asked, beta=BETA[lesson.direction], temperature=lesson.temperature,
            fused=not lesson.choice,
        ), policy.count)  # fmt: skip
    if course.by_characters(student):
        others = course.foreign(student)
        objective = alignment.objective(student.forward, others, task=lesson.task, temperature=lesson.temperature)
        return Goal(objective, alignment.counted(list(others)))
    pairs = objectives.matched(len(student.layers()), len(above[0].layers())) if lesson.hidden and above else []
    projection = _projection(course, student, above, pairs)
    objective = objectives.distil(
        course.forward(student), asked, output=course.output(student), task=lesson.task,
        temperature=lesson.temperature, direction=lesson.direction, hidden=pairs, projection=projection,
        fused=course.of_texts and not lesson.choice and (live or asked is None), skew=lesson.skew,
        buckets=lesson.buckets, warmup=lesson.ramps,
    )  # fmt: skip
    extra = [] if projection is None else [projection]
    if lesson.match and above:
        objective, adapters = _matched(course, objective, student, above[0])
        extra.append(adapters)
    return Goal(objective, course.count, extra)


def rollouts(course: Course, student: Any) -> policy.Rollouts:
    """The batches of the course, of which the student writes a share."""
    lesson = course.lesson
    return policy.Rollouts(
        student.model, course.stream, share=lesson.on_policy, prompt=lesson.prompt, new=lesson.length - lesson.prompt,
        end=student.tokenizer.eos_token_id, pad=student.tokenizer.pad_token_id, seed=lesson.seed,
    )  # fmt: skip


def _projection(
    course: Course, student: Any, above: Sequence[Any], pairs: Sequence[tuple[int, int]]
) -> nn.Module | None:
    """One map from the student's width to its teacher's, where widths differ and are compared."""
    if not above or not (pairs or course.output(student) != "logits"):
        return None
    first = {name: tensor[:1] for name, tensor in course.stream[0].items()}
    with torch.no_grad():
        ours, theirs = (
            ask(first, hidden=True).hidden[-1] if pairs else ask(first).prediction
            for ask in (student.forward, course.forward(above[0]))
        )
    widths = ours.shape[-1], theirs.shape[-1]
    return None if widths[0] == widths[1] else nn.Linear(*widths, bias=False)


def _matched(course: Course, objective: Any, student: Any, teacher: Any) -> tuple[Any, nn.Module]:
    """The objective with the features of the modules that are to match."""
    lesson = course.lesson
    first = {name: part[:4] for name, part in course.stream[0].items() if isinstance(part, Tensor)}
    pairs = []
    for pattern in lesson.match:
        ours, _, theirs = pattern.partition("=")
        index = lesson.match_index if lesson.match_index and "{i}" in ours else None  # others stand beside it
        found = taps.pairs(student.model, teacher.model, ours, other=theirs, index=index)
        pairs += [(student.model, teacher.model, *one) for one in found]
    return matching.add_matching(
        objective, pairs, lambda: [course.forward(one)(first) for one in (student, teacher)],
        kind=lesson.match_loss, weights=lesson.match_weight, warmup=lesson.ramps.get("match", 0.0),
        balanced=lesson.match_balance,
    )  # fmt: skip


def _flops(course: Course, student: Any, above: Sequence[Any]) -> float:
    """Of training, per token, where that is known."""
    if not course.of_texts:
        return 0.0
    length = course.lesson.length
    live = 0.0 if course.lesson.cache else sum(one.flops_per_token(length) for one in above)
    return size.training_flops(student.flops_per_token(length), live)
