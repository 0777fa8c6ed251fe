"""Segments: operators that can be erased whole, in any network.

One forward pass is recorded as a graph: a vertex is an operator that ran, an edge a tensor that flowed. Maximal chains
between branching and joining points are segments. A segment that feeds a sum which has another summand, and gives zeros
when its own weights are zeros, can go: the sum is then the other summand, and whatever fed only the segment goes too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import InputError
from secateur.subjects.absent import form
from secateur.subjects.recording import Example, leaves, running, tensors_of
from secateur.subjects.shrinking import Plan, twin

__all__ = ["SITE", "Erasure", "Graph", "Segment", "Vertex", "trace"]

SITE = "segments"
"""The site's name among units."""

_SUMS = frozenset(["add", "add_", "sub", "sub_"])
_PRODUCTS = frozenset(["mul", "mul_", "mm", "bmm", "matmul", "convolution", "addmm", "linear"])
_JOINTS = frozenset(["cat", "stack"])
_MARK, _MADE = "_secateur_vertex", "_secateur_made"
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Vertex:
    """One operator that ran."""

    operator: str
    inputs: tuple[int, ...]
    """The vertices whose results it took, once for each time."""
    parameters: frozenset[str]
    """Parameters and buffers that it used."""
    calls: tuple[int, ...]
    """The module calls inside which it ran, the outermost first."""
    path: str
    """The module in which it ran."""
    sizes: tuple[tuple[int, ...], ...]
    """Shapes of its results."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of the tensor on each of `inputs`."""
    second: int = -1
    """The vertex of the second argument, for differences."""


@dataclass
class Call:
    """One run of a module."""

    path: str
    form: Any = None
    given: tuple[int, ...] = ()
    """The vertices that made what it returned; -1 for what none made."""


@dataclass(frozen=True)
class Segment:
    """A chain of operators without a branch."""

    name: str
    vertices: tuple[int, ...]
    parameters: tuple[str, ...]
    """Its trainable weights that nothing else uses: setting them to zero silences it."""
    reason: str = ""
    """Why it stays; empty for one that may be erased."""


@dataclass(frozen=True)
class Erasure:
    """What remains when segments go."""

    removed: tuple[str, ...]
    """Segments whose weights are to be zero: those asked for, and those that get no input any more."""
    dead: tuple[str, ...]
    """Segments whose results go nowhere any more."""
    live: frozenset[int]
    """Vertices on a path from input to output."""


@dataclass(eq=False)
class Graph:
    """The recorded pass as vertices in the order in which they ran; vertex 0 is the input."""

    vertices: list[Vertex] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    """The vertices that made the network's output."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Trainable parameter -> number of elements."""
    silent: Callable[[Iterable[str], int], bool] = lambda names, last: True
    """Whether the result of a vertex is zero when these parameters are."""
    protected: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> why it stays."""

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
        return self._back(frozenset(range(len(self.vertices))))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments with trainable weights, in the order in which they run."""
        users: dict[str, set[int]] = {}
        chains = self._chains()
        for number, chain in enumerate(chains):
            for place in chain:
                for name in self.vertices[place].parameters:
                    users.setdefault(name, set()).add(number)
        found: list[Segment] = []
        for number, chain in enumerate(chains):
            used = dict.fromkeys(n for place in chain for n in sorted(self.vertices[place].parameters))
            trained = [name for name in used if name in self.weights]
            if trained:
                own = tuple(name for name in trained if users[name] == {number})
                found.append(self._segment(chain, trained, own, {one.name for one in found}))
        return tuple(found)

    @cached_property
    def removable(self) -> tuple[Segment, ...]:
        """The segments that may be erased, one by one."""
        return tuple(one for one in self.segments if not one.reason)

    def _chains(self) -> list[tuple[int, ...]]:
        """Maximal chains; a vertex with several inputs, and the input, stand alone."""
        chains: list[list[int]] = []
        at: dict[int, int] = {}
        for place in sorted(self.useful):
            vertex = self.vertices[place]
            before = vertex.inputs[0] if len(vertex.inputs) == 1 else -1
            alone = before < 1 or len(self.vertices[before].inputs) > 1 or before not in at
            if not alone and len(self._users(before)) == 1:
                at[place] = at[before]
                chains[at[place]].append(place)
            elif place:
                at[place] = len(chains)
                chains.append([place])
        return [tuple(chain) for chain in chains]

    def _users(self, place: int) -> list[int]:
        """The useful takers of a vertex; the network's output is one more."""
        return [one for one in self.users[place] if one in self.useful] + [-1] * self.outputs.count(place)

    def _segment(self, chain: tuple[int, ...], trained: list[str], own: tuple[str, ...], taken: set[str]) -> Segment:
        places = [name.rpartition(".")[0] or name for name in own or trained]
        base = places[0] if places[0] == places[-1] else f"{places[0]}..{places[-1]}"
        name, number = base, 2
        while name in taken:
            name, number = f"{base} ({number})", number + 1
        return Segment(name, chain, own, self._reason(chain, own))

    def _reason(self, chain: tuple[int, ...], own: tuple[str, ...]) -> str:
        last = chain[-1]
        after = self._users(last)
        if after == [-1]:
            return "gives the output"
        if len(after) != 1:
            return "goes to several places"
        follower = self.vertices[after[0]]
        kind = follower.operator
        if kind not in _SUMS or len(follower.inputs) < 2:
            return f"does not feed a sum (but {kind})"
        if kind.startswith("sub") and follower.second != last:
            return "something is subtracted from it"
        if any(shape != follower.sizes[0] for shape in follower.shapes):
            return "is summed with a tensor of another shape"
        if not own:
            return "shares all its weights with others"
        for name in own:
            if name in self.protected:
                return self.protected[name]
        return "" if self.silent(own, last) else "gives more than zeros when its weights are zero"

    # ------------------------------------------------------------------------------------------------- validity

    def erase(self, names: Iterable[str]) -> Erasure | None:
        """What remains without these segments; None if the network would break: no way from input to output is left,
        or something that is not silent would get no input.

        Raises `InputError` for a name that is no removable segment.
        """
        known = {segment.name: segment for segment in self.removable}
        wanted = dict.fromkeys(names)
        for name in wanted:
            if name not in known:
                raise InputError(f"{name!r} is no segment that can be erased: {', '.join(known) or 'there is none'}")
        while True:
            gone = {place for one in self.segments if one.name in wanted for place in one.vertices}
            dead = self._dead(gone)
            if dead is None or any(place in dead for place in self.outputs):
                return None
            starved = [
                one for one in self.segments if one.name not in wanted and all(place in dead for place in one.vertices)
            ]
            if any(one.reason for one in starved):
                return None  # without input it would still give its biases, and it may not be erased
            wanted.update(dict.fromkeys(one.name for one in starved))
            if not starved:
                break
        live = self._back(self.useful - dead)
        return Erasure(
            tuple(one.name for one in self.segments if one.name in wanted),
            tuple(
                one.name
                for one in self.segments
                if one.name not in wanted and not any(place in live for place in one.vertices)
            ),
            live,
        )

    def _dead(self, gone: set[int]) -> set[int] | None:
        """The vertices that give nothing but zeros when `gone` do; None where something unknown would meet zeros."""
        dead: set[int] = set()
        for place in sorted(self.useful):
            vertex = self.vertices[place]
            missing = [one in dead for one in vertex.inputs]
            if place in gone or (missing and all(missing)):
                dead.add(place)
            elif any(missing) and vertex.operator not in _SUMS | _JOINTS:
                if vertex.operator not in _PRODUCTS:
                    return None
                dead.add(place)
        return dead

    def _back(self, within: Iterable[int]) -> frozenset[int]:
        """The vertices of `within` from which the output can be reached through them alone."""
        inside, found = set(within), set()
        waiting = [place for place in self.outputs if place in inside]
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                waiting += [one for one in self.vertices[place].inputs if one in inside]
        return frozenset(found)

    # ------------------------------------------------------------------------------------------------ what to do

    def plan(self, model: nn.Module, erasure: Erasure) -> Plan:
        """The modules to be replaced, the outermost possible, and the parameters that go beside them."""
        lost = frozenset(range(len(self.vertices))) - erasure.live
        inside: list[set[int]] = [set() for _ in self.calls]
        for place, vertex in enumerate(self.vertices):
            for one in vertex.calls:
                inside[one].add(place)
        used = {name for place in erasure.live for name in self.vertices[place].parameters}
        kept: set[str] = set()
        forms: dict[str, Any] = {}
        for number, call in enumerate(self.calls):
            fits = bool(inside[number]) and inside[number] <= lost and call.form != "?"
            fits = fits and all(one in lost and one >= 0 for one in call.given)
            fits = fits and (call.path not in forms or forms[call.path] == call.form)
            if not fits:
                kept.add(call.path)
            forms[call.path] = call.form
        names = {id(tensor): name for name, tensor in tensors_of(model).items()}
        absent: list[tuple[str, Any]] = []
        for path, module in model.named_modules():
            held = {names[id(t)] for t in (*module.parameters(), *module.buffers())}
            covered = any(path.startswith(f"{one}.") for one, _ in absent)
            if path and path in forms and path not in kept and not held & used and not covered:
                absent.append((path, forms[path]))
        every = {name for vertex in self.vertices for name in vertex.parameters}
        covered_names = tuple(f"{path}." for path, _ in absent)
        missing = tuple(
            sorted(name for name in every - used if not name.startswith(covered_names) and name in self.weights)
        )
        fresh = any(
            vertex.operator.endswith("_") and any(self.vertices[one].operator in _SUMS for one in vertex.inputs)
            for vertex in self.vertices
        )
        return Plan(absent=tuple(absent), missing=missing, fresh=fresh)


# ----------------------------------------------------------------------------------------------------- recording


def trace(model: nn.Module, example: Example, protected: Mapping[str, str] | None = None) -> Graph:
    """The graph of one forward pass in evaluation mode; `model` stays as it is."""
    shadow = twin(model, share=True).eval()
    graph = _recorded(shadow, example, {})
    graph.protected = protected or {}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    graph.weights = {name: p.numel() for name, p in model.named_parameters() if name in trained}
    known: dict[tuple[tuple[str, ...], int], bool] = {}

    def silent(names: Iterable[str], last: int) -> bool:
        key = (tuple(names), last)
        if key not in known:
            known[key] = _silent(model, example, set(key[0]), last)
        return known[key]

    graph.silent = silent
    return graph


def _silent(model: nn.Module, example: Example, names: set[str], last: int) -> bool:
    """Whether vertex `last` gives zeros when the parameters `names` are zeros, whatever statistics norms have."""
    changed = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name in names}
    for name, buffer in model.named_buffers():
        if name.endswith(_STATISTICS):
            changed[name] = torch.rand_like(buffer) + 0.5
    seen: list[bool] = []

    def watch(out: Any) -> None:
        seen.append(all(not bool(one.any()) for one in leaves(out)[0]))

    _recorded(twin(model, changed, share=True).eval(), example, {last: watch})
    return bool(seen) and all(seen)


def _recorded(model: nn.Module, example: Example, watch: Mapping[int, Callable[[Any], None]]) -> Graph:
    """`model` is in evaluation mode and may be written to."""
    graph = Graph([Vertex("input", (), frozenset(), (), "", (), ())])
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    stack: list[int] = []
    leaving = [False]

    def entered(path: str) -> None:
        if leaving[0]:
            leaving[0] = False
        else:
            stack.append(len(graph.calls))
            graph.calls.append(Call(path))

    mode = _Recorder(graph, names, stack, watch)

    def left(path: str, output: Any) -> None:
        call = graph.calls[stack.pop()]
        call.form = form(output)
        call.given = tuple(place for one in leaves(output)[0] for place in (mode.made(one) or (-1,)))
        leaving[0] = True

    with running(model, entered, left):
        args, kwargs = copy.copy(example).fresh()
        for value in leaves([args, kwargs])[0]:
            setattr(value, _MARK, 0)
        with mode:
            output = model(*args, **kwargs)
    found = dict.fromkeys(place for one in leaves(output)[0] for place in mode.made(one))
    # What Python reads off a tensor may decide anything: it belongs to the output.
    graph.outputs = tuple(dict.fromkeys([*found, *mode.read]))
    for tensor in tensors_of(model).values():
        for mark in (_MARK, _MADE):
            tensor.__dict__.pop(mark, None)
    return graph


class _Recorder(TorchDispatchMode):
    def __init__(
        self, graph: Graph, names: Mapping[int, str], stack: list[int], watch: Mapping[int, Callable[[Any], None]]
    ) -> None:
        super().__init__()
        self.graph, self.names, self.stack, self.watch = graph, names, stack, watch
        self.read: list[int] = []
        self._written: dict[int, int] = {}

    def made(self, value: Any) -> tuple[int, ...]:
        """The vertices on which the value of a tensor depends: what made it, and later writes to its storage."""
        if not isinstance(value, Tensor):
            return ()
        own = getattr(value, _MARK, -1)
        write = self._written.get(_storage(value), -1)
        return tuple(one for one in (own, write if write > own else -1) if one >= 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_flat((*args, *kwargs.values())))
        parameters = {n for one in given for n in self._names(one)}
        inputs = [(place, tuple(one.shape)) for one in given for place in self.made(one)]
        second = self.made(args[1]) if len(args) > 1 else ()
        out = func(*args, **kwargs)
        results = list(_flat((out,)))
        writes = [one for one, spec in zip(args, func._schema.arguments, strict=False) if _is_written(spec)]
        if not inputs:
            for one in (*results, *(w for w in writes if isinstance(w, Tensor))):
                if parameters and id(one) not in self.names:
                    setattr(one, _MADE, frozenset(parameters))
            return out
        place = len(self.graph.vertices)
        path = self.graph.calls[self.stack[-1]].path if self.stack else ""
        name = func.overloadpacket.__name__
        self.graph.vertices.append(
            Vertex(
                name,
                tuple(one for one, _ in inputs),
                frozenset(parameters),
                tuple(self.stack),
                path,
                tuple(tuple(one.shape) for one in results),
                tuple(shape for _, shape in inputs),
                second[-1] if second else -1,
            )
        )
        if not results or name in ("_local_scalar_dense", "nonzero", "equal"):
            self.read.append(place)
        views = _is_view(func)
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


def _flat(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _flat(value)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)
