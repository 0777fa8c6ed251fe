"""Subject `knowledge_graph`: a graph of facts in a store, and the facts or paths of it that a model is to read.

Facts are RDF triples between IRIs, or from an IRI to a literal. Names are `rdfs:label` and its kin; kinds of things
`rdf:type`; what is known of one fact (its sources, scores) stands on an `rdf:Statement` about it. So any SPARQL 1.1
endpoint can be read, and what `files.triples` loads is read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from secateur.errors import InputError
from secateur.stores import Row, Store, Value, iri
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Fact", "Facts", "KnowledgeGraph", "Line"]

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
TYPE = f"{RDF}type"
NAMES = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#prefLabel",
    "http://schema.org/name",
    "http://rdf.freebase.com/ns/type.object.name",
)
"""What gives a thing its name, the first that is there."""
_ABOUT = (f"{RDF}subject", f"{RDF}predicate", f"{RDF}object")
_TECHNICAL = {TYPE, *NAMES, *_ABOUT}
_AT_ONCE = 256
"""Nodes that one query asks about."""


class Fact(NamedTuple):
    """A triple: subject and predicate are IRIs, and so is the object unless it is a literal."""

    subject: str
    predicate: str
    object: str
    literal: bool = False


class KnowledgeGraph:
    """Facts in a store.

    Args:
        store: `stores.Embedded`, `stores.Endpoint` or whatever answers as they do.
        language: of names, where there are several.
        most: facts that are read of one node in one direction at most; a node with more (a hub) is read in part, always
            the same part, and `crowded` names it.
    """

    def __init__(self, store: Store, *, language: str = "en", most: int = 10_000) -> None:
        if most < 1:
            raise InputError(f"most={most}: give the facts that are read of one node, at least 1")
        self.store, self.language, self.most = store, language, most
        self.crowded: set[str] = set()
        self._names: dict[str, str] = {}

    def around(self, nodes: Iterable[str], *, literals: bool = False, most: int = 0) -> list[Fact]:
        """The facts one hop around nodes, in both directions, each once, sorted.

        literals: also what is said of them in words and numbers, other than their names. most: instead of the graph's.
        """
        asked, limit, found = sorted(set(nodes)), most or self.most, set[Fact]()
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            found |= self._beside(part, 0, limit, literals) | self._beside(part, 2, limit, False)
        return sorted(found)

    def _beside(self, nodes: Sequence[str], end: int, limit: int, literals: bool) -> set[Fact]:
        """Facts whose subject (end 0) or object (end 2) is one of `nodes`, at most `limit` of each."""
        skip = ", ".join(iri(name) for name in sorted(_TECHNICAL))
        kept = f"FILTER(?p NOT IN ({skip}))"
        kept += " FILTER(isIRI(?s))" if end else "" if literals else " FILTER(isIRI(?o))"
        asked, bound = "?o" if end else "?s", [iri(node) for node in nodes]
        rows = self.store.select(
            f"SELECT ?s ?p ?o WHERE {{ VALUES {asked} {{ {' '.join(bound)} }} ?s ?p ?o {kept} }} LIMIT {4 * limit}"
        )
        if len(rows) >= 4 * limit:  # a hub is among them: each node is asked on its own, for as many as it may have
            given, where = ("?p ?s", "?s ?p {0}") if end else ("?p ?o", "{0} ?p ?o")
            parts = (
                f"{{ SELECT ({node} AS {asked}) {given} WHERE {{ {where.format(node)} {kept} }} LIMIT {limit + 1} }}"
                for node in bound
            )
            rows = self.store.select(f"SELECT ?s ?p ?o WHERE {{ {' UNION '.join(parts)} }}")
        return self._bounded(rows, limit, end)

    def _bounded(self, rows: Sequence[Row], limit: int, end: int) -> set[Fact]:
        """Facts of rows, of each node at `end` as many as are allowed."""
        many, found = dict[str, int](), set[Fact]()
        for row in rows:
            if len(row) != 3 or row[0] is None or row[1] is None or row[2] is None:
                continue  # an endpoint that lies
            fact = Fact(row[0].text, row[1].text, row[2].text, row[2].kind == "literal")
            node = fact[end]
            many[str(node)] = many.get(str(node), 0) + 1
            if many[str(node)] > limit:
                self.crowded.add(str(node))
            else:
                found.add(fact)
        return found

    def names(self, nodes: Iterable[str]) -> dict[str, str]:
        """Node -> its name: in the graph's language, else without one, else any; else the end of its IRI."""
        asked = sorted(set(nodes))
        new = [node for node in asked if node not in self._names]
        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            values = " ".join(map(iri, part))
            each = (f"{{ VALUES ?s {{ {values} }} ?s {iri(name)} ?n BIND({iri(name)} AS ?p) }}" for name in NAMES)
            rows = self.store.select(f"SELECT ?s ?p ?n WHERE {{ {' UNION '.join(each)} }}")
            best: dict[str, tuple[int, int, str]] = {}
            for node, predicate, name in (row for row in rows if len(row) == 3 and None not in row):
                assert isinstance(node, Value)
                assert isinstance(predicate, Value)
                assert isinstance(name, Value)
                if name.kind != "literal" or predicate.text not in NAMES or not name.text.strip():
                    continue
                fit = 0 if name.language.split("-")[0] == self.language else 2 if name.language else 1
                rank = (fit, NAMES.index(predicate.text), " ".join(name.text.split()))
                best[node.text] = min(best.get(node.text, rank), rank)
            self._names |= {node: best[node][2] if node in best else spoken(node) for node in part}
        return {node: self._names[node] for node in asked}

    def things(self) -> Iterator[tuple[str, str]]:
        """(node, name) of all that has a name, in the order of nodes."""
        named = " ".join(map(iri, NAMES))
        rows = self.store.select(f"SELECT DISTINCT ?s WHERE {{ VALUES ?p {{ {named} }} ?s ?p ?n FILTER(isIRI(?s)) }}")
        nodes = sorted(row[0].text for row in rows if row and row[0] is not None)
        yield from self.names(nodes).items()


def spoken(node: str) -> str:
    """The end of an IRI in words: http://x/heart_attack -> heart attack."""
    end = node.rstrip("/#").replace("#", "/").replace(":", "/").rsplit("/", 1)[-1]
    return " ".join(unquote(end).replace("_", " ").replace(".", " ").split()) or node


# --------------------------------------------------------------------------------------------------- what is to be read


class Line(NamedTuple):
    """One thing to read: its text, the facts that it says (one, or a path of several), and where they come from."""

    text: str
    facts: tuple[Fact, ...]
    sources: tuple[str, ...] = ()


class Facts:
    """Facts or paths in the order in which they are to be read, of which some stay; a line each.

    Site "facts" has one unit per line, and each costs its words and whatever else can be counted. The cost of all is
    that of the lines with a line break between them.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = tuple(lines)

    def written(self, keep: Sequence[bool] | np.ndarray | None = None) -> str:
        """What a model is to read."""
        stays = [True] * len(self.lines) if keep is None else keep
        return "\n".join(line.text for line, stay in zip(self.lines, stays, strict=True) if stay)

    def units(self, *axes: str, **counts: Callable[[Sequence[str]], Sequence[int]]) -> Units:
        """Site "facts"; counts: measure -> (texts -> how many each has), such as tokens=encoders.counter("gpt2")."""
        unknown = [axis for axis in axes if axis != "facts"]
        if unknown:
            raise InputError(f"facts have no {unknown[0]!r}: their one axis is facts")
        texts = [line.text for line in self.lines]
        cost = {"words": np.array([float(len(text.split())) for text in texts])}
        for measure, counted in counts.items():
            cost[measure] = np.array(counted([text + "\n" for text in texts]), dtype=float)
        return Units({"facts": Site("facts", len(self.lines), cost)})

    def cut(self, selection: Selection) -> tuple[Facts, Cut]:
        """The lines that stay."""
        count = len(self.lines)
        keep = np.asarray(selection.keep.get("facts", np.ones(count, bool)), dtype=bool)
        if keep.shape != (count,):
            raise InputError(f"there are {count} facts, and the selection has {keep.size}: select from these units")
        smaller = Facts([line for line, stay in zip(self.lines, keep, strict=True) if stay])
        gone = {"facts": (int((~keep).sum()), count)}
        return smaller, Cut(gone, self.units().cost(), smaller.units().cost())

    def cost(self, counts: Mapping[str, Callable[[Sequence[str]], Sequence[int]]]) -> dict[str, float]:
        """Measure -> what all that is written takes."""
        text = self.written()
        return {"words": float(len(text.split()))} | {name: float(count([text])[0]) for name, count in counts.items()}
