"""What is measured of a student: its sizes and quality, and how loyal it is to its teachers, together and alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from secateur._utils.rundir import Run
from secateur.errors import DataError, MeasurementError, UnsupportedError
from secateur.measure import loyalty, quality, statistics
from secateur.recover.distillation import losses
from secateur.runs.distilling import caches, together
from secateur.runs.distilling.course import Course, stream
from secateur.runs.distilling.members import of_whole_texts
from secateur.vocabulary import Evidence, Figure

__all__ = ["beforehand", "measured", "to_each", "verdict"]

Row = dict[str, Figure]

_NEARER = (
    "shared_kl", "shared_probability_loyalty", "shared_label_loyalty", "served_label_loyalty", "probability_loyalty",
    "label_loyalty", "rmse", "spearman", "cosine", "accuracy", "perplexity",
)  # fmt: skip
"""What says whether a student came nearer to its teachers, the first that was measured."""
_LESS = ("perplexity", "shared_kl", "rmse")
"""Of these, less is nearer."""
_BATCHES = 24
"""Held-out batches on which aligned teachers are compared."""


def beforehand(course: Course, student: Any, run: Run | None) -> tuple[Row, Row, str]:
    """What is `measured` before training, or by a dry run. Raises `DataError` where the held-out data tells nothing of
    quality: all of training would end without a verdict.
    """
    row, known, why = measured(course, student, run)
    if why and not any(name in row for name in _NEARER) and not _tells(course, student):
        raise DataError(f"quality can't be measured on the held-out data: {why}")
    return row, known, why


def measured(course: Course, student: Any, run: Run | None) -> tuple[Row, Row, str]:
    """Sizes, quality and loyalty of the student, and of its teachers; and why quality could not be measured.

    Without a run, which keeps what a server says, none is asked.
    """
    trade, place = course.trade, course.where
    row = dict(trade.sizes(student, trade.example(student, place)))
    known: Row = {}
    if course.lesson.align:
        try:
            first, _, _ = trade.compared(student, student, course.held, place)
            return {**row, **first, **_apart(course, student)[0]}, known, ""
        except (DataError, MeasurementError) as error:
            return row, known, str(error)
    for one in course.masters:
        for name, figure in trade.sizes(one, trade.example(one, place)).items():
            known[name] = Figure(known[name].value + figure.value, unit=figure.unit) if name in known else figure
    if len(course.masters) > 1:
        known.pop("zeros", None)  # shares do not add up
    try:
        first, second, both = trade.compared(_together(course, student), student, course.held, place)
    except (DataError, MeasurementError, UnsupportedError) as error:
        return row, known, str(error)
    if not course.masters:  # the student was held against itself
        served = {} if run is None else {"served_label_loyalty": _agreed(course, student, run)}
        return {**row, **second, **served}, {}, ""
    return {**row, **second, **both}, {**known, **first}, ""


def _tells(course: Course, student: Any) -> bool:
    """Whether the held-out data tells quality of some models: then it is for those at hand that nothing was measured,
    which training may change, such as a student that says the same of all.
    """
    if course.of_texts and any(one.tokenizer is None for one in course.masters):
        return True
    teacher = course.masters[0] if course.lesson.align else _together(course, student)
    wrong: tuple[tuple[Any, tuple[type[Exception], ...]], ...] = (
        (student, (DataError,)), (teacher, (DataError, MeasurementError))
    )  # fmt: skip
    for one, kinds in wrong:
        try:
            course.trade.compared(one, one, course.held, course.where)
        except kinds:
            return False
        except (MeasurementError, UnsupportedError):
            continue
    return True


def to_each(course: Course, student: Any) -> list[str]:
    """A line on the student's loyalty to each of several teachers, beside that to all of them together."""
    if len(course.masters) < 2:
        return []
    if course.lesson.align:
        each = _apart(course, student)[1]
    else:
        each = [course.trade.compared(one, student, course.held, course.where)[2] for one in course.masters]
    lines = []
    for name, both in zip(course.names, each, strict=True):
        figures = ", ".join(f"{key.replace('_', ' ')} {both[key]}" for key in _NEARER if key in both)
        lines.append(f"to the teacher {name} alone: {figures}")
    return lines


def verdict(row: Evidence) -> str:
    """Whether the student came nearer to its teachers, by the first measure that tells."""
    name = next((name for name in _NEARER if name in row.before and name in row.after), None)
    if name is None:
        return ""
    before, after = row.before[name].value, row.after[name].value
    words = f"{name.replace('_', ' ')} {before:.4g} -> {after:.4g}"
    better = after < before if name in _LESS else after > before
    return f"met: {words}" if better else f"failed: the student is no nearer to its teachers, {words}"


# -------------------------------------------------------------------------------------- teachers that read the same


def _together(course: Course, student: Any) -> Any:
    """The teachers as one subject to be measured."""
    one = course.masters[0] if course.masters else student
    if len(course.masters) < 2:
        return one
    return together.as_one(course.trade, one, course.voices(student, course.masters, 1.0))


def _agreed(course: Course, student: Any, run: Run) -> Figure:
    """Share of tokens of held-out texts at which the student finds likeliest what its server names first."""
    batches, told = caches.heard(course, student, run)
    say, same, counts = course.ask(student), list[float](), list[int]()
    for number, batch in enumerate(batches):
        real = batch["attention_mask"].bool()
        first = torch.full_like(batch["input_ids"], -1)
        first[real] = told[number]["indices"][:, 0]
        same += ((say(batch).prediction.argmax(-1).cpu() == first) & real).sum(1).tolist()
        counts += real.sum(1).tolist()
    return statistics.per_item(same, counts)


# ----------------------------------------------------------------------------------- teachers with their own tokenizers


@torch.no_grad()
def _apart(course: Course, student: Any) -> tuple[Row, list[Row]]:
    """What aligned teachers and the student say of held-out texts: their mean by shares, and each of them alone."""
    lesson = replace(course.lesson, batch=min(course.lesson.batch, len(course.held)))
    items = stream(course.trade, lesson, student, course.held, course.masters)
    batches = items[: min(len(items), _BATCHES)]
    if not of_whole_texts(course.trade, student):
        return _pairs_apart(course, student, batches)
    voices = [course.voices(student, some, 1.0) for some in (course.masters, *([one] for one in course.masters))]
    together, *each = _rows_apart(student, voices, batches)
    return together, each


def _pairs_apart(course: Course, student: Any, batches: Sequence[Any]) -> tuple[Row, list[Row]]:
    """After equal characters, over the tokens that both have: KL in nats for a pair of tokens, which training brings
    down, and label and probability loyalty. A mean of several has an interval for the KL alone.
    """
    others = course.foreign(student)
    values = {name: list[float]() for name in others}
    tallies = {name: loyalty.Tally() for name in others}
    for batch in batches:
        ours = student.forward(batch).prediction
        for name, one in others.items():
            mine, yours = one.beside(ours, batch, name)
            values[name].append(float(losses.kl(mine, yours)) / max(1, len(mine)))
            tallies[name].add_pairs((yours, mine), batch[f"{name}.pairs"][:, 0] // ours.shape[1])
    each = [{"shared_kl": _mean(values[name]), **_loyal(tallies[name])} for name in others]
    weights = [one.weight for one in others.values()]
    mean = {
        key: Figure(sum(w * row[key].value for w, row in zip(weights, each, strict=True)))
        for key in each[0]
        if all(key in row for row in each)
    }
    together = [sum(w * v for w, v in zip(weights, step, strict=True)) for step in zip(*values.values(), strict=True)]
    return (each[0] if len(each) == 1 else {**mean, "shared_kl": _mean(together)}), each


def _rows_apart(student: Any, voices: Sequence[Any], batches: Sequence[Mapping[str, torch.Tensor]]) -> list[Row]:
    """How near the student is to each of `voices`, by the rows that all tell of whole texts, of those with tokens."""
    read = torch.cat([batch["attention_mask"].any(1) for batch in batches])
    ours, found = torch.cat([student.forward(batch).prediction.cpu() for batch in batches])[read], list[Row]()
    for ask in voices:
        theirs = torch.cat([ask(batch).prediction.cpu() for batch in batches])[read]
        if student.output == "embedding":
            found.append(quality.fidelity(theirs, ours))
        elif ours.shape[-1] == 1:
            found.append(loyalty.numbers(*(one.float().flatten().tolist() for one in (ours, theirs))))
        else:
            tally = loyalty.Tally()
            tally.add((theirs, ours), {})
            found.append(tally.figures())
    return found


def _mean(values: Sequence[float]) -> Figure:
    return statistics.mean_interval(values) if len(values) > 1 else Figure(values[0])


def _loyal(tally: loyalty.Tally) -> Row:
    """Loyalty over shared tokens; nothing where no token of the one stands for the characters of another's."""
    try:
        return {f"shared_{name}": figure for name, figure in tally.figures().items()}
    except MeasurementError:
        return {}
