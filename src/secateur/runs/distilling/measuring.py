"""Measurements of a student: size, quality, and agreement with its teachers, together and alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from secateur._utils.batches import Batch
from secateur._utils.outputs import of_labels
from secateur._utils.rundir import Run
from secateur.errors import DataError, MeasurementError, UnsupportedError
from secateur.measure import loyalty, quality, statistics
from secateur.methods.predictions import tells_labels, tells_numbers
from secateur.recover.distillation import losses
from secateur.recover.quantization import packed
from secateur.recover.training import objectives
from secateur.reports.details import Details
from secateur.runs.backends import Row
from secateur.runs.distilling import caches, ensembles
from secateur.runs.distilling.models import Learner, as_transformer, gives_rows
from secateur.runs.distilling.setup import Ask, Setup, make_batches
from secateur.runs.measuring import Reference
from secateur.subjects import Transformer
from secateur.vocabulary import Evidence, Figure

__all__ = ["describe", "loyalty_notes", "measure_before", "measure_student", "verdict", "warn_of_guessing"]

_NEARER = (
    "shared_kl", "shared_probability_loyalty", "shared_label_loyalty", "served_label_loyalty", "probability_loyalty",
    "label_loyalty", "pixel_agreement", "rmse", "spearman", "cosine", "accuracy", "mIoU", "perplexity",
)  # fmt: skip
"""What says whether a student came nearer to its teachers, the first that was measured."""
_LESS = ("perplexity", "shared_kl", "rmse")
"""Of these, less is nearer."""
_BATCHES = 24
"""Held-out batches on which aligned teachers are compared."""


def warn_of_guessing(setup: Setup) -> list[str]:
    """A warning of each teacher that does no better than guessing on held-out data, which is printed, too."""
    warnings = list[str]()
    for number, teacher in enumerate(setup.teachers, 1):
        name = "the teacher" if len(setup.teachers) == 1 else f"teacher {number}"
        warnings += Reference(setup.backend, teacher, setup.environment, setup.held).warn_of_guessing(name)
    return warnings


def measure_before(setup: Setup, student: Learner, run: Run | None) -> tuple[Row, Row, str]:
    """What `measure_student` gives before training, or by a dry run.

    Raises `DataError` where the held-out data tells nothing of quality: training would end without a verdict.
    """
    row, known, why = measure_student(setup, student, run)
    if why and not any(name in row for name in _NEARER) and not _has_quality(setup, student):
        raise DataError(f"quality can't be measured on the held-out data: {why}")
    return row, known, why


def measure_student(setup: Setup, student: Learner, run: Run | None) -> tuple[Row, Row, str]:
    """Sizes, quality and loyalty of the student, and of its teachers; and why quality could not be measured.

    Without a run, which keeps what a server says, none is asked.
    """
    backend, environment = setup.backend, setup.environment
    row = dict(backend.sizes(student, backend.make_example(student, environment)))
    known: Row = {}
    if setup.settings.align:
        try:
            first, _, _ = backend.compare(student, student, setup.held, environment)
            return {**row, **first, **_compare_aligned(setup, student)[0]}, known, ""
        except (DataError, MeasurementError) as error:
            return row, known, str(error)
    for teacher in setup.teachers:
        if packed.is_packed(teacher.model):  # it has fewer weights here than parameters
            continue
        for name, figure in backend.sizes(teacher, backend.make_example(teacher, environment)).items():
            known[name] = Figure(known[name].value + figure.value, unit=figure.unit) if name in known else figure
    if len(setup.teachers) > 1:
        known.pop("zeros", None)  # shares do not add up
    try:
        first, second, both = backend.compare(_join_teachers(setup, student), student, setup.held, environment)
    except (DataError, MeasurementError, UnsupportedError) as error:
        return row, known, str(error)
    if not setup.teachers:  # the student was held against itself
        served = {} if run is None else {"served_label_loyalty": _server_agreement(setup, student, run)}
        return {**row, **second, **served}, {}, ""
    return {**row, **second, **both}, {**known, **first}, ""


def _has_quality(setup: Setup, student: Learner) -> bool:
    """Whether the held-out data tells quality of some models: then it is for those at hand that nothing was measured,
    which training may change, such as a student that says the same of all.
    """
    if setup.of_texts and any(as_transformer(teacher).tokenizer is None for teacher in setup.teachers):
        return True
    teacher = setup.teachers[0] if setup.settings.align else _join_teachers(setup, student)
    wrong: tuple[tuple[Any, tuple[type[Exception], ...]], ...] = (
        (student, (DataError,)), (teacher, (DataError, MeasurementError))
    )  # fmt: skip
    for one, kinds in wrong:
        try:
            setup.backend.compare(one, one, setup.held, setup.environment)
        except kinds:
            return False
        except (MeasurementError, UnsupportedError):
            continue
    return True


def loyalty_notes(setup: Setup, student: Learner) -> list[str]:
    """A line on the student's loyalty to each of several teachers, beside that to all of them together."""
    if len(setup.teachers) < 2:
        return []
    if setup.settings.align:
        each = _compare_aligned(setup, student)[1]
    else:
        each = [setup.backend.compare(one, student, setup.held, setup.environment)[2] for one in setup.teachers]
    lines = []
    for name, both in zip(setup.names, each, strict=True):
        figures = ", ".join(f"{key.replace('_', ' ')} {both[key]}" for key in _NEARER if key in both)
        lines.append(f"to the teacher {name} alone: {figures}")
    return lines


def describe(setup: Setup, student: Learner) -> Details | None:
    """What the report shows beside the figures: classes and samples of a network and its teacher."""
    if setup.of_texts or not setup.teachers:
        return None
    from secateur.runs import showing  # texts do without

    pair = _join_teachers(setup, student), student
    return showing.describe(setup.backend, pair, setup.held, setup.environment.batch, ("teacher", "student"))


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


def _join_teachers(setup: Setup, student: Learner) -> Learner:
    """The teachers as one subject to be measured."""
    one = setup.teachers[0] if setup.teachers else student
    if len(setup.teachers) < 2:
        return one
    return ensembles.joint_subject(one, setup.join(student, setup.teachers, 1.0))


def _server_agreement(setup: Setup, student: Learner, run: Run) -> Figure:
    """Share of tokens of held-out texts at which the student finds likeliest what its server names first."""
    batches, told = caches.ask_held_out(setup, student, run)
    say, same, counts = setup.ask(student), list[float](), list[int]()
    for number, batch in enumerate(batches):
        real = objectives.mask_of(batch)
        first = torch.full_like(batch["input_ids"], -1)
        first[real] = told[number]["indices"][:, 0]
        same += ((say(batch).prediction.argmax(-1).cpu() == first) & real).sum(1).tolist()
        counts += real.sum(1).tolist()
    return statistics.per_item(same, counts)


# ----------------------------------------------------------------------------------- teachers with their own tokenizers


@torch.no_grad()
def _compare_aligned(setup: Setup, student: Learner) -> tuple[Row, list[Row]]:
    """What aligned teachers and the student say of held-out texts: their mean by shares, and each of them alone."""
    settings = replace(setup.settings, batch=min(setup.settings.batch, len(setup.held)))
    items = make_batches(settings, student, setup.held, setup.teachers)
    batches = items[: min(len(items), _BATCHES)]
    if not gives_rows(student):
        return _compare_tokens(setup, as_transformer(student), batches)
    answers = [setup.join(student, some, 1.0) for some in (setup.teachers, *([one] for one in setup.teachers))]
    together, *each = _compare_rows(as_transformer(student), answers, batches)
    return together, each


def _compare_tokens(setup: Setup, student: Transformer, batches: Sequence[Batch]) -> tuple[Row, list[Row]]:
    """After equal characters, over the tokens that both have: KL in nats for a pair of tokens, which training brings
    down, and label and probability loyalty. A mean of several has an interval for the KL alone.
    """
    others = setup.foreign(student)
    values = {name: list[float]() for name in others}
    tallies = {name: loyalty.Tally() for name in others}
    for batch in batches:
        ours = student.forward(batch).prediction
        for name, one in others.items():
            mine, yours = one.paired_logits(ours, batch, name)
            values[name].append(float(losses.kl(mine, yours)) / max(1, len(mine)))
            tallies[name].add_pairs((yours, mine), batch[f"{name}.pairs"][:, 0] // ours.shape[1])
    each = [{"shared_kl": _mean(values[name]), **_shared_loyalty(tallies[name])} for name in others]
    weights = [one.weight for one in others.values()]
    mean = {
        key: Figure(sum(w * row[key].value for w, row in zip(weights, each, strict=True)))
        for key in each[0]
        if all(key in row for row in each)
    }
    together = [sum(w * v for w, v in zip(weights, step, strict=True)) for step in zip(*values.values(), strict=True)]
    return (each[0] if len(each) == 1 else {**mean, "shared_kl": _mean(together)}), each


def _compare_rows(
    student: Transformer, answers: Sequence[Ask], batches: Sequence[Mapping[str, torch.Tensor]]
) -> list[Row]:
    """How near the student is to each of `answers`, by the rows that all tell of whole texts, of those with tokens."""
    read = torch.cat([batch["attention_mask"].any(1) for batch in batches])
    ours, found = torch.cat([student.forward(batch).prediction.cpu() for batch in batches])[read], list[Row]()
    for ask in answers:
        theirs = torch.cat([ask(batch).prediction.cpu() for batch in batches])[read]
        if student.output == "embedding":
            found.append(quality.fidelity(theirs, ours))
        elif tells_numbers(student):
            found.append(loyalty.numbers(ours.float().numpy(), theirs.float().numpy()))
        else:
            tally = loyalty.Tally()
            pair = theirs, ours
            tally.add([of_labels(one) for one in pair] if tells_labels(student) else pair, {})
            found.append(tally.figures())
    return found


def _mean(values: Sequence[float]) -> Figure:
    return statistics.mean_interval(values) if len(values) > 1 else Figure(values[0])


def _shared_loyalty(tally: loyalty.Tally) -> Row:
    """Loyalty over shared tokens; nothing where no token of the one stands for the characters of another's."""
    try:
        return {f"shared_{name}": figure for name, figure in tally.figures().items()}
    except MeasurementError:
        return {}
