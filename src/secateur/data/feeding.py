"""Batches read ahead by worker processes, in the order in which they are asked for.

What a batch holds is a function of its number, so that it is the same with any number of workers, and in a resumed run.
Workers are forked, which takes a tenth of a second, and write what they read into memory that they share with this
process; a container's small /dev/shm does not bound it. Where processes can't be forked this process reads itself.
"""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing import get_context, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from secateur._utils.plugins import line
from secateur.errors import InputError, RunError, SecateurError

__all__ = ["Ahead", "check_workers", "count_workers", "read_in_order"]

Batch: TypeAlias = Mapping[str, Any]
Work: TypeAlias = Callable[[int], Batch]

_MOST = 8
_EACH = 2
"""Batches that each worker may be ahead."""


def check_workers(workers: object) -> int | None:
    """A number of workers, or None for `count_workers`. Raises `InputError`."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise InputError(f"workers={workers!r}: give how many processes read images, 0 for none beside this one")
    return workers


def count_workers() -> int:
    """As many as this process has cores for, up to 8; those of one machine are shared by the processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Worker:
    """A process that reads batches, each into one of its places in memory.

    size: bytes of the largest "inputs" of a batch.
    """

    def __init__(self, work: Work, size: int) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, max(1, size) * _EACH)
        self._asked = self._done = 0
        context = get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=self._serve, args=(theirs, work), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on forks of a process with threads: this one's are not used there
            self.process.start()
        theirs.close()
        # Before multiprocessing waits for processes as Python ends: it asks by SIGTERM, which is not for this one.
        self._killer = util.Finalize(self, _kill, (self.process,), exitpriority=0)

    def ask(self, number: int) -> None:
        """Have a batch read; it must not be asked for more than `_EACH` that were not received."""
        self._asked += 1
        with suppress(OSError):  # a worker that is gone is told when its batch is received
            self._pipe.send(number)

    def receive(self) -> Batch:
        """The next of those that were asked for. Raises what went wrong in reading it, and `RunError`."""
        try:
            found = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RunError(
                f"a process that reads images was killed (exit code {self.process.exitcode}): memory may be short, so "
                "give fewer with --workers, or 0"
            ) from error
        if isinstance(found, Exception):
            raise found
        rest, shape, kind = found
        rest = {name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for name, part in rest.items()}
        if shape is not None:
            place = self._done % _EACH * self._size
            count = shape.numel()
            shared = torch.frombuffer(self._memory, dtype=kind, count=count, offset=place).view(shape)
            # A copy, since the worker writes its next batch there.
            rest["inputs"] = shared.pin_memory() if torch.cuda.is_available() else shared.clone()
        self._done += 1
        return dict(rest)

    def end(self) -> None:
        """Stop the process, whatever it is doing."""
        self._killer()
        self._pipe.close()

    def _serve(self, pipe: Connection, work: Work) -> None:
        """What the process does."""
        self._pipe.close()  # of the parent, at whose end this one ends
        for sign in (signal.SIGINT, signal.SIGTERM):  # may go to all processes: the parent saves its work, then ends us
            signal.signal(sign, signal.SIG_IGN)
        torch.set_num_threads(1)
        count = 0
        with suppress(EOFError, OSError):  # the parent is gone
            while True:
                number = pipe.recv()
                try:
                    batch = dict(work(number))
                    inputs = batch.pop("inputs", None)
                    # Masks go through the pipe: as tensors they would lie in /dev/shm.
                    rest = {name: part.numpy() if isinstance(part, Tensor) else part for name, part in batch.items()}
                    if isinstance(inputs, Tensor) and 0 < inputs.nbytes <= self._size:
                        start = count % _EACH * self._size
                        place = torch.frombuffer(self._memory, dtype=inputs.dtype, count=inputs.numel(), offset=start)
                        place.copy_(inputs.flatten())
                        pipe.send((rest | {"inputs": None}, inputs.shape, inputs.dtype))
                    else:
                        pipe.send(({"inputs": inputs, **rest}, None, None))
                except SecateurError as error:
                    pipe.send(type(error)(str(error)))
                except Exception as error:
                    pipe.send(InputError(f"images could not be read: {line(error)}"))
                count += 1
        os._exit(0)


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def read_in_order(work: Work, numbers: Iterable[int], workers: int, size: int) -> Iterator[Batch]:
    """`work(i)` for each of the numbers, in their order, done by so many processes ahead of time.

    size: bytes of the largest "inputs" that a batch holds. The workers end with the iterator.

    Raises what `work` raises, and `RunError` where a worker was killed.
    """
    if not workers or sys.platform != "linux":
        yield from map(work, numbers)
        return
    waiting = iter(numbers)
    pool: list[_Worker] = []
    turns: deque[_Worker] = deque()
    try:
        for number in itertools.islice(waiting, workers * _EACH):
            if len(pool) < workers:
                pool.append(_Worker(work, size))
            worker = pool[len(turns) % len(pool)] if len(turns) >= workers else pool[-1]
            worker.ask(number)
            turns.append(worker)
        while turns:
            worker = turns.popleft()
            batch = worker.receive()
            for number in itertools.islice(waiting, 1):
                worker.ask(number)
                turns.append(worker)
            yield batch
    finally:
        for worker in pool:
            worker.end()


class Ahead:
    """`ahead[i]` is `work(i)`; where numbers come in steps, workers read those that will be asked for next.

    workers: how many processes; 0 for this one. size: see `read_in_order`.
    """

    def __init__(self, work: Work, workers: int, size: int) -> None:
        self.work, self.workers, self.size = work, workers, size
        self._last: int | None = None
        self._step = 0
        self._values: Iterator[Batch] | None = None

    def __getitem__(self, index: int) -> Batch:
        step = 0 if self._last is None else index - self._last
        steady = step > 0 and step == self._step
        self._last, self._step = index, step
        if not steady:
            self._values = None
            return self.work(index)
        if self._values is None and self.workers:
            self._values = read_in_order(self.work, itertools.count(index, step), self.workers, self.size)
        return self.work(index) if self._values is None else next(self._values)
