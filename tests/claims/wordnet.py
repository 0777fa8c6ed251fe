"""WordNet as a graph of facts between synsets: what `open_graph` reads of its database, without glosses and aliases."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from assets import packages
from secateur.clients.stores import ENTITY, RDF, RELATION, iri
from secateur.methods.graphs import open_graph

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Net:
    """Facts, the name of each synset and relation (the first word of a synset), and the kind of each synset."""

    triples: tuple[Triple, ...]
    words: dict[str, str]
    kinds: dict[str, str]


@functools.cache
def net() -> Net:
    """117,659 synsets, and 188 thousand facts between them."""
    graph = open_graph(packages.wordnet())
    query = f"SELECT ?s ?p ?o WHERE {{ ?s ?p ?o FILTER(isIRI(?o)) FILTER(?p != {iri(RDF + 'type')}) }}"
    rows = [[value.text for value in row if value] for row in graph.store.select(query)]
    nodes = sorted({end for s, _, o in rows for end in (s, o)})
    named, kinds = graph.names(nodes), graph.kinds(nodes)
    triples = tuple(sorted((_end(s), p.removeprefix(RELATION), _end(o)) for s, p, o in rows))
    words = {_end(node): named[node] for node in nodes} | {p: p.replace("_", " ") for _, p, _ in triples}
    return Net(triples, words, {_end(node): kinds[node] for node in nodes})


def _end(node: str) -> str:
    return node.removeprefix(ENTITY)
