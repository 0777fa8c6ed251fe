"""Meeting a latency target: a table of what each sub-block takes at each size, and cuts that are timed themselves.

Source: ZipLM (arXiv 2302.04089), inference-aware pruning.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.noting import note
from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, InputError, MeasurementError, UnsupportedError
from secateur.formats import onnx_files
from secateur.measure import latency
from secateur.measure.latency import Phase, Timer
from secateur.select import levels
from secateur.subjects import Transformer
from secateur.subjects.transformer import steps
from secateur.vocabulary import Array, Budget, Selection, Units

__all__ = [
    "NOISY", "Axis", "Clock", "check_place", "choose_axes", "make_run", "meet_target", "select_in_time", "time_blocks",
    "time_layers", "time_share",
]  # fmt: skip

T = TypeVar("T")
Axis = Literal["heads", "kv_groups", "neurons"]

NOISY = "the clock disagrees with the latency table or with itself: repeat on a quiet machine"
"""What a result says where its latency could not be met on the clock."""

_LAYERS = 2
"""Of a stack whose blocks are timed together: the more, the less the noise of one timing falls on each."""

_FEW = 8
"""Sizes of a kind of block that are timed where each must be compiled or exported first; others are interpolated."""


_WHOLE, _GLANCE = 15.0, 3.0
"""Seconds for which a choice is timed, and for which the first is, which may be far from its target."""

_TIMINGS = 20
"""The usual `Clock.timings`, to which the seconds and the fineness of a comparison belong."""

_FAR_OFF = 0.1
"""Relative gap of which a glance tells enough: it is coarser than any nearer one."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What a latency is of, what runs the model, and how near to a target the clock must come."""

    environment: Phase = "prefill"
    """prefill, one pass over `batch` sequences of `length` tokens; or decode, one more token of each, behind a cache of
    `length` tokens."""
    timer: Timer = "eager"
    """eager, PyTorch as it is; compile, torch.compile; or onnx, onnxruntime on the CPU. It times the table, the cuts of
    the search and the result alike."""
    tolerance: Annotated[float, Ge(0)] = 0.02
    """Relative gap between target and clock that is left alone."""
    corrections: Annotated[int, Ge(0)] = 4
    """Most re-timings per budget."""
    timings: Annotated[int, Ge(1)] = 20
    """How often each block is timed for the table; cuts are timed beside the original for as much longer or less."""

    def place(self, subject: Transformer, batch: int, length: int) -> latency.Environment:
        """Where the subject is timed: as it is, on its device; of an offloaded model that to which its weights come."""
        kind = str(subject.model.dtype).removeprefix("torch.")
        return latency.Environment(
            batch, length, None, str(devices.find_device(subject.model)), kind, phase=self.environment, timer=self.timer
        )


# ------------------------------------------------------------------------------------------------- what is timed


def check_place(subject: Transformer, place: latency.Environment) -> None:
    """Raise a one-line error for a model that can't be timed there: no cache to decode with, not for onnxruntime."""
    if place.phase == "decode":
        steps.check_decodes(subject, place.length or 1)
    if place.timer == "onnx":
        onnx_files.check_installed()
        if torch.device(place.device).type != "cpu" or place.dtype != "float32":
            raise InputError(
                f"timer=onnx runs float32 on the CPU, and the model is {place.dtype} on {place.device}: open it there "
                "in float32, or take timer=compile"
            )


@torch.inference_mode(False)  # what is made here may be written to in either mode
@torch.no_grad()
def make_run(subject: Transformer, place: latency.Environment) -> Callable[[], object]:
    """One call of the subject as it is timed in `place`, ready to run: what must be compiled or exported first, is.

    Raises `MeasurementError` for a model that the compiler or the exporter does not take.
    """
    check_place(subject, place)
    batch, length = place.batch, place.length or 1
    if place.phase == "decode":
        if place.timer == "onnx":
            return _export_run(*steps.flatten_step(subject, batch, length))
        step = steps.decode(subject, batch, length, static=place.timer == "compile")
        return _compile_run(step) if place.timer == "compile" else step
    example = subject.example(batch, length)
    if place.timer == "eager":
        return partial(subject.forward, example)
    module, tensors = steps.ForwardPass(subject).eval(), (example["input_ids"], example["attention_mask"])
    return _export_run(module, tensors) if place.timer == "onnx" else _compile_run(lambda: module(*tensors))


_numbers = itertools.count()


def _compile_run(run: Callable[[], object]) -> Callable[[], object]:
    """`run` through torch.compile, compiled already.

    torch keeps what it compiled by the code of a function, and looks through all of it at each call, or gives up after
    some: so each call has code of its own.
    """

    def call() -> object:
        return run()

    code = call.__code__.replace(co_name=f"timed_{next(_numbers)}")
    own = types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
    try:
        compiled: Callable[[], object] = torch.compile(own, fullgraph=True, dynamic=False)
        compiled()
    except Exception as error:
        raise MeasurementError(
            f"torch.compile does not take this model as a whole ({_first_sentence(error)}): take timer=eager"
        ) from error
    return compiled


def _export_run(module: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[[], object]:
    """The module exported for inputs of these shapes, in onnxruntime with as many threads as torch has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            onnx_files.write(module, path, tensors)
        except Exception as error:
            raise MeasurementError(
                f"the model can't be exported to ONNX ({_first_sentence(error)}): take timer=eager or compile"
            ) from error
        session = onnx_files.open_session(path, threads=torch.get_num_threads())
    names = [place.name for place in session.get_inputs()]
    inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return partial(session.run, None, inputs)


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0][:200]}"


# ----------------------------------------------------------------------------------------------------- the table


_FAR, _SAFE = 0.5, 0.8
"""A share of the least time that no noise makes up for, and of the speedup that a few runs promise."""


def choose_axes(subject: Transformer) -> tuple[Axis, ...]:
    """Heads, or KV groups where heads share keys and values, and neurons, if they can go; a note says why not.

    Raises `UnsupportedError` where neither can.
    """
    units, whole = subject.units(), subject.layout.whole
    heads: Axis = "kv_groups" if any(site.kind == "kv_groups" for site in units.sites.values()) else "heads"
    free, name = {site.kind for site in units.free()}, subject.family.model_type
    axes: tuple[Axis, ...] = (heads, "neurons")
    lack = {"neurons": "they are those of experts"} if "expert_neurons" in free else {}
    stay = [
        f"{axis.replace('_', ' ')} of this {name} model stay whole: "
        f"{whole.get(axis) or lack.get(axis, 'no units of them were found')}"
        for axis in axes
        if axis not in free
    ]
    if len(stay) == len(axes):
        raise UnsupportedError(f"{'; '.join(stay)}: nothing is left to cut by heads or neurons")
    for why in stay:
        note(why)
    return tuple(axis for axis in axes if axis in free)


def time_blocks(
    subject: Transformer, axes: Sequence[Axis], grid: Sequence[int], batch: int, length: int, clock: Clock = Clock(),
    budgets: Sequence[Budget] = (),
) -> levels.Table:  # fmt: skip
    """Seconds of one attention and one FFN block at every level, and of what is left without them ("rest").

    The rest is the time of a model with next to nothing in its blocks: taken as the difference of two large times,
    it would hold all their noise. A block alone is a little slower than inside the model, so that all entries are
    scaled alike until the whole model's add up to its own time. What is not of the `axes`, such as heads that stay
    whole, or experts, is part of the rest. grid: the counts of neurons that are timed. Raises `InfeasibleError` for one
    of the `budgets` that the rest alone is far above, before the table is timed.
    """
    place = clock.place(subject, batch, length)
    check_place(subject, place)
    sites = subject.units(*axes).free()
    most = levels.widest(subject.units(*axes))
    counts: dict[Axis, list[int]] = {axis: list(range(1, 1 + most[axis])) for axis in axes}
    if "neurons" in counts:
        counts["neurons"] = sorted({most["neurons"], *(k for k in grid if 0 < k < most["neurons"])})
    if clock.timer != "eager":
        counts = {kind: _thin_out(row) for kind, row in counts.items()}
    least = min(counts.get("neurons", [0]))
    bare, _ = subject.cut(
        Selection({s.name: np.arange(s.count) < (least if s.kind == "neurons" else 0) for s in sites})
    )
    probes: dict[tuple[str, int], Callable[[], object]] = {
        ("rest", 0): make_run(bare, place),
        ("dense", 0): make_run(subject, place),
    }
    if any("latency" in budget for budget in budgets):
        refuse_far(budgets, probes["rest", 0], probes["dense", 0], place.device)
    in_stacks = clock.environment == "decode" or clock.timer != "eager"
    for kind, row in counts.items():
        for count in row:
            if in_stacks:
                probes[kind, count] = make_run(subject.stack(kind, count, _LAYERS), place)
            else:
                probes[kind, count] = subject.probe(kind, count, batch, length)
    if in_stacks:
        probes["empty", 0] = make_run(subject.stack(axes[0], 0, _LAYERS), place)
    figures = latency.time_interleaved(probes, rounds=clock.timings, progress=True, device=place.device)
    times = {key: figure.value for key, figure in figures.items()}
    if in_stacks:
        times |= {key: max(0.0, times[key] - times["empty", 0]) / _LAYERS for key in times if key[0] in counts}
    table: levels.Table = {}
    for kind, row in counts.items():
        smooth = latency.monotone({k: times[kind, k] for k in row})
        table[kind] = {"0": 0.0} | {str(k): seconds for k, seconds in smooth.items()}
    blocks = table["neurons"][str(least)] * sum(s.kind == "neurons" for s in sites) if least else 0.0
    table["rest"] = {"0": max(0.0, times["rest", 0] - blocks)}
    units = subject.units(*axes, batch=batch, length=length)
    scale = times["dense", 0] / levels.with_latency(units, table, table["rest"]["0"]).cost()["latency"]
    return {kind: {count: scale * seconds for count, seconds in row.items()} for kind, row in table.items()}


def refuse_far(
    budgets: Sequence[Budget], rest: Callable[[], object], dense: Callable[[], object], device: str = "cpu"
) -> None:
    """Raise `InfeasibleError` for a latency of less than half of what `rest` takes, the model without its blocks.

    Some runs of it and of the whole model, `dense`, tell as much within seconds, where a table takes minutes.
    """
    times = latency.time_interleaved({"rest": rest, "dense": dense}, rounds=7, device=device)
    whole, least = times["dense"].value, times["rest"].value
    for budget in budgets:
        if "latency" in budget and budget["latency"].absolute(whole) < _FAR * least:
            reachable = math.floor(10 * _SAFE * whole / least) / 10
            raise InfeasibleError(
                f"budget {budget.brief()} can't be met: without what can go of heads and neurons the model is about "
                f"{whole / least:.2g}x as fast; ask for at most speedup={reachable:g}x", least,
            )  # fmt: skip


def _thin_out(counts: Sequence[int]) -> list[int]:
    """At most `_FEW` of the counts, the smallest and the largest among them."""
    ordered = sorted(counts)
    places = np.linspace(0, len(ordered) - 1, min(_FEW, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def time_layers(subject: Transformer, batch: int, length: int) -> levels.Table:
    """Seconds of all layers at every number of them, each taking as long as any other, and of the rest.

    From the whole model and one without every second of its layers, as far as these can go, timed in turns. A model of
    one layer has none to spare: all its time is the rest.
    """
    count = len(subject.layers())
    stays = np.arange(count) % 2 == 0
    for members in subject.needed_layers():
        stays[members[0]] |= not stays[list(members)].any()
    half = subject.cut(Selection({"layers": stays}))[0]
    example = subject.example(batch, length)
    times = latency.time_interleaved(
        {"whole": partial(subject.forward, example), "half": partial(half.forward, example)},
        rounds=20, progress=True, device=str(devices.find_device(subject.model)),
    )  # fmt: skip
    whole = times["whole"].value
    gone = count - int(stays.sum())
    each = min(whole / count, max(0.0, whole - times["half"].value) / gone) if gone else 0.0
    return {"layers": {str(kept): kept * each for kept in (0, count)}, "rest": {"0": whole - count * each}}


def select_in_time(
    run: Run,
    subject: Transformer,
    units: Units,
    table: levels.Table | None,
    budget: Budget,
    choose: Callable[[Units, Budget], Mapping[str, Array]],
    *,
    batch: int,
    length: int,
    tolerance: float = 0.02,
    corrections: int = 4,
) -> tuple[Selection, tuple[str, ...]]:
    """What `choose` keeps of `units` within `budget`, with its predicted costs; and notes.

    Where the budget limits latency, seconds come from `table` and the cut is timed itself (`meet_target`). The choice
    is kept in the run directory, for a clock would not repeat it.

    choose: (units with the seconds that they take, absolute budget) -> site -> [count] booleans to what stays.
    """
    rest = table["rest"]["0"] if table else 0.0
    dense = levels.with_latency(units, table, rest).cost()
    limits = budget.absolute(dense)

    def solve(fixed: float) -> dict[str, np.ndarray]:
        keep = choose(levels.with_latency(units, table, fixed), Budget.of(limits))
        return {name: np.asarray(mask, bool) for name, mask in keep.items()}

    def predict(keep: dict[str, np.ndarray], fixed: float) -> float:
        return levels.with_latency(units, table, fixed).cost(keep)["latency"]

    def measure(keep: dict[str, np.ndarray], lasting: float) -> float:
        return time_share(subject, subject.cut(Selection(keep))[0], batch, length, lasting=lasting) * dense["latency"]

    def decide() -> dict[str, torch.Tensor]:
        keep, fixed, noisy = meet_target(
            solve, predict, measure, limits.get("latency"), rest, tolerance=tolerance, corrections=corrections
        )
        decided = {f"{name}.keep": torch.from_numpy(mask) for name, mask in keep.items()}
        return decided | {"fixed": torch.tensor(fixed, dtype=torch.float64), "noisy": torch.tensor(noisy)}

    decided = run.tensors(f"cut-{budget}", decide, alone=True)
    keep = {name.removesuffix(".keep"): mask.numpy() for name, mask in decided.items() if name.endswith(".keep")}
    spent = levels.with_latency(units, table, float(decided["fixed"])).cost(keep)
    if "latency" in spent:
        spent["speedup"] = dense["latency"] / spent["latency"]
    return Selection(keep, spent, budget), (NOISY,) if decided["noisy"] else ()


def meet_target(
    solve: Callable[[float], T],
    predict: Callable[[T, float], float],
    measure: Callable[[T, float], float],
    limit: float | None,
    fixed: float,
    *,
    tolerance: float,
    corrections: int,
) -> tuple[T, float, bool]:
    """The choice nearest to `limit` seconds on the clock: (choice, fixed seconds it was solved with, clock failed).

    Where the clock disagrees by more than `tolerance`, the difference goes to the fixed seconds and the choice is made
    anew, at most `corrections` times: the fixed seconds are the mean of what all full timings ask for, since each has
    noise of its own. A table that is far off is first set right by a glance at the clock. What is returned was timed in
    full itself, unless the clock failed before, or nothing may be corrected: then nothing is timed.

    measure: (choice, seconds to time it for) -> seconds of one pass of it.
    """
    chosen, failed = solve(fixed), False
    if not limit or not corrections:
        return chosen, fixed, failed
    try:
        seconds = measure(chosen, _GLANCE)
        if abs(seconds / limit - 1) > max(_FAR_OFF, 3 * tolerance):
            there = fixed + seconds - predict(chosen, fixed)
            chosen, fixed = solve(there), there
    except (MeasurementError, InfeasibleError):
        failed = False  # whether that is so, a full timing tells
    asked: list[float] = []
    timed: list[tuple[float, int, T, float]] = []  # gap, turn, choice, fixed
    try:
        for turn in range(1 + corrections):
            seconds = measure(chosen, _WHOLE)
            timed.append((abs(seconds / limit - 1), turn, chosen, fixed))
            if timed[-1][0] <= tolerance or turn == corrections:
                break
            asked.append(fixed + seconds - predict(chosen, fixed))
            fixed = statistics.mean(asked)
            chosen = solve(fixed)
    except (MeasurementError, InfeasibleError):
        failed = True
    return (*min(timed)[2:], failed) if timed else (chosen, fixed, failed)


def time_share(
    subject: Transformer, student: Transformer, batch: int, length: int, clock: Clock = Clock(), lasting: float = _WHOLE
) -> float:
    """The student's share of the subject's time, by alternating pairs for `lasting` seconds, or a thousand.

    With fewer timings of the clock than usual, for a share of that, and less finely by its root.

    Raises `MeasurementError` where four times as long does not tell.
    """
    place = clock.place(subject, batch, length)
    share = clock.timings / _TIMINGS
    pairs, warmup, resolution = (20, 5, 0.03) if lasting >= _WHOLE else (6, 2, 0.06)
    times = latency.compare(
        make_run(subject, place), make_run(student, place), pairs=pairs, warmup=warmup, device=place.device,
        resolution=resolution / math.sqrt(share), lasting=lasting * share, most=round(2000 * max(1.0, share)),
        limit=4 * lasting * share,
    )  # fmt: skip
    return 1 / times.speedup.value
