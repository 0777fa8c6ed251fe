"""One forward pass as a graph: which operator's result flows into which, and which module ran when.

`recording` says which channels go together; this says what lies between two tensors, for what is left out whole. A
vertex is an operator that ran, an edge a tensor that flowed; writes in place and through views are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Argument, Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur._utils.outputs import leaves
from secateur.subjects.network.absent import form
from secateur.subjects.network.operators import Arguments, Keywords, is_view, name_of, tensors_in
from secateur.subjects.network.recording import Example, running, tensors_of

__all__ = ["SUMS", "Call", "Graph", "Vertex", "channels_along", "record"]

SUMS = frozenset(["add", "add_", "sub", "sub_"])
"""Operators that give a sum or a difference."""

_MARK, _MADE = "_secateur_vertex", "_secateur_made"


@dataclass(frozen=True)
class Vertex:
    """One operator that ran, or an input, which takes from none."""

    operator: str
    inputs: tuple[int, ...]
    """The vertices whose results it took, once for each time."""
    parameters: frozenset[str]
    """Parameters and buffers that it used."""
    calls: tuple[int, ...]
    """The module calls inside which it ran, the outermost first."""
    sizes: tuple[tuple[int, ...], ...]
    """Shapes of its results."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of the tensor on each of `inputs`."""
    second: int = -1
    """The vertex of the second argument, for differences."""


@dataclass
class Call:
    """One run of a module: the vertices `start` to `end` (exclusive) ran inside it."""

    path: str
    source: int
    """The vertex of the first tensor that it was given; -1 for none."""
    shape: tuple[int, ...]
    """Of that tensor."""
    start: int
    end: int = -1
    form: Any = None
    """What it returned, see `absent.form`."""
    made: tuple[int, ...] = ()
    """The vertices that made what it returned; -1 for what none made."""


@dataclass(eq=False)
class Graph:
    """The recorded pass as vertices in the order in which they ran, the inputs first."""

    vertices: list[Vertex] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    """In the order in which they began."""
    outputs: tuple[int, ...] = ()
    """The vertices that made the network's output, and those of which Python read a value: that may decide anything."""

    @property
    def batch(self) -> int:
        """Size of the first dimension of the first input."""
        first = self.vertices[0]
        return first.sizes[0][0] if not first.inputs and first.sizes[0] else 0

    @cached_property
    def users(self) -> list[list[int]]:
        """For each vertex, the vertices that take its results, once for each time."""
        found: list[list[int]] = [[] for _ in self.vertices]
        for place, vertex in enumerate(self.vertices):
            for one in vertex.inputs:
                found[one].append(place)
        return found

    @cached_property
    def useful(self) -> frozenset[int]:
        """Vertices between input and output."""
        return self.back(range(len(self.vertices)))

    @cached_property
    def takers(self) -> list[list[int]]:
        """For each vertex, its users that are useful; the network's output is one more, -1."""
        return [
            [one for one in users if one in self.useful] + [-1] * self.outputs.count(place)
            for place, users in enumerate(self.users)
        ]

    @cached_property
    def of(self) -> dict[str, list[Call]]:
        """Path -> its runs, in order."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    @cached_property
    def overwritten(self) -> bool:
        """Whether a sum is written into by what takes it."""
        return any(
            vertex.operator.endswith("_") and any(self.vertices[one].operator in SUMS for one in vertex.inputs)
            for vertex in self.vertices
        )

    @cached_property
    def _above(self) -> list[int]:
        """For each vertex, those it depends on, as bits of one number."""
        found: list[int] = []
        for vertex in self.vertices:
            bits = 0
            for one in vertex.inputs:
                bits |= found[one] | (1 << one)
            found.append(bits)
        return found

    def after(self, one: int, other: int) -> bool:
        """Whether vertex `one` depends on vertex `other`."""
        return bool(self._above[one] >> other & 1)

    def back(self, within: Iterable[int]) -> frozenset[int]:
        """The vertices of `within` from which the output can be reached through them alone."""
        inside, found = set(within), set()
        waiting = [place for place in self.outputs if place in inside]
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                waiting += [one for one in self.vertices[place].inputs if one in inside]
        return frozenset(found)


G = TypeVar("G", bound=Graph)


def record(
    model: nn.Module, example: Example, graph: G, watch: Mapping[int, Callable[[object], None]] | None = None
) -> G:
    """Run `model`, which is in evaluation mode and may be written to, and fill the empty `graph`.

    watch: vertex -> what is told its results.
    """
    mode = _Recorder(graph, {id(tensor): name for name, tensor in tensors_of(model).items()}, watch or {})
    with ExitStack() as stack:
        for path, module in model.named_modules():
            before, after = mode.hooks(path)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(running(model, lambda _: None))
        args, kwargs = example.fresh()
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                setattr(value, _MARK, len(graph.vertices))
                graph.vertices.append(Vertex("input", (), frozenset(), (), (tuple(value.shape),), ()))
        with mode:
            output = model(*args, **kwargs)
    graph.outputs = tuple(dict.fromkeys([*(p for one in leaves(output)[0] for p in mode.vertices_of(one)), *mode.read]))
    for tensor in tensors_of(model).values():
        for mark in (_MARK, _MADE):
            tensor.__dict__.pop(mark, None)
    return graph


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph, names: Mapping[int, str], watch: Mapping[int, Callable[[object], None]]) -> None:
        super().__init__()
        self.graph, self.names, self.watch = graph, names, watch
        self.stack: list[int] = []
        """The module calls that are going on."""
        self.read: list[int] = []
        """Vertices of which Python read a value."""
        self._written: dict[int, int] = {}

    def hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """What notes that the module at `path` begins and that it is done."""
        graph = self.graph

        def before(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            first = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
            source, shape = (
                (-1, ()) if first is None else (max(self.vertices_of(first), default=-1), tuple(first.shape))
            )
            self.stack.append(len(graph.calls))
            graph.calls.append(Call(path, source, shape, len(graph.vertices)))

        def after(_: nn.Module, args: object, output: object) -> None:
            call = graph.calls[self.stack.pop()]
            call.end, call.form = len(graph.vertices), form(output)
            call.made = tuple(place for one in leaves(output)[0] for place in (self.vertices_of(one) or (-1,)))

        return before, after

    def vertices_of(self, value: object) -> tuple[int, ...]:
        """The vertices on which the value of a tensor depends: what made it, and later writes to its storage."""
        if not isinstance(value, Tensor):
            return ()
        own = getattr(value, _MARK, -1)
        write = self._written.get(_storage(value), -1)
        return tuple(one for one in (own, write if write > own else -1) if one >= 0)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        parameters = {n for one in given for n in self._names(one)}
        inputs = [(place, tuple(one.shape)) for one in given for place in self.vertices_of(one)]
        second = self.vertices_of(args[1]) if len(args) > 1 else ()
        out = func(*args, **kwargs)
        results = list(tensors_in(out))
        writes = [one for one, spec in zip(args, func._schema.arguments, strict=False) if _is_written(spec)]
        if not inputs:
            for one in (*results, *(w for w in writes if isinstance(w, Tensor))):
                if parameters and id(one) not in self.names:
                    setattr(one, _MADE, frozenset(parameters))
            return out
        place = len(self.graph.vertices)
        name = name_of(func)
        self.graph.vertices.append(
            Vertex(
                name,
                tuple(one for one, _ in inputs),
                frozenset(parameters),
                tuple(self.stack),
                tuple(tuple(one.shape) for one in results),
                tuple(shape for _, shape in inputs),
                second[-1] if second else -1,
            )
        )
        if not results or name in ("_local_scalar_dense", "nonzero", "equal"):
            self.read.append(place)
        views = is_view(func)
        for one in results:
            if not views and not writes:
                self._written.pop(_storage(one), None)
            setattr(one, _MARK, place)
        for one in writes:
            if isinstance(one, Tensor):
                self._written[_storage(one)] = place
                setattr(one, _MARK, place)
        if place in self.watch:
            self.watch[place](out)
        return out

    def _names(self, value: Tensor) -> Iterable[str]:
        if id(value) in self.names:
            return (self.names[id(value)],)
        found: Iterable[str] = getattr(value, _MADE, ())
        return found


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor lies in; which tensor it is, where it has none of its own, as inside `vmap`."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        return id(tensor)


def _is_written(argument: Argument) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def channels_along(module: nn.Module, rank: int) -> int:
    """The dimension of a module's input that holds channels: 1 for what convolves or normalises maps, else the last."""
    for part in module.modules():
        if any(True for _ in part.parameters(recurse=False)):
            maps = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
            return 1 if isinstance(part, maps) or type(part).__name__.endswith("2d") else rank - 1
    return 1 if rank == 4 else rank - 1
