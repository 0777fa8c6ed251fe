"""What teachers say, asked once and kept on disk: the likeliest tokens, all of it, or what a server tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur._utils.rundir import Run, lock_folder
from secateur.clients.chat import Server
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.methods.served_teacher import cache_served
from secateur.recover.distillation import ensembles, teachers
from secateur.runs.backends import language
from secateur.runs.distilling.course import Course, Said, predicted

__all__ = ["cost", "heard", "told"]

_ASKED_AT_ONCE = 4
"""Batches of training that a teacher reads at a time where nothing is trained meanwhile."""
_HEARD = 64
"""Held-out sequences of which a server is asked what it would say."""


def told(course: Course, student: Any, above: Sequence[Any], run: Run) -> tuple[Any, Any]:
    """The batches with what their teachers say, which are asked for what is not kept; and the teachers as one, where
    the batches bring along all that they say."""
    if course.lesson.server:
        key = _key(course)
        found = _served(course, student, run, "predictions", course.stream, course.lesson.count, key)
        return teachers.Joined(course.stream, found), None
    if course.lesson.cache != "all":
        return _remembered(course, student, above, run), None
    causal = getattr(student, "causal", False)
    each = [partial(_recalled, _said(number), causal) for number in range(len(above))]
    return _in_full(course, student, above, run), course.voices(student, above, course.lesson.temperature, each)


def heard(course: Course, student: Any, run: Run) -> tuple[list[dict[str, Tensor]], teachers.TopK]:
    """Batches of held-out texts, and what a server says of them."""
    batches = _held(course, student)
    key = {"data": course.held.digest, "batches": f"{len(batches)}, {course.lesson.length} tokens"}
    return batches, _served(course, student, run, "predictions-held", batches, len(batches), key)


def cost(course: Course, student: Any, tokens: int) -> dict[str, float]:
    """Bytes that a cache would take, of so many tokens in all, and how often a server would be asked."""
    lesson = course.lesson
    if lesson.server:
        at = Path(course.cache_at)
        train, held = (
            teachers.filled(at / name) if course.cache_at else 0 for name in ("predictions", "predictions-held")
        )
        left = [
            lesson.batch * max(0, lesson.count - train),
            sum(len(batch["input_ids"]) for batch in _held(course, student)[held:]),
        ]
        calls = sum(1 + some for some in left if some)  # 1: what is asked to tell the tokenizer
        return {"server calls": float(calls), "cache bytes": float(tokens * (6 * lesson.listed + 4))}
    if lesson.tokens:
        return {"cache bytes": float(tokens * len(course.masters) * (6 * lesson.tokens + 4))}
    if not lesson.cache:
        return {}
    said = [course.ask(one)(course.stream[0]).prediction for one in course.masters]
    each = (len(course.train) * one.shape[-1] if one.dim() == 2 else lesson.count * one.numel() for one in said)
    return {"cache bytes": 2.0 * sum(each)}


# --------------------------------------------------------------------------------------------------- where it is kept


@contextmanager
def _kept_in(course: Course, run: Run, name: str) -> Iterator[Path]:
    """Where what a teacher says is kept: for this run, or in a folder for several, which one at a time may fill.

    A cache of something else there is an `InputError`: it is no part of the run, which may begin with another.
    """
    if not course.cache_at:
        yield run.folder(name)
        return
    folder = Path(course.cache_at) / name
    with lock_folder(folder):
        try:
            yield folder
        except DataError as error:
            raise InputError(str(error)) from error


def _key(course: Course) -> dict[str, Any]:
    """What a cache depends on beside its teacher: data and batches."""
    lesson = course.lesson
    return {"data": course.train.digest, "batches": f"{lesson.batch} x {lesson.length}, seed {lesson.seed + 1}"}


# ------------------------------------------------------------------------------------------------------ a server's


def _served(
    course: Course, student: Any, run: Run, name: str, batches: Any, count: int, key: Mapping[str, Any]
) -> teachers.TopK:
    """What the server finds likeliest in `count` batches."""
    server, k = Server(course.lesson.server, course.names[0]), course.lesson.listed
    with _kept_in(course, run, name) as folder:
        return cache_served(folder, server, student.tokenizer, batches, count, key=key, k=k)


def _held(course: Course, student: Any) -> list[dict[str, Tensor]]:
    """Batches of held-out texts of which a server is asked."""
    found = language.held_batches(course.held, student.tokenizer, packed=True, length=course.lesson.length)
    return found[: max(1, _HEARD // len(found[0]["input_ids"]))]


# ------------------------------------------------------------------------------------------------- likeliest tokens


def _remembered(course: Course, student: Any, above: Sequence[Any], run: Run) -> teachers.Joined:
    """The batches with the likeliest tokens of their teachers, which are asked once."""
    lesson, kept, key = course.lesson, [], _key(course)
    for number, one in enumerate(above):
        own = {"teacher": teachers.fingerprint(one.model), "tokenizer": teachers.fingerprint(student.tokenizer)}
        with _kept_in(course, run, f"predictions-{number}") as folder:
            kept.append(teachers.cache_topk(
                folder, partial(predicted, course.ask(one)), course.stream, lesson.count, key={**key, **own},
                k=lesson.tokens, drawn=lesson.tokens - 1, temperature=lesson.temperature,
                vocabulary=teachers.check_tokens(student, one),
            ))  # fmt: skip
    return teachers.Joined(course.stream, ensembles.Blended(kept, lesson.shares or None))


# ----------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class _Ordered:
    """All examples once, in their order, `size` at a time: `ordered[i]` is a batch."""

    data: Any
    size: int
    read: Callable[[Any], Mapping[str, Any]]

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.read(self.data.take(range(index * self.size, min((index + 1) * self.size, len(self.data)))))


def _in_full(course: Course, student: Any, above: Sequence[Any], run: Run) -> Any:
    """The batches with all that each of their teachers says, which is asked once: see `_recalled`.

    What is one row for each example, whatever stands beside it in its batch, is kept once for each.
    """
    lesson, batches, key = course.lesson, course.stream, _key(course)
    if course.of_texts:
        key["tokenizer"] = teachers.fingerprint(student.tokenizer)
    ordered = _Ordered(course.train, _ASKED_AT_ONCE * lesson.batch, _whole(course, student))
    for number, one in enumerate(above):
        ask = partial(predicted, course.ask(one))
        name, own = _said(number), {**key, "teacher": teachers.fingerprint(one.model)}
        with _kept_in(course, run, f"predictions-{number}") as folder:
            if ask(course.stream[0]).dim() == 2:
                own |= {"batches": f"in order, {ordered.size} x {lesson.length if course.of_texts else 1}"}
                rows = course.stream.rows if course.of_texts else course.stream.places
                batches = teachers.Told(batches, rows, {name: teachers.cache_rows(folder, ask, ordered, key=own)})
                continue
            known = teachers.Outputs(partial(_named, name, ask), course.stream, folder=folder, half=True, key=own)
            known.fill(lesson.count)
            batches = teachers.Joined(batches, known, prefix="")
    return batches


def _whole(course: Course, student: Any) -> Callable[[Any], Mapping[str, Any]]:
    """How a part of the data becomes one batch."""
    if not course.of_texts:
        return Examples.batch
    length = course.lesson.length
    return lambda part: next(texts.in_order(part, student.tokenizer, batch=len(part), length=length))


def _said(number: int) -> str:
    """What is called in the batches what a teacher has said."""
    return f"said{number}"


def _named(name: str, ask: Callable[[Any], Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: ask(batch)}


def _recalled(name: str, causal: bool, batch: Mapping[str, Any], *, hidden: bool = False) -> Said:
    """A teacher whose answer the batch brings along, under `name`."""
    return Said(batch[name], causal=causal)
