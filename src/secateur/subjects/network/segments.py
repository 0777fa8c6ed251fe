"""Segments: operators that can be erased whole, in any network.

Maximal chains of operators between branching and joining points of a recorded pass are segments. A segment that feeds a
sum which has another summand, and gives zeros when its own weights are zeros, can go: the sum is then the other
summand, and whatever fed only the segment goes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload

from secateur._utils.outputs import leaves
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network.coupling import keep_mask
from secateur.subjects.network.flops import Counter
from secateur.subjects.network.graph import SUMS, Graph, record
from secateur.subjects.network.operators import Arguments, Keywords
from secateur.subjects.network.recording import Example, tensors_of
from secateur.subjects.network.shrinking import Plan, twin
from secateur.vocabulary import Budget, Selection, Site, Units

if TYPE_CHECKING:
    from secateur.subjects.network.traced import Traced

__all__ = ["SITE", "Erasure", "Segment", "Segments", "flops_without", "refuse", "trace"]

SITE = "segments"
"""The site's name among units."""

_PRODUCTS = frozenset(["mul", "mul_", "mm", "bmm", "matmul", "convolution", "addmm", "linear"])
_JOINTS = frozenset(["cat", "stack"])
_STATISTICS = ("running_mean", "running_var")


def refuse(budget: Budget) -> None:
    """Raise `UnsupportedError` where a budget of what cuts channels without training limits segments."""
    if SITE in budget:
        raise UnsupportedError(
            f"budget {budget}: segments are erased while training, by `secateur run otov3 MODEL --budget {SITE}=50% "
            "--data DATA --out OUT`; give channels=, params=, bytes= or flops= here"
        )


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
class Segments(Graph):
    """The recorded pass, and the chains that it is made of."""

    weights: Mapping[str, int] = field(default_factory=dict)
    """Trainable parameter -> number of elements."""
    silent: Callable[[Iterable[str], int], bool] = lambda names, last: True
    """Whether the result of a vertex is zero when these parameters are."""
    protected: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> why it stays."""

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

    def units(self, model: nn.Module) -> Units:
        """One site: segments with their own parameters, and those that go with one alone.

        Raises `UnsupportedError` where none can be erased.
        """
        if not self.removable:
            reasons = dict.fromkeys(segment.reason for segment in self.segments)
            raise UnsupportedError(
                f"no segment of this {type(model).__name__} can be erased: {'; '.join(reasons) or 'it has none'}"
            )
        parameters = dict(model.named_parameters())
        columns = {measure: np.zeros(len(self.removable)) for measure in ("params", "bytes")}
        for place, segment in enumerate(self.removable):
            own = [parameters[name] for name in (*segment.parameters, *self.lost[segment.name]) if name in parameters]
            columns["params"][place] = sum(p.numel() for p in own)
            columns["bytes"][place] = sum(p.numel() * p.element_size() for p in own)
        whole = {
            "params": sum(p.numel() for p in parameters.values()),
            "bytes": sum(p.numel() * p.element_size() for p in parameters.values()),
        }
        base = {measure: whole[measure] - float(column.sum()) for measure, column in columns.items()}
        own_columns = {SITE: np.ones(len(self.removable)), **columns}
        return Units({SITE: Site(SITE, len(self.removable), own_columns)}, (), base)

    def removed_segments(self, selection: Selection) -> list[str]:
        """Names of the segments that a selection does not keep."""
        mask = keep_mask(selection, SITE, len(self.removable))
        return [segment.name for segment, stays in zip(self.removable, mask, strict=True) if not stays]

    def _chains(self) -> list[tuple[int, ...]]:
        """Maximal chains; a vertex with several inputs, and the input, stand alone."""
        chains: list[list[int]] = []
        at: dict[int, int] = {}
        for place in sorted(self.useful):
            vertex = self.vertices[place]
            before = vertex.inputs[0] if len(vertex.inputs) == 1 else -1
            alone = before < 0 or len(self.vertices[before].inputs) > 1 or before not in at
            if not alone and len(self.takers[before]) == 1:
                at[place] = at[before]
                chains[at[place]].append(place)
            elif vertex.inputs:
                at[place] = len(chains)
                chains.append([place])
        return [tuple(chain) for chain in chains]

    def _segment(self, chain: tuple[int, ...], trained: list[str], own: tuple[str, ...], taken: set[str]) -> Segment:
        places = [name.rpartition(".")[0] or name for name in own or trained]
        base = places[0] if places[0] == places[-1] else f"{places[0]}..{places[-1]}"
        name, number = base, 2
        while name in taken:
            name, number = f"{base} ({number})", number + 1
        return Segment(name, chain, own, self._reason(chain, own))

    def _reason(self, chain: tuple[int, ...], own: tuple[str, ...]) -> str:
        last = chain[-1]
        after = self.takers[last]
        if after == [-1]:
            return "gives the output"
        if len(after) != 1:
            return "goes to several places"
        follower = self.vertices[after[0]]
        kind = follower.operator
        if kind not in SUMS or len(follower.inputs) < 2:
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
        live = self.back(self.useful - dead)
        return Erasure(
            tuple(one.name for one in self.segments if one.name in wanted),
            tuple(
                one.name
                for one in self.segments
                if one.name not in wanted and not any(place in live for place in one.vertices)
            ),
            live,
        )

    @cached_property
    def lost(self) -> dict[str, tuple[str, ...]]:
        """Removable segment -> parameters beside its own that go with it alone; each is named once, for the first.

        Those of segments that can go themselves are their own.
        """
        every = dict.fromkeys(name for place in sorted(self.useful) for name in sorted(self.vertices[place].parameters))
        taken = {name for one in self.removable for name in one.parameters}
        found = {}
        for one in self.removable:
            erasure = self.erase([one.name])
            used = {name for place in erasure.live for name in self.vertices[place].parameters} if erasure else every
            found[one.name] = tuple(name for name in every if name not in used and name not in taken)
            taken.update(found[one.name])
        return found

    def _dead(self, gone: set[int]) -> set[int] | None:
        """The vertices that give nothing but zeros when `gone` do; None where something unknown would meet zeros."""
        dead: set[int] = set()
        for place in sorted(self.useful):
            vertex = self.vertices[place]
            missing = [one in dead for one in vertex.inputs]
            if place in gone or (missing and all(missing)):
                dead.add(place)
            elif any(missing) and vertex.operator not in SUMS | _JOINTS:
                if vertex.operator not in _PRODUCTS:
                    return None
                dead.add(place)
        return dead

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
            fits = fits and all(one in lost and one >= 0 for one in call.made)
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
        return Plan(absent=tuple(absent), missing=missing, fresh=self.overwritten)


# ----------------------------------------------------------------------------------------------------- recording


def trace(model: nn.Module, example: Example, protected: Mapping[str, str] | None = None) -> Segments:
    """The graph of one forward pass in evaluation mode; `model` stays as it is."""
    graph = record(twin(model, share=True).eval(), example, Segments(protected=protected or {}))
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

    def watch(out: object) -> None:
        seen.append(all(not bool(one.any()) for one in leaves(out)[0]))

    record(twin(model, changed, share=True).eval(), example, Graph(), {last: watch})
    return bool(seen) and all(seen)


# ------------------------------------------------------------------------------------------------------------- costs


def flops_without(subject: Traced, selection: Selection) -> float:
    """FLOPs of a forward pass on the example inputs without the segments that `selection` does not keep.

    Those of all operators that still lie between input and output, multiply and add counted as two. Raises `InputError`
    where the network would break without them.
    """
    erasure = subject.erasure(selection)
    if erasure is None:
        raise InputError("without these segments no way leads from the input to the output: keep one of them")
    seen = Graph()
    with _CounterByVertex(seen) as mode:
        record(twin(subject.model, share=True).eval(), subject.inputs, seen)
    # Vertices are numbered in the order in which operators run, here as in the subject's own graph.
    return float(sum(cost for place, cost in mode.each.items() if place in erasure.live))


class _CounterByVertex(Counter):
    """FLOPs by the vertex that an operator becomes in a graph that is being recorded inside."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.each: dict[int, float] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        before, place = self.total, len(self.graph.vertices)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.each[place] = self.each.get(place, 0.0) + self.total - before
        return out
