"""Peak memory of a call."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur._utils import allocator
from secateur.vocabulary import Figure

__all__ = ["Ledger", "Peak", "measure_allocation", "peak", "simulate"]

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


class Ledger(TorchDispatchMode):
    """Within the block, the bytes of all tensors that operations make, without making them: see `simulate`.

    held, highest: bytes alive now, and at most so far; `hold` counts what was there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.highest = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._false: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors in, those of one storage once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, partial(self._release, key, size))
                self.held += size
        self.highest = max(self.highest, self.held)

    def _release(self, key: int, size: int, _: object) -> None:
        self._alive.pop(key, None)
        self._false.discard(key)
        self.held -= size

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:  # a value that a tensor without values is asked for
            if args[0].dtype is torch.bool:
                return args[0].untyped_storage()._cdata not in self._false
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.nonzero.default:
            result: object = _all_places(args[0])
        elif func is torch.ops.aten.index.Tensor:
            result = func(args[0], _places_of(args[1]))
        else:
            result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if func.overloadpacket is torch.ops.aten.any:
            self._false.add(result.untyped_storage()._cdata)  # type: ignore[attr-defined]
        return result


def _all_places(mask: Tensor) -> Tensor:
    """What `nonzero` gives of a mask that is true everywhere: [numel, dim]."""
    return torch.zeros(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)


def _places_of(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Indices where masks are places: all of them."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            places.extend(_all_places(index).unbind(1))
        else:
            places.append(index)
    return places


@contextmanager
def simulate() -> Iterator[Ledger]:
    """Within the block, tensors have shapes and no memory, and the ledger says what they would take.

    Modules made inside have no memory either, so that a model far larger than this machine can be run. Every value read
    from a tensor is 1 or true, but for `any`, which is false. What kernels take for themselves, and what the allocator
    can't hand back, is not in it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        yield ledger


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
