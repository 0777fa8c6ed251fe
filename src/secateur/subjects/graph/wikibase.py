"""Facts as Wikidata, and any Wikibase, tells them: each twice, directly and by a statement of its own.

    item -> prop/direct/P69 -> value                                the direct fact, of statements of the best rank
    item -> prop/P69 -> statement -> prop/statement/P69 -> value    the same, by way of the statement
    statement -> prop/qualifier/P582 -> value                       a qualifier: since when, until when, in what role

A model is to read a fact once. So the direct ones are the facts, and the qualifiers of their statements what is known
of them. Source: the RDF dump format of Wikibase.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.clients.stores import iri

__all__ = ["DIRECT", "LINKS", "ONCE", "PROBES", "THINGS", "ask_qualifiers", "is_direct"]

_ONTOLOGY = "http://wikiba.se/ontology#"
_RANK = f"{_ONTOLOGY}rank"
DIRECT = "/prop/direct/"
"""In the IRI of a predicate of direct facts."""
_QUALIFIER = "/prop/qualifier/P"
"""In that of a qualifier, other than those whose values are nodes of their own."""
LINKS = (f"{_ONTOLOGY}directClaim", f"{_ONTOLOGY}qualifier")
"""A predicate has no name of its own: the property that points at it by one of these has."""
PROBES = (
    f"SELECT ?s WHERE {{ ?s {iri(_RANK)} ?o }} LIMIT 1",
    f'SELECT ?s WHERE {{ ?s ?p ?o FILTER(CONTAINS(STR(?p), "{DIRECT}")) }} LIMIT 1',
)
"""A graph that answers each of these has statements beside direct facts."""
ONCE = f'FILTER(!CONTAINS(STR(?p), "/prop/") || CONTAINS(STR(?p), "{DIRECT}"))'
"""Leaves out the way to statements, and what is said by them."""
THINGS = f"FILTER NOT EXISTS {{ ?s {iri(_RANK)} ?any }}"
"""Leaves out what is said of statements."""


def is_direct(predicate: str) -> bool:
    """Whether it is the predicate of direct facts."""
    return DIRECT in predicate


def ask_qualifiers(facts: Sequence[tuple[str, str]]) -> str:
    """The query (?s ?p ?o ?k ?v): qualifiers ?k of the statements by which subjects ?s have direct predicates ?p.

    facts: subject and direct predicate of each. Statements of deprecated rank say nothing.
    """
    rows = (
        (subject, predicate, predicate.replace(DIRECT, "/prop/"), predicate.replace(DIRECT, "/prop/statement/"))
        for subject, predicate in sorted(set(facts))
    )
    bound = " ".join(f"({' '.join(map(iri, row))})" for row in rows)
    deprecated = f"FILTER NOT EXISTS {{ ?x {iri(_RANK)} {iri(f'{_ONTOLOGY}DeprecatedRank')} }}"
    return (
        f"SELECT ?s ?p ?o ?k ?v WHERE {{ VALUES (?s ?p ?to ?says) {{ {bound} }} ?s ?to ?x . ?x ?says ?o ; ?k ?v "
        f'FILTER(CONTAINS(STR(?k), "{_QUALIFIER}")) {deprecated} }}'
    )
