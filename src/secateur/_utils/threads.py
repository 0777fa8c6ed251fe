"""Forward passes in parallel, one thread each, in place of one pass on all cores.

On a CPU a pass on two threads takes more than half of its time on one: the threads wait for one another between any two
operations, and Python runs on one of them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

__all__ = ["count", "each"]

T = TypeVar("T")
R = TypeVar("R")


def count(device: torch.device) -> int:
    """How many passes run at once on a device: as many as torch has threads on a CPU, else one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def each(work: Callable[[T], R], given: Sequence[T], threads: int) -> list[R]:
    """`work` of each item, in their order, without gradients; those that run at once share `threads`."""
    many = min(threads, len(given))
    if many <= 1:
        with torch.inference_mode():
            return [work(one) for one in given]
    before = torch.get_num_threads()

    @torch.inference_mode()
    def inside(one: T) -> R:
        if torch.get_num_threads() != threads // many:
            torch.set_num_threads(threads // many)
        return work(one)

    try:
        return list(_pool(threads).map(inside, given))
    finally:
        torch.set_num_threads(before)  # a thread's own, and what threads that are yet to come begin with


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, since what a thread allocates in its first pass serves the next ones: 8 % of a pass of MiniLM.

    Its threads are started by another one. Ctrl-C comes to the main thread: between the start of a thread and the line
    that notes it, it would leave one that nobody wakes, and for which the interpreter waits at its end.
    """
    made: list[ThreadPoolExecutor] = []

    def make() -> None:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="secateur")
        all_there = threading.Barrier(threads)
        try:
            waits = [pool.submit(all_there.wait) for _ in range(threads)]
        except RuntimeError:  # the interpreter ends, or the system has no thread left
            all_there.abort()
        else:
            wait(waits)
            made.append(pool)

    starter = threading.Thread(target=make, name="secateur")
    starter.start()
    starter.join()
    if not made:
        raise RuntimeError(f"{threads} threads could not be started: give torch fewer (OMP_NUM_THREADS)")
    return made[0]


if hasattr(os, "register_at_fork"):  # a forked process has the pools and none of their threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
