"""Evidence: a result measured beside its original, in sizes, time, memory and quality; and `secateur measure`."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.allocator import keep_memory
from secateur._utils.modes import evaluating, keep_modes
from secateur._utils.noting import list_notes
from secateur._utils.rundir import say_what_takes_long
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, MeasurementError, UnsupportedError
from secateur.measure import latency, memory, sparsity
from secateur.measure.environment import describe as describe_machine
from secateur.reports import display, evidence
from secateur.reports.details import Details
from secateur.runs import backends, keywords, places, splits
from secateur.runs.backends import AnyBackend, Data, Row, Source
from secateur.subjects.network.opening import is_saved
from secateur.subjects.network.pretrained import is_pretrained
from secateur.vocabulary import Budget, Evidence, Figure, Pattern, Result, Subject, html_table

__all__ = ["CLOCK", "TOLERANCE", "Figures", "Reference", "check_judges", "choose_judges", "measure", "with_threads"]

TOLERANCE = 0.07
"""How far below the asked-for speedup a measured one may lie and still count as met."""

CLOCK: dict[str, Any] = {"lasting": 5.0, "enough": 200}
"""How long results are timed beside the original, as `latency.compare` takes it."""

_JUDGED = 3
"""How many times as long where a time was asked for, and the verdict hangs on it."""

_FEWEST: dict[str, float] = {"pairs": 6, "warmup": 1}
"""How often two models are timed that are too slow for more in the time there is."""

_SHOWN = 3
"""Names of matrices in a note."""

_FEW = 256
"""Held-out examples by which a run is warned of an original that only guesses."""


@contextmanager
def with_threads(environment: latency.Environment) -> Iterator[None]:
    """Within the block torch has the threads of the environment."""
    before = torch.get_num_threads()
    torch.set_num_threads(environment.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _evaluating(*subjects: object) -> AbstractContextManager[None]:
    """Have the models of subjects in evaluation mode, without dropout: one in memory may come from its training."""
    models = [getattr(subject, "model", None) for subject in subjects]
    heads = [module for subject in subjects for module in getattr(subject, "head", ())]
    return evaluating(*(model for model in [*models, *heads] if isinstance(model, nn.Module)))


def check_judges(row: Evidence, held_out: Data | None, digests: Mapping[str, str] | None = None) -> None:
    """Refuse held-out data on which the run's result was not measured.

    digests: of what an arm beside it would be given, as `splits.Parts` has them; None where it is not read yet.
    """
    digest = row.settings.get("held_out_sha256")
    if (digest is None) == (held_out is None) and (digests is None or digests.get("held_out_sha256") == digest):
        return
    part, named = "a part of the data: leave held_out out", f"{row.settings.get('held_out')}: give that as held_out"
    raise InputError(f"the result {row.target} was measured on {part if digest is None else named}")


def choose_judges(row: Evidence, backend: AnyBackend, data: Data, held_out: Data | None) -> Data | None:
    """What an arm beside the run's result is measured on: `held_out`, or what stands beside the data, if the run was.

    Raises `InputError` as `check_judges`.
    """
    beside = splits.find_held_out(backend, data) if held_out is None else None
    if beside is not None and _name_data(backend, beside, row) != row.settings.get("held_out"):
        beside = None
    chosen = held_out if beside is None else beside
    check_judges(row, chosen)
    return chosen


def _name_data(backend: AnyBackend, data: Data, row: Evidence) -> str:
    """What the run of `row` would have on record of `data`, which is read where it is in memory."""
    read = {name: row.settings[name] for name in ("text", "label") if name in row.settings}
    found = None if isinstance(data, str | Path) else splits.read(backend, data, **read)[0]
    return str(data) if found is None else str(splits.names_of(data=(data, found))["data"])


@dataclass(frozen=True)
class Reference:
    """An original, and where and on what its results are measured beside it: quality only if `held_out` is given."""

    backend: AnyBackend
    original: Any
    environment: latency.Environment
    held_out: Any = None
    pairs: int | None = None
    """Pairs of runs that are timed in turns, up to eight times as many on a noisy clock; those of `CLOCK` if None."""
    coarse: bool = False
    """Whether a tenth up or down will do, as for a first look: on a busy machine this says how many pairs it takes."""
    within: float | None = None
    """Seconds that timing may take, as for a forecast: slow models are timed less often, or not. No limit if None."""

    def compare(self, student: Subject, longer: int = 1) -> tuple[Row, Row, Row, list[str]]:
        """(before, after, what the two give together, notes on what can't be measured)."""
        with _evaluating(self.original, student):
            return self._compare(student, longer)

    def _compare(self, student: Subject, longer: int) -> tuple[Row, Row, Row, list[str]]:
        backend, environment, notes = self.backend, self.environment, list[str]()
        example = backend.make_example(self.original, environment)
        before, after = backend.sizes(self.original, example), backend.sizes(student, example)
        notes += _note_unmeasured(backend, self.original, student)
        measured: Row = {}
        original, student = (backend.place(subject, environment) for subject in (self.original, student))
        with environment.active():
            try:
                first, second = (backend.make_run(subject, environment) for subject in (original, student))
                clock = {**CLOCK, "lasting": longer * CLOCK["lasting"], "enough": longer * CLOCK["enough"]}
                clock |= {} if self.pairs is None else {"pairs": self.pairs, "lasting": 0.0}
                clock |= {"resolution": max(0.1, CLOCK.get("resolution", 0.0))} if self.coarse else {}
                with say_what_takes_long("time beside the original"):
                    clock |= {} if self.within is None else self._limit_clock(first, clock, self.within)
                    times = latency.compare(first, second, device=environment.device, **clock)
                measured["speedup"] = times.speedup
                before |= _times(times.before, environment)
                after |= _times(times.after, environment)
            except MeasurementError as error:
                notes.append(f"time: {error}")
            by_torch = replace(environment, timer="eager")  # which tells of all memory
            with suppress(MeasurementError):
                for row, subject in ((before, original), (after, student)):
                    row["peak_memory"] = _peak_memory(backend.make_run(subject, by_torch), environment)
        if self.held_out is not None:
            try:
                ours, theirs, both = backend.compare(original, student, self.held_out, environment)
                before, after, measured = {**before, **ours}, {**after, **theirs}, {**measured, **both}
                notes += splits.box_size_notes(self.held_out, ours) + self._missing_classes(ours)
            except (DataError, MeasurementError) as error:
                notes.append(f"quality: {error}")
        return before, after, measured, notes

    def _limit_clock(self, run: Callable[[], object], clock: Mapping[str, float], within: float) -> dict[str, float]:
        """What changes of the clock so that timing takes `within` seconds, where both models are as slow as `run`.

        Raises `MeasurementError` where even the fewest passes would take longer.
        """
        device = self.environment.device
        with keep_memory():
            seconds = _time_pass(run, device)
            if seconds < within:  # the first pass may have set things up
                seconds = min(seconds, _time_pass(run, device))
        for fewer in ({}, _FEWEST):
            often = {"pairs": 20, "warmup": 5, **clock, **fewer}
            left = within - 2 * seconds * often["warmup"]
            if 2 * seconds * often["pairs"] <= left:
                return {**fewer, "limit": left}
        raise MeasurementError(
            f"not measured: one pass of the original takes {seconds:.2g} s ({self.environment}), so that the clock "
            f"needs more than {within:.0f} s: give a smaller batch, or leave it to a run that is no dry run"
        )

    def _missing_classes(self, figures: Row) -> list[str]:
        return splits.missing_classes_note(self.held_out, figures, self.backend.class_names(self.original))

    def describe(self, student: Subject) -> Details | None:
        """What the report shows beside the figures: classes and samples of networks; None where there is nothing."""
        if not isinstance(self.held_out, Examples):
            return None
        from secateur.runs import showing  # texts do without

        original, student = (self.backend.place(each, self.environment) for each in (self.original, student))
        with self.environment.active():
            return showing.describe(self.backend, (original, student), self.held_out, self.environment.batch)

    def evidence(self, result: Result, settings: Mapping[str, object], budgets: Sequence[Budget]) -> Evidence:
        """Everything that is measured of a result, and its verdict."""
        budget = next((budget for budget in budgets if str(budget) == result.name), budgets[0])
        before, after, measured, notes = self.compare(result.subject, _JUDGED if "latency" in budget else 1)
        notes += self._measure_judged(result, before, after)
        if budget.pattern is not None:
            measured["off_pattern"], more = _off_pattern(
                self.backend.matrices(result.subject),
                budget.pattern,
                every=not self.backend.dense_allowed,
                masked=getattr(result.subject, "masks", {}),
                each=result.patterns,
                stays=self.backend.find_protected(result.subject, settings),
            )
            notes += more
        notes += _zeros_notes(before, after, measured)
        stages, more = self._others(result.stages)
        notes += more
        rivals, more = self._others(result.beside)
        ours = {**after, **measured}
        notes += [*more, *filter(None, (_quality_note(name, ours, row) for name, row in rivals.items()))]
        predicted = dict(result.predicted)
        if "latency" in predicted and "latency" in before:
            predicted |= _at_this_pace(predicted, before["latency"].value)
        row = Evidence(
            recipe=str(settings["recipe"]),
            target=str(budget),
            predicted=predicted,
            measured=measured,
            before=before,
            after=after,
            baselines=rivals,
            stages=stages,
            cut=replace(
                result.cut, notes=tuple(dict.fromkeys([*result.cut.notes, *result.notes, *list_notes(), *notes]))
            ),
            recovery=result.recovery,
            environment={**describe_machine(), "measured_at": str(self.environment)},
            settings={**settings, **({"chance": chance} if (chance := self.chance(after)) else {})},
        )
        verdict = evidence.judge(row, tolerance=TOLERANCE)
        return replace(row, verdict=verdict or "missed: could not be measured, see the notes")

    def chance(self, figures: Collection[str]) -> dict[str, float]:
        """What guessing reaches in the figures that were measured."""
        known = {} if self.held_out is None else self.backend.chance(self.original, self.held_out)
        return {name: value for name, value in known.items() if name in figures}

    def warn_of_guessing(self, original: str = "the original") -> list[str]:
        """That the original does no better than guessing, on a few of the held-out examples; [] where it does.

        original: what it is called. The first process prints that, too; what can't be measured is not told here.
        """
        warning = ""
        with suppress(DataError, MeasurementError, UnsupportedError):
            warning = self._describe_guessing(original)
        if warning and distributed.index() == 0:
            print(f"warning: {warning}", file=sys.stderr)
        return [warning] if warning else []

    def _describe_guessing(self, original: str) -> str:
        chance = {} if self.held_out is None else self.backend.chance(self.original, self.held_out)
        if not chance:
            return ""
        few = self.held_out.take(range(min(len(self.held_out), _FEW)))
        figures = self._quality(self.original, few)[0]
        for name, guess in chance.items():
            if name in figures and figures[name].value <= guess + 0.02:
                return (
                    f"{original} has {display.measure(name).label.lower()} {figures[name].value:.3g} on "
                    f"{len(few)} held-out examples, no better than guessing ({guess:.3g}): check its weights, its "
                    "preprocessing and the order of its classes before what it teaches is trusted"
                )
        return ""

    def _quality(self, student: Subject, data: Data) -> tuple[Row, Row, Row]:
        """As `Backend.compare`, on the device of the environment."""
        original, student = (self.backend.place(each, self.environment) for each in (self.original, student))
        with _evaluating(original, student), self.environment.active():
            return self.backend.compare(original, student, data, self.environment)

    def _measure_judged(self, result: Result, before: Row, after: Row) -> list[str]:
        """Add the quality of both on what else the recipe wants them judged by; notes on what can't be measured."""
        notes = list[str]()
        for name, corpus in result.judged.items() if self.held_out is not None else ():
            try:
                first, second, _ = self._quality(result.subject, self.backend.fit_data(corpus, self.original))
            except (DataError, MeasurementError) as error:
                notes.append(f"quality on {name} data: {error}")
                continue
            before |= {f"{name}/{measure}": figure for measure, figure in first.items()}
            after |= {f"{name}/{measure}": figure for measure, figure in second.items()}
        return notes

    def _others(self, subjects: Mapping[str, Subject]) -> tuple[dict[str, Row], list[str]]:
        """(name -> figures, notes) of what a recipe made beside its result, or on the way to it: all but time."""
        rows, notes = dict[str, Row](), list[str]()
        for name, subject in subjects.items():
            rows[name] = self.backend.sizes(subject, self.backend.make_example(self.original, self.environment))
            if self.held_out is None:
                continue
            try:
                _, after, both = self._quality(subject, self.held_out)
                rows[name] |= {**after, **both}
            except (DataError, MeasurementError) as error:
                notes.append(f"quality of {name}: {error}")
        return rows, notes


def _note_unmeasured(backend: AnyBackend, *subjects: object) -> list[str]:
    """Which figures are missing of any of the subjects and why, a line for each reason."""
    reasons = dict[str, str]()
    for subject in subjects:
        reasons = {**backend.find_unmeasured(subject), **reasons}
    notes = []
    for why in dict.fromkeys(reasons.values()):
        labels = [display.measure(measure).label for measure, reason in reasons.items() if reason == why]
        notes.append(f"{', '.join(labels)}: not measured: {why}")
    return notes


def _at_this_pace(predicted: Mapping[str, float], now: float) -> dict[str, float]:
    """What was predicted of time, where the original takes `now` seconds.

    A table was timed when the machine had another pace: what it tells for sure is a share of the original's time.
    """
    if "speedup" in predicted:
        return {"latency": now / predicted["speedup"]}
    return {"speedup": now / predicted["latency"]}


def _times(seconds: Figure, environment: latency.Environment) -> Row:
    """The time of one call, and of decoding what a generation hears of it: tokens per second of the whole batch."""
    row: Row = {"latency": seconds}
    if environment.phase == "decode":
        slowest, fastest = (None if end is None else environment.batch / end for end in (seconds.high, seconds.low))
        row["tokens_per_second"] = replace(
            seconds, value=environment.batch / seconds.value, low=slowest, high=fastest, unit=""
        )
    return row


def _time_pass(run: Callable[[], object], device: str) -> float:
    """Seconds of one call, for a rough guess."""
    start = time.perf_counter()
    with torch.no_grad():
        run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_memory(forward: Any, environment: latency.Environment) -> Figure:
    return memory.measure_allocation(torch.no_grad()(forward), device=environment.device)


def _quality_note(name: str, ours: Row, theirs: Row) -> str:
    """A rival's quality beside the result's, in the first measure that both have; nothing where there is none."""
    both = (one for one in display.order(theirs) if display.measure(one).role == "quality" and one in ours)
    measure = next(both, None)
    if measure is None:
        return ""
    label = display.measure(measure).label
    return f"{name}: {label} {display.text(measure, theirs[measure])} beside {display.text(measure, ours[measure])}"


def _off_pattern(
    matrices: Mapping[str, Tensor],
    pattern: Pattern,
    every: bool,
    masked: Collection[str] = (),
    each: Mapping[str, Pattern] | None = None,
    stays: Collection[str] = (),
) -> tuple[Figure, list[str]]:
    """How many runs of weights of the result break the pattern, and the first matrix that does.

    A matrix may be left dense where its inputs are no multiple of m, and, where `every` is False, if the recipe chose
    to (first convolutions, small heads); which ones is said. Where a result names those that are `masked`, all others
    were left dense, whatever zeros rounding has put there. A result that gave `each` matrix a pattern of its own is
    held to these, as long as their mean is no more than what was asked for. What `stays`, because it was protected, may
    be anything.
    """
    off, short, kept, whole = dict[str, int](), list[str](), 0, 0
    for name, matrix in matrices.items():  # once each: they may be read from the disk
        own = (each or {}).get(name, pattern)
        off |= sparsity.broken({name: matrix}, own.n, own.m)
        kept, whole = kept + own.n * matrix.numel(), whole + own.m * matrix.numel()
        short += [name] if matrix.shape[1] % pattern.m else []
    if each and (kept * pattern.m > pattern.n * whole or any(own.m != pattern.m for own in each.values())):
        return _off_pattern(matrices, pattern, every, masked, stays=stays)

    def spare(name: str) -> bool:
        if name in stays or (masked and name not in masked):
            return True
        may_be_dense = not every or bool(matrices[name].shape[1] % pattern.m)
        return may_be_dense and int(torch.count_nonzero(matrices[name])) == matrices[name].numel()

    spared = [name for name in off if spare(name)]
    if len(spared) == len(matrices):
        spared = []
    wrong = {name: count for name, count in off.items() if name not in spared}
    notes = [f"left dense by {pattern}: {_some_names(spared)}"] if spared else []
    short = [name for name in short if name not in spared]
    if short:
        notes.append(
            f"{pattern} leaves the last inputs dense, which fill no group of {pattern.m}, in {_some_names(short)}"
        )
    if wrong:
        first, count = next(iter(wrong.items()))
        most = (each or {}).get(first, pattern).n
        notes.append(
            f"{pattern} does not hold in {_some_names(list(wrong))}: {display.thousands(count)} runs of {pattern.m} "
            f"weights of the first have more than {most} that are not zero"
        )
    return Figure(float(sum(wrong.values()))), notes


def _some_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _zeros_notes(before: Row, after: Row, measured: Row) -> list[str]:
    """What zeros brought where they brought nothing: weights that are zero are stored and multiplied like others."""
    zeros, speedup = after.get("zeros"), measured.get("speedup")
    if zeros is None or zeros.value <= sparsity.WORTH or after["bytes"].value < before["bytes"].value:
        return []
    if speedup is not None and (speedup.value if speedup.low is None else speedup.low) > 1.0:
        return []
    time = "" if speedup is None else f" and it is not measurably faster ({display.text('speedup', speedup)})"
    return [
        f"{display.number('zeros', zeros.value)} of the weights in its matrices are zero, stored and multiplied like "
        f"the others: the file is no smaller{time}; packed it would take "
        f"{display.number('bytes', after['packed_bytes'].value)} in place of "
        f"{display.number('bytes', after['bytes'].value)}"
    ]


# ------------------------------------------------------------------------------------------------ secateur measure


class Figures(dict[str, Row]):
    """Part -> figures, and as `notes` what could not be measured and why."""

    notes: tuple[str, ...] = ()

    def rows(self) -> list[list[str]]:
        """A table as people read it: a measure in each row, behind its label what it is of each part."""
        names = display.order(name for row in self.values() for name in row)
        return [[display.measure(n).label, *(display.text(n, row.get(n)) for row in self.values())] for n in names]

    def __repr__(self) -> str:
        parts = [
            f"{part}: {', '.join(f'{name} {display.text(name, row[name])}' for name in display.order(row))}"
            for part, row in self.items()
        ]
        return f"Figures({'; '.join([*parts, *(f'note: {note}' for note in self.notes)])})"

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>note: {html.escape(note)}</p>" for note in self.notes)
        return html_table("Measured", ("Measure", *self), self.rows()) + notes


@keep_modes("model", "against")
def measure(
    model: Source,
    against: Source | Sequence[Source] | None = None,
    data: Data | None = None,
    *,
    text: str = "text",
    label: str = "label",
    completion_only: bool = False,
    packing: Literal["blocks", "documents"] = "blocks",
    sizes: str | Sequence[float | str] | None = None,
    transform: object = None,
    size: int | str | None = None,
    workers: int | None = None,
    inputs: object = None,
    tasks: Sequence[str] = (),
    task_folder: str | Path | None = None,
    limit: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    environment: latency.Phase | None = None,
    timer: latency.Timer | None = None,
    pairs: int | None = None,
    part: str | None = None,
) -> Figures:
    """Measure a model, or a model `against` another: {"model": ..., "against": ..., "both": speedup and fidelity}.

    What can't be told, such as a speedup on a clock that is too noisy, is left out, and the result's `notes` say why.

    Against several, such as its teachers, both parts are there of each: "against NAME" and "both NAME"; and of their
    averaged ensemble how good it is, "ensemble", and the model's loyalty to it, "both ensemble", where `data` is given
    and they tell classes, tokens or numbers, whose mean can be taken.

    Args:
        model: a folder, a Hub id, "file.py:function" for any network, or an object. A network that was cut stands in
            the folder of its run; its original, `against`, says what it was made of.
        against: another model, or several.
        data: what quality is measured on, all of it; of examples in several parts the held-out one, as a note says.
        text: the column of texts.
        label: the column of classes, or of an .npz file the array; '' for none.
        completion_only: of chats, measure the assistant's answers alone, and not what they answer.
        packing: "blocks" of running text, or of whole "documents", of which none sees another; see `run`.
        sizes: sides of squares that part small, medium and large boxes; see `run`.
        transform, size, workers: how images become inputs; see `run`.
        inputs: what a network runs on, or a shape such as "1x3x224x224"; what its function gives, its folder says, or
            the first of the data, if None.
        tasks: of lm-eval, to measure a language model by.
        task_folder: YAML files of further tasks.
        limit: documents of each task; all if None.
        batch: sequences or examples per batch.
        length: tokens per sequence.
        threads: of torch.
        device: where it is measured, such as cpu or cuda; "auto" splits a transformer's folder over all devices.
        environment: what a language model is timed at: prefill, one pass over `batch` sequences of `length` tokens, or
            decode, one more token of each behind a cache of `length` tokens; prefill if None.
        timer: what runs it: eager (PyTorch as it is), compile (torch.compile) or onnx (onnxruntime); eager if None.
        pairs: how often it and another are timed in turns, at least 6, and up to eight times as often where the clock
            is noisy; for some seconds if None.
        part: of models of several, such as those that read images, too, the one that is measured, by itself:
            language_model, say; as `run` has it.
    """
    keywords.check_counts(threads=threads, batch=batch, length=length, limit=limit)
    if pairs is not None and not (isinstance(pairs, int) and pairs >= 6):
        raise InputError(f"pairs={pairs}: an interval needs at least 6, 20 are usual")
    others: list[Any] = list(against) if isinstance(against, list | tuple) else [] if against is None else [against]
    if pairs is not None and not others:
        raise InputError("pairs are of two models timed in turns: give against, too")
    for source in (model, *others):
        if isinstance(source, str | Path) and Path(source).suffix == ".onnx":
            raise UnsupportedError(
                f"{source} is an ONNX file, without the code by which models are measured: measure what it was "
                "exported from, whose outputs it gives, or a detector's boxes by "
                "secateur.subjects.network.exported.Exported"
            )
        places.refuse_other(source, networks=True)
    several = len(others) > 1
    if several:
        from secateur.runs.distilling import ensembles  # one model does without

        names = ensembles.name_models(others)
    sources = [None if part else one for one in (model, *others)]
    # A language model that was cut as a network is compared with its original as a network.
    networks = (one for one in (model, *others) if backends.is_network(one))
    original = model if is_saved(model) else next(networks, next(iter(others), model))
    backend = backends.of_source(original) if part is None else backends.of_part(original, part)
    load: Callable[[Source], Source] = (
        partial(backend.load_any, device=device) if part is None else partial(backend.open_part, part=part)
    )
    model, others = load(model), [load(source) for source in others]
    if inputs is not None and not backend.has_inputs:
        raise InputError(f"inputs are of networks, and these are {backend.family}: leave them out")
    held_out = splits.find_held_out(backend, data) if backend.noun == "examples" else None
    corpus, apart = splits.read(
        backend, data, held_out, text=text, label=label, sizes=sizes, transform=transform, size=size, workers=workers,
        completion_only=completion_only, packing=packing,
    )  # fmt: skip
    if apart is not None and corpus is not None:
        corpus = splits.with_classes_of(corpus, apart)
    others = [backend.open_whole(source, device, corpus, inputs) for source in others[:1]] + others[1:]
    others[1:] = [backend.reopen(source, others[0], device) for source in others[1:]]
    subject = backend.reopen(model, others[0], device) if others else backend.open_whole(model, device, corpus, inputs)
    backend = backends.of_subject(subject, backend)
    corpus = None if corpus is None else backend.fit_data(corpus, subject)
    here = backend.environment(subject, batch, length, threads)
    place = backend.environment(subject, batch, length, threads, device)
    place = replace(place, phase=environment or place.phase, timer=timer or place.timer)
    for one in (subject, *others):
        backend.check_clock(one, place)
    backend.check(subject, {"length": place.length})

    def run_tasks(one: object) -> Row:
        return backend.run_tasks(one, tasks, task_folder, limit) if tasks else {}

    if tasks:
        backend.check_tasks(subject)
    if several:
        ensembles.check_models(backend, subject, dict(zip(names, others, strict=True)), here)
    rows = Figures({"model": {}})
    rows.notes += (*backends.note_rows(backend, batch, place), *backend.note_lengths(subject, {"length": place.length}))
    if apart is not None and corpus is not None:
        named = splits.names_of(part=(held_out, apart))["part"]
        rows.notes += (f"quality is measured on {named}, the held-out part of the data: {len(corpus)} examples",)
    rows.notes += splits.reading_notes(corpus)
    for number, other in enumerate(others):
        with with_threads(place):
            before, after, both, notes = Reference(backend, other, place, corpus, pairs).compare(subject)
        end = f" {names[number]}" if several else ""
        rows.notes += tuple(f"{names[number]}: {note}" if several else note for note in notes)
        before = _as_stored(before, sources[1 + number])
        rows |= {"model": after | rows["model"], f"against{end}": before | run_tasks(other), f"both{end}": both}
    if several and corpus is not None:
        with _evaluating(subject, *others):
            rows |= ensembles.measure_ensemble(backend, subject, others, corpus, here)
    if not others:
        rows.notes += tuple(_note_unmeasured(backend, subject))
        with _evaluating(subject):
            rows["model"] = _alone(backend, subject, corpus, place)
    rows["model"] = _as_stored(rows["model"], sources[0]) | run_tasks(subject)
    return rows


def _as_stored(row: Row, source: Source | None) -> Row:
    """The sizes on disk of a model in memory as those of its files, where these are quantised or packed.

    Packed weights are unpacked as they load, and branches lie in files of their own. source: what it was opened from;
    other figures, such as of memory, stay those of the model in memory.
    """
    if "bytes" not in row or not isinstance(source, str | Path) or not is_pretrained(source):
        return row
    from secateur.subjects.transformer.loading import count_stored  # which loads transformers

    stored = count_stored(source)
    if not stored:
        return row
    packed = row["packed_bytes"].value + max(0.0, stored - row["bytes"].value)
    return {**row, "bytes": Figure(stored, unit="B"), "packed_bytes": Figure(min(packed, stored), unit="B")}


def _alone(backend: AnyBackend, subject: object, corpus: object, environment: latency.Environment) -> Row:
    """Sizes, time, memory and quality of one subject."""
    example = backend.make_example(subject, environment)
    row = backend.sizes(subject, example)
    subject = backend.place(subject, environment)
    with environment.active():
        run = backend.make_run(subject, environment)
        row |= _times(latency.median_time(run, device=environment.device), environment)
        row["peak_memory"] = _peak_memory(backend.make_run(subject, replace(environment, timer="eager")), environment)
    if corpus is not None:
        row |= backend.compare(subject, subject, corpus, environment)[0]
    return row
