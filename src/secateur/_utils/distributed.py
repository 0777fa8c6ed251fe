"""Processes started together by torchrun or accelerate launch: rank, number, barrier, sum, and work of the first alone.

All of them run the same lines. Where one alone is to write or decide, the first does (`by_first`); counts of shares are
summed (`total`). A process started alone is the first of one, and nothing here loads a library then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.errors import RunError, SecateurError

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

__all__ = ["broadcast", "by_first", "count", "end", "gather", "index", "shard_like", "total", "wait"]

_SIGNS = ("LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which Accelerate knows that a process has others beside it; WORLD_SIZE some clusters set in any case."""

_PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first measures and saves while the others wait."""

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return 1 if _ALONE.get() or not any(sign in os.environ for sign in _SIGNS) else int(_state().num_processes)


def index() -> int:
    """Which of them this one is, from 0."""
    return 0 if count() == 1 else int(_state().process_index)


def wait() -> None:
    """Wait until all processes have reached this line."""
    if count() > 1:
        from torch import distributed

        with _explain_lost_process():
            distributed.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum of the `tensor` of each process, in place of it."""
    if count() == 1:
        return tensor
    from torch import distributed

    # NCCL knows no tensors of the CPU, where the model may be on a machine with GPUs.
    there = tensor.to(_state().device) if distributed.get_backend() == "nccl" else tensor
    with _explain_lost_process():
        distributed.all_reduce(there)
    return tensor if there is tensor else tensor.copy_(there)


def broadcast(tensor: Tensor) -> Tensor:
    """The `tensor` of the first process, in place of that of each."""
    if count() == 1:
        return tensor
    from torch import distributed

    there = tensor.detach().contiguous()
    there = there.to(_state().device) if distributed.get_backend() == "nccl" else there
    with _explain_lost_process():
        distributed.broadcast(there, 0)
    return tensor if there.data_ptr() == tensor.data_ptr() else tensor.copy_(there)


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` on the device of `like`, and sharded as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


def by_first(work: Callable[[], T]) -> T:
    """What `work` gives to the first process, which alone does it: a plain value, for all of them.

    What it raises, all raise. Whatever it calls has nobody beside it.
    """
    if count() == 1:
        return work()
    from torch import distributed

    told: list[Any] = [None, None]
    failed: Exception | None = None
    if index() == 0:
        mark = _ALONE.set(True)
        try:
            told[0] = work()
        except Exception as error:
            failed = error
            told[1] = error if isinstance(error, SecateurError) else RunError(f"the first process failed: {error}")
        finally:
            _ALONE.reset(mark)
    with _explain_lost_process():
        distributed.broadcast_object_list(told, 0)
    if failed is not None or told[1] is not None:
        raise failed or told[1]
    result: T = told[0]
    return result


def gather(value: T) -> list[T]:
    """The plain `value` of each process, in their order, for all of them."""
    if count() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * count()
    with _explain_lost_process():
        distributed.all_gather_object(values, value)
    return values


def end() -> None:
    """Leave the process group, as some of its libraries require before the end."""
    if count() > 1:
        _state().destroy_process_group()


def _state() -> PartialState:
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_PATIENCE)


@contextmanager
def _explain_lost_process() -> Iterator[None]:
    """Turn torch's error about a process that has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this run has ended: mend what it complains of, and run the same command again"
        ) from error
