"""Meeting a latency target: a table of what each sub-block takes at each size, and cuts that are timed themselves.

Source: ZipLM (arXiv 2302.04089), inference-aware pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch

from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, MeasurementError
from secateur.measure import latency
from secateur.select import levels
from secateur.subjects import Transformer
from secateur.vocabulary import Array, Budget, Selection, Units

__all__ = ["NOISY", "Heads", "meet_target", "select_in_time", "time_blocks", "time_layers", "time_share"]

T = TypeVar("T")
Heads = Literal["heads", "kv_groups"]

NOISY = "the clock disagrees with the latency table or with itself: repeat on a quiet machine"
"""What a result says where its latency could not be met on the clock."""


def time_blocks(subject: Transformer, axis: Heads, grid: Sequence[int], batch: int, length: int) -> levels.Table:
    """Seconds of one attention and one FFN block at every level, and of what is left without them ("rest").

    The rest is the time of a model with next to nothing in its blocks: taken as the difference of two large times,
    it would hold all their noise. A block alone is a little slower than inside the model, so that all entries are
    scaled alike until the whole model's add up to its own time. An empty `grid` leaves the FFN out, as where every
    layer has experts: they are part of the rest.
    """
    axes: tuple[Heads | Literal["neurons"], ...] = (axis, "neurons") if grid else (axis,)
    sites = subject.units(*axes).free()
    most = {kind: max(site.count for site in sites if site.kind == kind) for kind in axes}
    counts: dict[Heads | Literal["neurons"], list[int]] = {axis: list(range(1, 1 + most[axis]))}
    if grid:
        counts["neurons"] = [k for k in grid if 0 < k <= most["neurons"]]
    probes: dict[tuple[str, int], Callable[[], object]] = {}
    for kind, row in counts.items():
        probes |= {(kind, k): subject.probe(kind, k, batch, length) for k in row}
    least = counts["neurons"][0] if grid else 0
    bare, _ = subject.cut(
        Selection({s.name: np.arange(s.count) < (least if s.kind == "neurons" else 0) for s in sites})
    )
    example = subject.example(batch, length)
    probes |= {("rest", 0): partial(bare.forward, example), ("dense", 0): partial(subject.forward, example)}
    times = latency.time_interleaved(probes, rounds=20, progress=True, device=str(subject.model.device))
    table: levels.Table = {}
    for kind, row in counts.items():
        smooth = latency.monotone({k: times[kind, k].value for k in row})
        table[kind] = {"0": 0.0} | {str(k): seconds for k, seconds in smooth.items()}
    blocks = table["neurons"][str(least)] * sum(s.kind == "neurons" for s in sites) if grid else 0.0
    table["rest"] = {"0": max(0.0, times["rest", 0].value - blocks)}
    units = subject.units(*axes, batch=batch, length=length)
    scale = times["dense", 0].value / levels.with_latency(units, table, table["rest"]["0"]).cost()["latency"]
    return {kind: {count: scale * seconds for count, seconds in row.items()} for kind, row in table.items()}


def time_layers(subject: Transformer, batch: int, length: int) -> levels.Table:
    """Seconds of all layers at every number of them, each taking as long as any other, and of the rest.

    From the whole model and one without every second of its layers, timed in turns. A model of one layer has none to
    spare: all its time is the rest.
    """
    count = len(subject.layers())
    stays = np.arange(count) % 2 == 0
    half = subject.cut(Selection({"layers": stays}))[0]
    example = subject.example(batch, length)
    times = latency.time_interleaved(
        {"whole": partial(subject.forward, example), "half": partial(half.forward, example)},
        rounds=20, progress=True, device=str(subject.model.device),
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

    def measure(keep: dict[str, np.ndarray]) -> float:
        return time_share(subject, subject.cut(Selection(keep))[0], batch, length) * dense["latency"]

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
    measure: Callable[[T], float],
    limit: float | None,
    fixed: float,
    *,
    tolerance: float,
    corrections: int,
) -> tuple[T, float, bool]:
    """The choice nearest to `limit` seconds on the clock: (choice, fixed seconds it was solved with, clock failed).

    Where the clock disagrees by more than `tolerance`, the difference goes to the fixed seconds and the choice is made
    anew, at most `corrections` times. What is returned was timed itself, unless the clock failed at once.
    """
    chosen, failed = solve(fixed), False
    if not limit:
        return chosen, fixed, failed
    timed: list[tuple[float, int, T, float]] = []  # gap, turn, choice, fixed
    for turn in range(1 + corrections):
        try:
            seconds = measure(chosen)
            timed.append((abs(seconds / limit - 1), turn, chosen, fixed))
            if timed[-1][0] <= tolerance or turn == corrections:
                break
            fixed += seconds - predict(chosen, fixed)
            chosen = solve(fixed)
        except (MeasurementError, InfeasibleError):
            failed = True
            break
    return (*min(timed)[2:], failed) if timed else (chosen, fixed, failed)


def time_share(subject: Transformer, student: Transformer, batch: int, length: int) -> float:
    """The student's share of the subject's time, by alternating pairs for a quarter of a minute, or a thousand."""
    example, device = subject.example(batch, length), str(subject.model.device)
    times = latency.compare(
        lambda: subject.forward(example), lambda: student.forward(example), resolution=0.03, device=device,
        lasting=15.0, most=2000,
    )  # fmt: skip
    return 1 / times.speedup.value
