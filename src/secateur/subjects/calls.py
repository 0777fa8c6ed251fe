"""Which operator's result flows into which, and which module ran when: one forward pass as a graph.

`recording` says which channels go together; this says what lies between two tensors, for what is left out whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.subjects.recording import Example, leaves, running
from secateur.subjects.shrinking import twin

__all__ = ["Call", "Calls", "Node", "calls", "channels_along"]

_MARK = "_secateur_node"


@dataclass(frozen=True)
class Node:
    """One operator that ran: its name, the nodes it took from, and the shape of what it gave."""

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One run of a module: nodes `start` to `end` (exclusive) are its own."""

    path: str
    source: int
    """The node of the first tensor it was given; -1 for none."""
    shape: tuple[int, ...]
    """Of that tensor."""
    output: int
    """The node of the first tensor it returned."""
    form: Any
    """What it returned: "*" for a tensor; a list with None for all that is none."""
    start: int
    end: int


@dataclass(eq=False)
class Calls:
    """A recorded pass."""

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    batch: int = 0
    """Size of the first dimension of the first example input."""

    @cached_property
    def above(self) -> list[int]:
        """For each node, the nodes it depends on, as bits of one number."""
        found: list[int] = []
        for node in self.nodes:
            bits = 0
            for one in node.inputs:
                bits |= found[one] | (1 << one)
            found.append(bits)
        return found

    @cached_property
    def users(self) -> list[list[int]]:
        """For each node, the nodes that take from it and on which the output depends."""
        found: list[list[int]] = [[] for _ in self.nodes]
        last = len(self.nodes) - 1
        for place in range(last, -1, -1):
            if place == last or found[place]:
                for one in self.nodes[place].inputs:
                    found[one].insert(0, place)
        return found

    @cached_property
    def of(self) -> dict[str, list[Call]]:
        """Path -> its runs, in order."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    def after(self, one: int, other: int) -> bool:
        """Whether node `one` depends on node `other`."""
        return bool(self.above[one] >> other & 1)


def calls(model: nn.Module, example: Example) -> Calls:
    """Run a copy of `model` in evaluation mode and note what ran."""
    shadow = twin(model, share=True).eval()
    found = Calls()
    with ExitStack() as stack:
        for path, module in shadow.named_modules():
            before, after = _hooks(found, path)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(running(shadow, lambda _: None))
        args, kwargs = example.fresh()
        given = leaves([*args, *kwargs.values()])[0]
        found.batch = len(given[0]) if given and given[0].dim() else 0
        for value in given:
            setattr(value, _MARK, len(found.nodes))
            found.nodes.append(Node("input", (), tuple(value.shape)))
        stack.enter_context(_Recorder(found))
        output = shadow(*args, **kwargs)
    ends = dict.fromkeys(getattr(one, _MARK) for part in leaves(output) for one in part if hasattr(one, _MARK))
    found.nodes.append(Node("output", tuple(ends), ()))
    found.calls.sort(key=lambda call: (call.start, -call.end))
    return found


class _Recorder(TorchDispatchMode):
    def __init__(self, found: Calls) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = dict.fromkeys(
            getattr(one, _MARK)
            for value in (*args, *kwargs.values())
            for one in (value if isinstance(value, list | tuple) else (value,))
            if isinstance(one, Tensor) and hasattr(one, _MARK)
        )
        out = func(*args, **kwargs)
        if inputs:
            place = len(self.found.nodes)
            values = [one for one in (out if isinstance(out, list | tuple) else [out]) if isinstance(one, Tensor)]
            shape = tuple(values[0].shape) if values else ()
            self.found.nodes.append(Node(func.overloadpacket.__name__, tuple(inputs), shape))
            for value in values:
                setattr(value, _MARK, place)
        return out


def _hooks(found: Calls, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
    began: list[tuple[int, int, tuple[int, ...]]] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        first = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        source = -1 if first is None else getattr(first, _MARK, -1)
        began.append((len(found.nodes), source, () if first is None else tuple(first.shape)))

    def after(_: nn.Module, args: Any, output: Any) -> None:
        start, source, shape = began.pop()
        first = leaves(output)[0]
        place = getattr(first[0], _MARK, -1) if first else -1
        found.calls.append(Call(path, source, shape, place, _form(output), start, len(found.nodes)))

    return before, after


def _form(output: Any) -> Any:
    if isinstance(output, Tensor):
        return "*"
    if type(output) in (tuple, list):
        return ["*" if isinstance(one, Tensor) else None for one in output]
    return None


def channels_along(module: nn.Module, rank: int) -> int:
    """The dimension of a module's input that holds channels: 1 for what convolves or normalises maps, else the last."""
    for part in module.modules():
        if any(True for _ in part.parameters(recurse=False)):
            maps = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
            return 1 if isinstance(part, maps) or type(part).__name__.endswith("2d") else rank - 1
    return 1 if rank == 4 else rank - 1
