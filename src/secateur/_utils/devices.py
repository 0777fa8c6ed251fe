"""Where a model wants its inputs, and the one function that brings a batch, a label or a mask there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "find_device", "find_hooks", "find_offloaded", "free_memory", "is_fixed", "is_offloaded", "is_out_of_memory",
    "move", "seed",
]  # fmt: skip

T = TypeVar("T")


def find_device(model: object) -> torch.device:
    """Where `model` wants its inputs: on the device of its first tensor that holds values; on the CPU without any.

    A model that Accelerate has split over devices or offloaded (`device_map`) says itself where its inputs go.
    """
    hook = getattr(model, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        execution = hook.execution_device
        return torch.device("cuda", execution) if isinstance(execution, int) else torch.device(execution)
    first = torch.device("cpu")
    if isinstance(model, nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            first = tensor.device
            if first.type != "meta":
                break
    return first


def is_fixed(model: nn.Module) -> bool:
    """Whether the model can't be moved: Accelerate has split it over devices, or bitsandbytes has quantised it."""
    placed = set((getattr(model, "hf_device_map", None) or {}).values())
    return len(placed) > 1 or any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


def find_offloaded(model: nn.Module) -> dict[str, Tensor]:
    """Name -> values, in main memory or on the disk, of the parameters that Accelerate brings when a module runs."""
    values = dict[str, Tensor]()
    for path, module in model.named_modules():
        stored = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if stored is None:
            continue
        for leaf, parameter in module.named_parameters():
            if parameter.is_meta and leaf in stored:
                values[f"{path}.{leaf}" if path else leaf] = stored[leaf]
    return values


def find_hooks(module: nn.Module) -> list[Any]:
    """Accelerate's hooks on a module that bring it weights when it runs, or have been told not to for a while."""
    hook = getattr(module, "_hf_hook", None)
    return [one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "weights_map", None) is not None]


def is_offloaded(model: nn.Module) -> bool:
    """Whether Accelerate keeps weights of the model elsewhere than on a device, and brings them when a module runs."""
    return any(hook.offload for module in model.modules() for hook in find_hooks(module))


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device, or the group of processes that this one is in, has free; None where nothing says so."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    free = list[int]()
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text("ascii")) - int((group / "memory.current").read_text("ascii")))
    except (OSError, ValueError):  # another system, or "max": a group without a limit
        pass
    return min(free, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says that a device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def seed(number: int) -> None:
    """Seed torch's generators, of all devices.

    Without an accelerator `torch.manual_seed` notes down the whole stack of calls for one that may come: longer than a
    small step.
    """
    seeded = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seeded(number)


def move(batch: T, to: torch.device | nn.Module | Tensor) -> T:
    """`batch` with every tensor in it on a device, or where a model wants its inputs, or where another tensor lies.

    batch: a tensor, or mappings, lists and tuples with tensors in them; all else in it stays as it is. What is there
    already is not copied: a batch that is there as a whole is given back itself. From pinned memory the copy runs while
    the host goes on.
    """
    device = to if isinstance(to, torch.device) else to.device if isinstance(to, Tensor) else find_device(to)
    return _move(batch, device)  # type: ignore[return-value]


def _move(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=value.device.type == "cpu")
    if isinstance(value, Mapping):
        moved = {name: _move(part, device) for name, part in value.items()}
        if all(moved[name] is part for name, part in value.items()):
            return value
        return moved if type(value) is dict else _rebuild_mapping(value, moved)
    if isinstance(value, list | tuple):
        parts = [_move(part, device) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        if isinstance(value, list):
            return parts
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    return value


def _rebuild_mapping(value: Mapping[object, object], moved: dict[object, object]) -> object:
    """A mapping of the same kind, such as a tokenizer's output or a model's; a dict where its kind takes no dict."""
    try:
        return type(value)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
