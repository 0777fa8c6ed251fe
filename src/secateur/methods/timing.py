"""Meeting a latency target: a table of what each sub-block takes at each size, and cuts that are timed themselves.

Source: ZipLM (arXiv 2302.04089), inference-aware pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from secateur.errors import InfeasibleError, MeasurementError
from secateur.measure import latency
from secateur.select import levels
from secateur.subjects import Transformer
from secateur.vocabulary import Selection

__all__ = ["Heads", "meet_target", "time_blocks", "time_share"]

T = TypeVar("T")
Heads = Literal["heads", "kv_groups"]


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
