"""What erasing segments leaves of a forward pass, before anything is erased."""

from __future__ import annotations

from typing import Any

from secateur.errors import InputError
from secateur.subjects.network import graph as graphs
from secateur.subjects.network.flops import Counter
from secateur.subjects.network.graph import Graph
from secateur.subjects.network.shrinking import twin
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Selection

__all__ = ["flops"]


def flops(subject: Traced, selection: Selection) -> float:
    """FLOPs of a forward pass on the example inputs without the segments that `selection` does not keep.

    Those of all operators that still lie between input and output, multiply and add counted as two. Raises `InputError`
    where the network would break without them.
    """
    erasure = subject.erasure(selection)
    if erasure is None:
        raise InputError("without these segments no way leads from the input to the output: keep one of them")
    seen = Graph()
    with _Each(seen) as mode:
        graphs.record(twin(subject.model, share=True).eval(), subject.inputs, seen)
    # Vertices are numbered in the order in which operators run, here as in the subject's own graph.
    return float(sum(cost for place, cost in mode.each.items() if place in erasure.live))


class _Each(Counter):
    """FLOPs by the vertex that an operator becomes in a graph that is being recorded inside."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.each: dict[int, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, place = self.total, len(self.graph.vertices)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.each[place] = self.each.get(place, 0.0) + self.total - before
        return out
