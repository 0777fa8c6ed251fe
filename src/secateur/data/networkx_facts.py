"""Graphs of networkx as facts: an edge is a fact, one of its attributes the relation, and the others are known of it.

networkx itself is not needed: whatever has its methods will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, runtime_checkable

from secateur.clients.stores import Embedded
from secateur.data import triples
from secateur.errors import InputError

__all__ = ["Network", "load"]

_NAMES = ("name", "label")
"""Attributes of a node that name it, the first that is there."""
_KINDS = ("kind", "type")
"""The same for its kind."""


@runtime_checkable
class Network(Protocol):
    """What is used of a graph of networkx."""

    nodes: Any
    edges: Any

    def is_directed(self) -> bool:
        """Whether an edge has a beginning and an end."""
        ...

    def is_multigraph(self) -> bool:
        """Whether edges have keys, so that several may lead from one node to another."""
        ...


class _Node(NamedTuple):
    text: str
    name: str
    kind: str


class _Edge(NamedTuple):
    start: _Node
    relation: str
    end: _Node
    known: dict[str, list[str]]


def load(network: Network, store: Embedded, *, relation: str = "relation") -> int:
    """The facts of a graph of networkx into a store; returns how many triples were given to it.

    Args:
        network: a `DiGraph` or `MultiDiGraph`. A node is called by its attribute `name` or `label`, or else as it is
            written, and is of the kind that its `kind` or `type` says.
        store: opened for writing, or in memory.
        relation: the attribute of edges that says how their ends are related; where it is missing, the key of an edge
            of a `MultiDiGraph` does, if it is text. What else an edge says is known of its fact, each value of a list.

    Raises `InputError` for edges without direction or relation, for no edges, and for nodes that are written alike.
    """
    if not network.is_directed():
        raise InputError("the graph has no directions, and facts do: give a DiGraph or a MultiDiGraph")
    edges = list(_edges(network, relation))
    if not edges:
        raise InputError("the graph has no edges: give at least one fact")
    return triples.load_rows(_rows(edges, known := _list_properties(edges)), known, store)


def _nodes(network: Network) -> dict[Any, _Node]:
    found, written = dict[Any, _Node](), dict[str, Any]()
    for node, said in network.nodes(data=True):
        text = _text(node)
        if not text:
            raise InputError(f"the node {node!r} is written as nothing: give it a text")
        if text in written:
            raise InputError(f"the nodes {written[text]!r} and {node!r} are written alike: give each a text of its own")
        written[text] = node
        found[node] = _Node(text, _first(said, _NAMES), _first(said, _KINDS))
    return found


def _edges(network: Network, relation: str) -> Iterator[_Edge]:
    nodes, keyed = _nodes(network), network.is_multigraph()
    for start, end, *key, said in network.edges(data=True, keys=True) if keyed else network.edges(data=True):
        verb = _text(said.get(relation)) or (key[0] if key and isinstance(key[0], str) else "")
        if not verb:
            raise InputError(
                f"the edge from {start!r} to {end!r} has no {relation!r}: say by relation= which attribute names what "
                "edges mean"
            )
        known = {_text(name): _values(value) for name, value in said.items() if name != relation}
        yield _Edge(nodes[start], verb, nodes[end], known)


def _list_properties(edges: Sequence[_Edge]) -> list[str]:
    """What edges say beside their relation."""
    return list(dict.fromkeys(name for edge in edges for name in edge.known if name))


def _rows(edges: Sequence[_Edge], known: Sequence[str]) -> Iterator[list[str]]:
    """A row for each edge, or several where one says several values."""
    for start, verb, end, said in edges:
        begun = [start.text, verb, end.text, start.name, end.name, start.kind, end.kind]
        values = zip_longest(*(said.get(name, [""]) for name in known), fillvalue="")
        yield from ([*begun, *row] for row in list(values) or [()])


def _first(said: Mapping[Any, Any], names: Sequence[str]) -> str:
    return next((text for name in names if (text := _text(said.get(name)))), "")


def _values(value: Any) -> list[str]:
    return [_text(one) for one in value] if isinstance(value, list | tuple | set | frozenset) else [_text(value)]


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
