"""Peak memory of a call."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from secateur._utils import allocator
from secateur.vocabulary import Figure

__all__ = ["Peak", "measure_allocation", "peak"]

_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Peak:
    """What a call held at its highest point, in bytes, and what it returned."""

    extra: float
    """Above what was held when the call began: the call's own need."""
    total: float
    """Of the whole process (or of this process on the CUDA device)."""
    result: Any = None

    @property
    def figure(self) -> Figure:
        """`extra` as a figure."""
        return Figure(self.extra, unit="B")


def peak(fn: Callable[[], object], *, device: str = "cpu", calls: int = 1) -> Peak:
    """Peak memory of `fn()`: the smallest of `calls`, so that what only a first call allocates does not count.

    On CUDA: `torch.cuda.max_memory_allocated`. On Linux: the kernel's own high-water mark of resident memory (VmHWM),
    reset through /proc/self/clear_refs, which misses nothing between two looks. Elsewhere, and where the kernel does
    not allow the reset: resident memory sampled each millisecond, which can miss a shorter spike.
    Memory that the process already held and only reused is not seen, so free blocks are given back first.
    """
    if calls > 1:
        return min((peak(fn, device=device) for _ in range(calls)), key=lambda found: found.extra)
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        start = float(torch.cuda.memory_allocated(device))
        result = fn()
        torch.cuda.synchronize(device)
        total = float(torch.cuda.max_memory_allocated(device))
        return Peak(max(total - start, 0.0), total, result)
    allocator.release_memory()
    if _reset_high_water():
        start = _status("VmRSS")
        result = fn()
        total = _status("VmHWM")
        return Peak(max(total - start, 0.0), total, result)
    return _sample_peak(fn)


def measure_allocation(fn: Callable[[], object], *, device: str = "cpu") -> Figure:
    """Bytes that `fn()` holds at its highest point beyond what is there already, by torch's own book of allocations.

    Exact and the same every time, where `peak` sees the whole process and what its allocator happens to reuse: two
    models are compared by this. What libraries take outside of torch's allocators is not in it.
    """
    if torch.device(device).type == "cuda":
        return peak(fn, device=device).figure
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to stderr that it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        fn()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return Figure(float(highest), unit="B")


def _reset_high_water() -> bool:
    """Set VmHWM back to the present resident size; False where the kernel does not offer it."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> float:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024.0
    raise OSError(f"/proc/self/status has no {field}")


def _sample_peak(fn: Callable[[], object], interval: float = 1e-3) -> Peak:
    process = psutil.Process()
    start = highest = float(process.memory_info().rss)
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(interval):
            highest = max(highest, float(process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = fn()
        end = float(process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    total = max(highest, end)
    return Peak(total - start, total, result)
