"""Small graphs of facts in memory, written as tuples of names."""

from __future__ import annotations

import json

import numpy as np

from secateur.clients.stores import Embedded
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NAME = "<http://www.w3.org/2000/01/rdf-schema#label>"

CSV = "subject,predicate,object\nsalbutamol,treats,asthma\nAcme,makes,salbutamol\nasthma,affects,lung\n"
"""A graph in a file."""


def iri(name: str) -> str:
    return f"urn:x:{name.replace(' ', '_').replace('. ', '%2E_')}"


def thing(name: str) -> str:
    return f"<{iri(name)}>"


def graph(*facts, kinds=(), names=(), **options):
    """A graph of facts (subject, predicate, object, what is known of it) between things by name."""
    store, known = Embedded(), []
    for fact in facts:
        subject, predicate, target, *said = fact
        known += [f"{thing(subject)} <urn:r:{predicate}> {thing(target)} ."]
        known += [f"{thing(one)} {NAME} {json.dumps(one)} ." for one in (subject, target)]
        for properties in said:
            about = f"[] a <{RDF}Statement> ; <{RDF}subject> {thing(subject)} ; "
            about += f"<{RDF}predicate> <urn:r:{predicate}> ; <{RDF}object> {thing(target)}"
            pairs = [(name, one) for name, value in properties.items() for one in np.atleast_1d(value).tolist()]
            known += [about + "".join(f" ; <urn:p:{name}> {json.dumps(str(value))}" for name, value in pairs) + " ."]
    known += [f"{thing(one)} a <urn:k:{kind}> ." for one, kind in kinds]
    known += [f"{thing(one)} {NAME} {json.dumps(name)} ." for one, name in names]
    store.graph.update(f"INSERT DATA {{ {' '.join(known)} }}")
    return KnowledgeGraph(store, **options)
