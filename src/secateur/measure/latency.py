"""Latency: medians, alternating pairs of before and after, and ZipLM's table of sub-block times.

Why medians. On a shared or virtual machine the disturbance of a run is one-sided and comes in bursts (a neighbour takes
the core, the clock drops). The mean follows the bursts. The least time is free of them, but falls with the number of
runs, depends on the luckiest clock, and says what the machine can do rather than what it does. The median stands
still until half of the runs are disturbed, and has an exact distribution-free interval. What a median does not cure is
drift, so whatever is compared is timed in turns: in pairs A B, B A, ... for two models (`compare`), in rounds over all
levels for a table (`table`), and only figures of one turn are set against each other.

A machine's state lasts seconds, and favours one of two models by some percent: twenty pairs of ten milliseconds agree
with each other and not with the next twenty. So a comparison can be asked to last, and its interval comes from blocks
of neighbouring pairs, not from pairs as if they were independent.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from secateur._utils.allocator import keep_memory
from secateur._utils.bars import show_bar
from secateur.errors import InputError, MeasurementError
from secateur.measure.statistics import median_interval
from secateur.vocabulary import Figure

__all__ = [
    "Comparison", "Environment", "Phase", "Timer", "compare", "median_time", "monotone", "table", "time_interleaved",
]  # fmt: skip

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], Any]

Phase: TypeAlias = Literal["prefill", "decode"]
"""What a language model is timed at: one pass over whole sequences, or one more token behind a cache of them."""

Timer: TypeAlias = Literal["eager", "compile", "onnx"]
"""What runs the model that is timed: PyTorch as it is, torch.compile, or onnxruntime."""

BLOCKS = 20
"""A long comparison is cut into so many blocks, whose medians give its interval."""

SHORTEST = 2e-4
"""Seconds. A shorter sample is repeated inside the clock until it is as long: reading the clock itself costs 1e-7."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a latency holds: another batch, length, thread count or device is another question.

    >>> with Environment(batch=1, length=16, threads=1).active():
    ...     torch.get_num_threads()
    1
    """

    batch: int = 1
    length: int | None = 128
    """Tokens per sequence; None where rows are no sequences."""
    threads: int | None = None
    """Threads of one operation; None leaves torch's own number."""
    device: str = "cpu"
    dtype: str = "float32"
    phase: Phase = "prefill"
    """With "decode" one token of each sequence is timed, behind a cache of `length` tokens."""
    timer: Timer = "eager"

    def __post_init__(self) -> None:
        for name, value, choices in (("environment", self.phase, Phase), ("timer", self.timer, Timer)):
            if value not in get_args(choices):
                raise InputError(f"{name}={value!r} is not one of {', '.join(get_args(choices))}")

    @contextmanager
    def active(self) -> Iterator[Environment]:
        """Inference mode with this thread count; both are restored at the end, also after an error."""
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise MeasurementError(f"device {self.device!r} was asked for, but torch sees no CUDA device: use cpu")
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with torch.inference_mode():
                yield self
        finally:
            torch.set_num_threads(before)

    def describe(self) -> dict[str, Any]:
        """Plain data, with the thread count that really holds."""
        return {**asdict(self), "threads": self.threads or torch.get_num_threads()}

    def __str__(self) -> str:
        described = self.describe()
        rows = f"batch {self.batch}" + ("" if self.length is None else f" x {self.length} tokens")
        if self.phase == "decode":
            rows = f"batch {self.batch} x 1 token behind a cache of {self.length}"
        runtime = {"eager": "", "compile": ", torch.compile", "onnx": ", onnxruntime"}[self.timer]
        return f"{rows}, {described['threads']} threads, {self.device}, {self.dtype}{runtime}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two things timed in turns. `speedup` is the median of the pairs' before / after, above 1 when after is faster."""

    before: Figure
    after: Figure
    speedup: Figure

    @property
    def faster(self) -> bool:
        """True when the whole interval of the speedup lies above 1: faster beyond what the clock's noise could make."""
        return self.speedup.low is not None and self.speedup.low > 1.0


@contextmanager
def _quiet() -> Iterator[None]:
    """What is timed is inference, undisturbed: no autograd graph, no garbage collection while the clock runs.

    A graph keeps every activation, whose fresh pages cost a small model several times its own time. Freed ones stay at
    hand, as in a process that has served for a while, so that what was cut and what was then trained are timed alike.
    """
    enabled = gc.isenabled()
    gc.collect(1)  # what is young; a walk through all that was ever imported takes longer than most timings
    gc.disable()
    try:
        with torch.no_grad(), keep_memory():
            yield
    finally:
        if enabled:
            gc.enable()


def _seconds(run: Run, device: str, repeats: int = 1) -> float:
    """Seconds of one call. CUDA returns before it has worked, so it is waited for on both sides of the clock."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if cuda:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _warm(run: Run, device: str, warmup: int) -> int:
    """Call `run` until caches and lazy set-up are done; how many calls make a sample long enough to read."""
    last = [_seconds(run, device) for _ in range(max(1, warmup))]
    return max(1, math.ceil(SHORTEST / max(min(last), 1e-9)))


def median_time(
    fn: Run, *, warmup: int = 5, runs: int = 30, min_seconds: float = 0.0, device: str = "cpu", confidence: float = 0.95
) -> Figure:
    """Median seconds of one call, with its interval: `runs` samples, more until `min_seconds` have been timed."""
    samples: list[float] = []
    with _quiet():
        repeats = _warm(fn, device, warmup)
        while len(samples) < runs or sum(samples) * repeats < min_seconds:
            samples.append(_seconds(fn, device, repeats))
    return median_interval(samples, confidence=confidence, unit="s")


def compare(
    before: Run,
    after: Run,
    *,
    pairs: int = 20,
    warmup: int = 5,
    device: str = "cpu",
    confidence: float = 0.95,
    resolution: float = 0.05,
    most: int | None = None,
    lasting: float = 0.0,
    enough: int = 1000,
    limit: float = 300.0,
) -> Comparison:
    """Time two callables in turns and say how much faster the second is, or refuse.

    Pairs are timed as A B, B A, A B, ...: the two of a pair stand next to each other, so that drift hits both, and
    neither is always first. The speedup is the median of the pairs' ratios with its distribution-free interval; of
    more than 6 x `BLOCKS` pairs, an interval as wide as that of the medians of `BLOCKS` blocks of neighbours.
    Pairs are timed until they have taken `lasting` seconds, or are `enough`. While half of the interval is wider than
    `resolution` of the speedup, the number of pairs is doubled, up to `most` (default 8 x `pairs`) or to what
    `lasting` asked for; all pairs count, none is thrown away. None but the first `pairs` begins after `limit` seconds:
    on a machine that others use, no number of pairs may be enough.

    Raises `MeasurementError` when the interval is too wide even then: the clock can't tell.
    """
    if pairs < 6:
        raise MeasurementError(f"{pairs} pairs were asked for: an interval needs at least 6, 20 are usual")
    most = max(8 * pairs if most is None else most, pairs)
    a: list[float] = []
    b: list[float] = []
    with _quiet():
        repeats = _warm(before, device, warmup), _warm(after, device, warmup)
        wanted = pairs
        until, last = time.perf_counter() + lasting, time.perf_counter() + max(lasting, limit)
        while True:
            while len(a) < wanted or (len(a) < enough and time.perf_counter() < until):
                if len(a) >= pairs and time.perf_counter() > last:
                    break
                if len(a) % 2:
                    b.append(_seconds(after, device, repeats[1]))
                    a.append(_seconds(before, device, repeats[0]))
                else:
                    a.append(_seconds(before, device, repeats[0]))
                    b.append(_seconds(after, device, repeats[1]))
            speedup = _spread(np.divide(a, b), confidence)
            noise = _half_width(speedup)
            if noise <= resolution:
                break
            if len(a) >= most or time.perf_counter() > last:
                raise MeasurementError(
                    f"the clock is too noisy to tell: after {len(a)} pairs the speedup is {speedup.value:.3g}x "
                    f"+-{noise:.0%}, wanted +-{resolution:.0%}; stop other work on this machine, use fewer threads "
                    f"than cores, or allow more pairs"
                )
            wanted = min(2 * len(a), most)
    return Comparison(
        median_interval(a, confidence=confidence, unit="s"),
        median_interval(b, confidence=confidence, unit="s"),
        speedup,
    )


def _spread(ratios: np.ndarray, confidence: float) -> Figure:
    """The median of ratios in order of time, with an interval that holds for a machine whose state lasts a while."""
    whole = median_interval(ratios, confidence=confidence, unit="x")
    if len(ratios) <= 6 * BLOCKS:
        return whole
    blocks = median_interval([float(np.median(part)) for part in np.array_split(ratios, BLOCKS)], confidence=confidence)
    ends = [end for figure in (whole, blocks) for end in (figure.low, figure.high) if end is not None]
    return replace(whole, low=min(ends), high=max(ends))


def _half_width(figure: Figure) -> float:
    """Half of the interval as a share of the value."""
    if figure.low is None or figure.high is None:
        return math.inf
    return (figure.high - figure.low) / 2.0 / abs(figure.value)


def time_interleaved(
    probes: Mapping[Key, Run], *, rounds: int = 30, warmup: int = 3, device: str = "cpu", progress: bool = False
) -> dict[Key, Figure]:
    """Median seconds of each probe, timed in rounds over all of them, there and back again.

    Each round is divided by its own pace before the medians are taken, so that slow rounds (a neighbour, a lower clock)
    weigh the same on every probe: with t[r, k] the time of probe k in round r and m[k] its median over rounds,
    pace[r] = median_k t[r, k] / m[k], and the result is the median over r of t[r, k] / pace[r].
    One call is one sample: between two calls of a probe all the others have run, so its weights come from memory as
    they do inside a model, not from a cache warmed by the call before.
    """
    if not probes:
        raise MeasurementError("no probes to time: give at least one level and its callable")
    names = list(probes)
    times = np.empty((rounds, len(names)))
    with _quiet():
        for name in names:
            _warm(probes[name], device, warmup)
        for r in _count_rounds(rounds, "timing", progress):
            for k in range(len(names)) if r % 2 == 0 else reversed(range(len(names))):
                times[r, k] = _seconds(probes[names[k]], device)
    medians = np.maximum(np.median(times, axis=0), 1e-12)
    pace = np.median(times / medians, axis=1, keepdims=True)
    return {name: median_interval(column, unit="s") for name, column in zip(names, (times / pace).T, strict=True)}


def _count_rounds(rounds: int, what: str, progress: bool) -> Iterator[int]:
    if not progress:
        yield from range(rounds)
        return
    yield from show_bar(range(rounds), what)


def monotone(seconds: Mapping[int, float], *, weights: Sequence[float] | None = None) -> dict[int, float]:
    """Isotonic least squares: the nearest times, in squares, that never fall as more is kept.

    min sum_k w_k (y_k - t_k)^2 subject to y_1 <= y_2 <= ... in order of the level, by pooling adjacent violators.
    A table with dips would sell a solver more units for less time than fewer units cost.

    Source: R. E. Barlow et al., Statistical Inference under Order Restrictions (1972), section 1.2.
    """
    levels = sorted(seconds)
    fitted = isotonic_regression([seconds[level] for level in levels], weights=weights).x
    return {level: float(value) for level, value in zip(levels, fitted, strict=True)}


def table(
    probes: Mapping[int, Run], *, rounds: int = 30, warmup: int = 3, device: str = "cpu", progress: bool = False
) -> dict[int, float]:
    """Level (kept count) -> seconds, ascending, and never less for more: `time_interleaved` medians made `monotone`.

    Source: Kurtic et al., ZipLM (arXiv 2302.04089), the latency table of its inference environment.
    """
    medians = time_interleaved(probes, rounds=rounds, warmup=warmup, device=device, progress=progress)
    return monotone({level: figure.value for level, figure in medians.items()})
