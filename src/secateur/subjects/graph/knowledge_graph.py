"""Subject `knowledge_graph`: a graph of facts in a store, and the facts or paths of it that a model is to read.

Facts are RDF triples between IRIs, or from an IRI to a literal. Names are `rdfs:label` and its kin; kinds of things
`rdf:type`; what is known of one fact (its sources, scores) stands on an `rdf:Statement` about it, or in Wikidata on its
statement there (see `wikibase`). So any SPARQL 1.1 endpoint can be read, and what `data.triples` loads is read the same
way.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote

import numpy as np

from secateur._utils.http import LargeError
from secateur.clients.stores import ENTITY, RDF, Embedded, Row, Store, Value, iri, is_usable, literal, one_line
from secateur.errors import InputError, ServerError
from secateur.subjects.graph import wikibase
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Fact", "Facts", "KnowledgeGraph", "Line", "Neighbourhood"]

Item = TypeVar("Item")

TYPE = f"{RDF}type"
NAMES = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#prefLabel",
    "http://schema.org/name",
    "https://schema.org/name",
    "http://rdf.freebase.com/ns/type.object.name",
    "http://xmlns.com/foaf/0.1/name",
    "http://purl.org/dc/terms/title",
    "http://purl.org/dc/elements/1.1/title",
)
"""What gives a thing its name, the first that is there."""
ALIAS = "http://www.w3.org/2004/02/skos/core#altLabel"
"""What else a thing is called."""
_HUMP = re.compile(r"(?<=[a-z][a-z])(?=[A-Z][a-z])")
"""Where a word begins inside an IRI; not in CtD."""
_ABOUT = (f"{RDF}subject", f"{RDF}predicate", f"{RDF}object")
_TECHNICAL = frozenset({TYPE, ALIAS, *NAMES, *_ABOUT})
_AT_ONCE = 256
"""Nodes that one query asks about."""
_ROOM = 4_096
"""Rows that one query about many nodes may give: where there are more, a hub is among the nodes."""
_FEW = 16
"""Nodes of which each may be a hub that one query asks about."""
_PAGE = 10_000
"""The same where all of a graph is read of an endpoint; many give no more."""
_THINGS = 10_000_000
"""Things whose names are read of an endpoint."""
_SMALL = 2**19
"""Facts of an embedded graph all of which are read for what has no name."""
LONGEST = 500
"""Letters of a name that are read."""
_LONGEST_TEXT = 10_000
"""Letters that are read of what is said of a thing."""


How: TypeAlias = Literal["written", "folded", "holding"]
"""How a name is looked for, see `KnowledgeGraph.find_named`."""


class Fact(NamedTuple):
    """A triple: subject and predicate are IRIs, and so is the object unless it is a literal."""

    subject: str
    predicate: str
    object: str
    literal: bool = False


class Neighbourhood(NamedTuple):
    """What stands around nodes: facts, sorted; node -> hops to it; whether there are more facts than were read."""

    facts: list[Fact]
    hops: dict[str, int]
    cut: bool


class KnowledgeGraph:
    """Facts in a store.

    Args:
        store: `stores.Embedded`, `stores.Endpoint` or whatever answers as they do.
        language: of names, where there are several, such as en.
        most: facts that are read of one node in one direction at most; a node with more (a hub) is read in part, the
            part that the store gives first, and `crowded` names it.

    Of what a store answers only that is used which was asked for: rows about other nodes, or with something other than
    IRIs and text where they belong, are left out. Text is read in one line, without control letters, up to a bound.
    """

    backend = "secateur.runs.backends.graph:Graphs"

    def __init__(self, store: Store, *, language: str = "en", most: int = 10_000) -> None:
        if most < 1:
            raise InputError(f"most={most}: give the facts that are read of one node, at least 1")
        literal("", language)  # refuses what is none
        self.store, self.language, self.most = store, language.lower(), most
        self.crowded: set[str] = set()
        self._names: dict[str, str] = {}
        self._kinds: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------------------ facts

    def around(self, nodes: Iterable[str], *, literals: bool = False, most: int = 0, noted: bool = True) -> list[Fact]:
        """The facts one hop around nodes, in both directions, each once, sorted.

        literals: also what is said of them in words and numbers, other than their names. most: of each, instead of the
        graph's. noted: whether `crowded` is to name the nodes of which there are more.
        """
        found, crowded = self._around(nodes, literals, most)
        self.crowded |= crowded if noted else set()
        return sorted(found)

    def within(self, nodes: Iterable[str], hops: int, *, most: int = 100_000, each: int = 0) -> Neighbourhood:
        """The facts within so many hops of nodes, in both directions: all, or as many as `most`, the nearest.

        Of the hop that would be too many, those about its first nodes are there, in the order of IRIs: the same
        question of the same store has the same answer.

        Args:
            nodes: where to begin.
            hops: how far to go.
            most: facts in all: a bound on memory and time.
            each: facts of one node in one direction, instead of the graph's.
        """
        if hops < 0 or most < 1:
            raise InputError(f"hops={hops}, most={most}: give at least 0 hops and 1 fact")
        frontier, found, cut = sorted(set(nodes)), set[Fact](), False
        reached = dict.fromkeys(frontier, 0)
        full = False
        for hop in range(1, hops + 1):
            following = set[str]()
            for start in range(0, len(frontier), _AT_ONCE):
                beside, crowded = self._around(frontier[start : start + _AT_ONCE], False, each, most)
                self.crowded |= crowded
                new = sorted(beside - found)
                full = len(found) + len(new) > most
                cut |= bool(crowded) or full
                new = new[: most - len(found)]
                found.update(new)
                following |= {node for fact in new for node in (fact.subject, fact.object)}
                if full:
                    break
            frontier = sorted(following - reached.keys())
            reached |= dict.fromkeys(frontier, hop)
            if not frontier or full:
                break
        return Neighbourhood(sorted(found), reached, cut)

    def _around(
        self, nodes: Iterable[str], literals: bool, most: int, enough: int = 2**62
    ) -> tuple[set[Fact], set[str]]:
        """Facts around nodes, and those of which there are more than were read. Above `enough` no more are read."""
        asked, limit, found, crowded = sorted(set(nodes)), most or self.most, set[Fact](), set[str]()
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            for end in (0, 2):
                for rows in self._read_beside(part, end, limit, literals):
                    found |= _facts_in(rows, set(part), end, limit, literals, crowded)
                    if len(found) > enough:
                        return found, crowded
        return found, crowded

    def _read_beside(self, nodes: Sequence[str], end: int, limit: int, literals: bool) -> Iterator[list[Row]]:
        """(subject, predicate, object) where the subject (end 0) or object (end 2) is one of `nodes`, in parts."""
        bound, asked = {node: iri(node) for node in nodes}, "?o" if end else "?s"
        kept = f"FILTER(?p NOT IN ({', '.join(iri(name) for name in sorted(_TECHNICAL))}))"
        # What is known of a fact is no fact about whatever it was taken from.
        kept += " FILTER(isIRI(?s))" if end else ""
        kept += f" FILTER NOT EXISTS {{ ?s {iri(_ABOUT[0])} ?about }}" if end and self._named_statements else ""
        kept += "" if end or literals else " FILTER(isIRI(?o))"
        kept += f" {wikibase.ONCE}" if self._told_twice else ""
        if len(nodes) > 1:
            values = f"VALUES {asked} {{ {' '.join(bound.values())} }}"
            with suppress(LargeError):
                rows = self.store.select(f"SELECT ?s ?p ?o WHERE {{ {values} ?s ?p ?o {kept} }} LIMIT {_ROOM}")
                if len(rows) < _ROOM:
                    yield rows
                    return
        # Hubs are among them: few nodes at once, each for as many facts as it may have and one more, which tells.
        given, where = ("?p ?s", "?s ?p {0}") if end else ("?p ?o", "{0} ?p ?o")

        def query(part: Sequence[str]) -> str:
            parts = (
                f"{{ SELECT ({bound[node]} AS {asked}) {given} WHERE {{ {where.format(bound[node])} {kept} }} "
                f"LIMIT {limit + 1} }}"
                for node in part
            )
            return f"SELECT ?s ?p ?o WHERE {{ {' UNION '.join(parts)} }}"

        size = max(_FEW, 4 * _ROOM // (limit + 1))
        for start in range(0, len(nodes), size):
            yield self._select_all(nodes[start : start + size], query)

    @cached_property
    def _named_statements(self) -> bool:
        """Whether statements have IRIs, and so may be taken for things; those of `data.triples` have none."""
        return bool(self.store.select(f"SELECT ?s WHERE {{ ?s {iri(_ABOUT[0])} ?o FILTER(isIRI(?s)) }} LIMIT 1"))

    @cached_property
    def _told_twice(self) -> bool:
        """Whether statements of a Wikibase stand beside its direct facts."""
        return all(self.store.select(probe) for probe in wikibase.PROBES)

    def _select_all(self, items: Sequence[Item], query: Callable[[Sequence[Item]], str], least: int = 1) -> list[Row]:
        """The rows about items; in halves, where an answer is too large to be read, as long as they have `least`."""
        try:
            return self.store.select(query(items))
        except LargeError:
            half = len(items) // 2
            if half < least:
                raise
            return self._select_all(items[:half], query, least) + self._select_all(items[half:], query, least)

    def annotations(self, facts: Iterable[Fact]) -> dict[Fact, dict[str, tuple[str, ...]]]:
        """What is known of each fact, such as {"source": ("PubMed",), "score": ("0.9",)}: sorted, empty for nothing.

        It stands on an `rdf:Statement` about the fact, of which there may be several; a property is called by the end
        of its IRI. Of a direct fact of Wikidata it is the qualifiers of its statements, by name.
        """
        asked = sorted(set(facts))
        many = Counter(end for fact in asked for end in (fact.subject, fact.object))
        # Statements are looked for by the end of a fact that is no hub, as far as these facts tell.
        groups: list[list[Fact]] = [[], [], []]
        for fact in asked:
            groups[2 if fact.literal else int(many[fact.object] < many[fact.subject])].append(fact)
        values: dict[Fact, dict[str, set[str]]] = {fact: {} for fact in asked}
        for group, query in zip(groups, (_by_subject, _by_object, _of_texts), strict=True):
            for start in range(0, len(group), _AT_ONCE):
                for row in map(_whole, self._select_all(group[start : start + _AT_ONCE], query, 16)):
                    if len(row) != 5:
                        continue
                    fact, key = _fact(*row[:3]), row[3]
                    if fact in values and _sound(key) and key.text not in _TECHNICAL:
                        told = one_line(row[4].text, _LONGEST_TEXT)
                        values[fact].setdefault(self.identifier(key.text), set()).add(told)
        direct = [fact for fact in asked if wikibase.is_direct(fact.predicate)]
        if direct and self._told_twice:
            self._add_qualifiers(direct, values)
        return {
            fact: {key: tuple(sorted(told)) for key, told in sorted(found.items())} for fact, found in values.items()
        }

    def _add_qualifiers(self, facts: Sequence[Fact], values: Mapping[Fact, dict[str, set[str]]]) -> None:
        """Add to `values` what the statements behind direct facts of a Wikibase say: name of a qualifier -> values."""
        rows = list[tuple[Fact, Value, Value]]()
        for start in range(0, len(facts), _AT_ONCE):
            pairs = sorted({fact[:2] for fact in facts[start : start + _AT_ONCE]})
            for row in map(_whole, self._select_all(pairs, wikibase.ask_qualifiers, 16)):
                if len(row) == 5 and _sound(row[3]) and (fact := _fact(*row[:3])) in values:
                    rows.append((fact, row[3], row[4]))
        named = self.names({value.text for _, *pair in rows for value in pair if _sound(value)})
        for fact, key, value in rows:
            told = named[value.text] if _sound(value) else one_line(value.text, _LONGEST_TEXT)
            values[fact].setdefault(named[key.text], set()).add(told)

    def sample(self, count: int, *, each: int = 4) -> list[Fact]:
        """About so many facts between things, each of another thing, the same each time; fewer where there are none.

        each: facts of a thing that are read to take one of them.
        """
        kept = f"FILTER(isIRI(?s)) FILTER(isIRI(?o)) FILTER(?p NOT IN ({', '.join(map(iri, sorted(_TECHNICAL)))}))"
        kept += f" FILTER NOT EXISTS {{ ?s {iri(_ABOUT[0])} ?about }}" if self._named_statements else ""
        kept += f" {wikibase.ONCE} {wikibase.THINGS}" if self._told_twice else ""
        rows = self.store.select(f"SELECT DISTINCT ?s WHERE {{ ?s ?p ?o {kept} }} LIMIT {_ROOM}")
        things = sorted({row[0].text for row in rows if len(row) == 1 and row[0] and _sound(row[0])})
        draw = np.random.default_rng(0)
        chosen = sorted(draw.permutation(len(things))[:count].tolist())
        facts: dict[str, list[Fact]] = {things[i]: [] for i in chosen}
        for fact in sorted(self._around(facts, False, each)[0]):
            if fact.subject in facts:
                facts[fact.subject].append(fact)
        return [some[draw.integers(len(some))] for some in facts.values() if some]

    # ----------------------------------------------------------------------------------------------------------- things

    def names(self, nodes: Iterable[str]) -> dict[str, str]:
        """Node -> its name: in the graph's language, else without one, else any; else the end of its IRI."""
        asked = sorted(set(nodes))
        new = [node for node in asked if node not in self._names]

        def query(part: Sequence[str]) -> str:
            values = " ".join(map(iri, part))
            each = (f"{{ VALUES ?s {{ {values} }} ?s {iri(name)} ?n BIND({iri(name)} AS ?p) }}" for name in NAMES)
            return f"SELECT ?s ?p ?n WHERE {{ {' UNION '.join(each)} }}"

        def ask_items(part: Sequence[str]) -> str:
            names, links = (", ".join(map(iri, some)) for some in (NAMES, wikibase.LINKS))
            where = f"?item ?link ?s ; ?p ?n FILTER(?link IN ({links})) FILTER(?p IN ({names}))"
            return f"SELECT ?s ?p ?n WHERE {{ VALUES ?s {{ {' '.join(map(iri, part))} }} {where} }}"

        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            found = _Named(self.language)
            for row in self._select_all(part, query, 16):
                found.add(row)
            predicates = [node for node in part if "/prop/" in node and node not in found.best]
            for row in self._select_all(predicates, ask_items) if predicates else ():
                found.add(row)
            self._names |= {node: found.best[node][2] if node in found.best else iri_in_words(node) for node in part}
        return {node: self._names[node] for node in asked}

    def kinds(self, nodes: Iterable[str]) -> dict[str, str]:
        """Node -> the name of its kind, of several that with the first IRI; "" for none."""
        asked = sorted(set(nodes))
        new, of = [node for node in asked if node not in self._kinds], dict[str, str]()

        def query(part: Sequence[str]) -> str:
            return f"SELECT ?s ?k WHERE {{ VALUES ?s {{ {' '.join(map(iri, part))} }} ?s {iri(TYPE)} ?k }}"

        for start in range(0, len(new), _AT_ONCE):
            part = set(new[start : start + _AT_ONCE])
            for row in map(_whole, self._select_all(sorted(part), query, 16)):
                if len(row) == 2 and row[0].text in part and _sound(row[1]):
                    node, kind = row[0].text, row[1].text
                    of[node] = min(of.get(node, kind), kind)
        named = self.names(of.values())
        self._kinds |= {node: named[of[node]] if node in of else "" for node in new}
        return {node: self._kinds[node] for node in asked}

    def things(self, kinds: Iterable[str] = (), *, aliases: bool = False) -> Iterator[tuple[str, str]]:
        """(node, name) of all that has a name, in the order of nodes.

        In a graph that names nothing, or a small embedded one that does not name all, what facts are about is called by
        the end of its IRI.

        Args:
            kinds: only things of one of these, by name or IRI.
            aliases: what else they are called (`skos:altLabel`), too; a thing is there several times then.

        Raises `InputError` for a kind that the graph has not.
        """
        wanted = [iri(name) for name in (*NAMES, *((ALIAS,) if aliases else ()))]
        where, where_kinds = f"VALUES ?p {{ {' '.join(wanted)} }} ?s ?p ?n FILTER(isIRI(?s))", set[str]()
        chosen = list(kinds)
        if chosen:
            where_kinds = set(self._chosen(chosen))
            where += f" VALUES ?k {{ {' '.join(map(iri, sorted(where_kinds)))} }} ?s {iri(TYPE)} ?k"
        found = _Named(self.language)
        for row in self._all(where):
            found.add(row)
        named = found.best.keys() | found.aliases.keys()
        small = isinstance(self.store, Embedded) and len(self.store.graph) <= _SMALL
        nameless = self._nameless(where_kinds) - named if small or not named else set()
        for node in sorted(named | nameless):
            name = found.best[node][2] if node in found.best else iri_in_words(node)
            yield node, name
            yield from ((node, other) for other in sorted(found.aliases.get(node, set()) - {name}))

    def _nameless(self, kinds: Collection[str]) -> set[str]:
        """What facts between things are about, named or not; of kinds alone, if some are given."""
        skip = ", ".join(map(iri, sorted(_TECHNICAL)))
        where = f"?s ?p ?n FILTER(isIRI(?s)) FILTER(isIRI(?n)) FILTER(?p NOT IN ({skip}))"
        where += f" FILTER NOT EXISTS {{ ?s {iri(_ABOUT[0])} ?about }}" if self._named_statements else ""
        nodes = set[str]()
        for row in map(_whole, self._all(where)):
            nodes.update(value.text for value in row[::2] if _sound(value))
        if kinds:
            each = f"VALUES ?n {{ {' '.join(map(iri, sorted(kinds)))} }} ?s ?p ?n FILTER(?p = {iri(TYPE)})"
            nodes &= {row[0].text for row in map(_whole, self._all(each)) if row and _sound(row[0])}
        return nodes

    def find_named(
        self, texts: Iterable[str], kinds: Iterable[str] = (), *, how: How = "written", most: int = 1_000
    ) -> list[tuple[str, str]]:
        """(node, name) of the things that are called so, sorted, without reading all names.

        Args:
            texts: what they may be called.
            kinds: only things of one of these; where all are IRIs the graph is not asked which it has.
            how: "written" finds names that are a text, or it in small letters, capitals, or with capitals in front: an
                index leads to them. "folded" finds them in any letters, and "holding" those that hold a text, in any
                letters; the store looks at all of its names for that.
            most: names in all; of those that hold a text, of each.
        """
        wanted = [text for text in texts if text.strip() and _askable(text)]
        # A relation may have a name, too, and is no thing.
        kept = "FILTER(isIRI(?s)) FILTER NOT EXISTS { ?one ?s ?other }"
        chosen = list(kinds)
        if chosen:
            chosen = chosen if all(map(is_usable, chosen)) else self._chosen(chosen)
            kept += f" VALUES ?k {{ {' '.join(map(iri, chosen))} }} ?s {iri(TYPE)} ?k"
        names = [iri(name) for name in (*NAMES, ALIAS)]
        named = f"VALUES ?p {{ {' '.join(names)} }} ?s ?p ?n"

        def rows(where: str) -> str:
            return f"SELECT ?s ?p ?n WHERE {{ {where} {kept} }} LIMIT {most}"

        def query(part: Sequence[str]) -> str:
            if how == "written":  # a filter of ?p, or else pyoxigraph reads all names
                forms = " ".join(literal(text, tag) for text in part for tag in tags)
                return rows(f"VALUES ?n {{ {forms} }} ?s ?p ?n FILTER(?p IN ({', '.join(names)}))")
            if how == "folded":
                return rows(f"{named} FILTER(LCASE(STR(?n)) IN ({', '.join(map(literal, part))}))")
            each = (f"{{ {rows(f'{named} FILTER(CONTAINS(LCASE(STR(?n)), {literal(text)}))')} }}" for text in part)
            return f"SELECT ?s ?p ?n WHERE {{ {' UNION '.join(each)} }}"

        tags = dict.fromkeys(("", self.language, self.language.split("-")[0]))
        cases: tuple[Callable[[str], str], ...] = (str.lower,)
        if how == "written":
            cases = (str, str.lower, str.upper, string.capwords, lambda text: text[:1].upper() + text[1:])
        wanted = list(dict.fromkeys(case(text) for case in cases for text in wanted))
        found, asked = set[tuple[str, str]](), frozenset(wanted)
        for start in range(0, len(wanted), _AT_ONCE):
            if how != "holding" and len(found) >= most:
                break
            for row in map(_whole, self._select_all(wanted[start : start + _AT_ONCE], query)):
                if len(row) == 3 and _sound(row[0]) and row[2].kind == "literal":
                    name = one_line(row[2].text, LONGEST)
                    same = name if how == "written" else row[2].text.lower()
                    if same in asked or (how == "holding" and any(text in same for text in asked)):
                        found.add((row[0].text, name))
        return sorted(found)

    def _chosen(self, kinds: Sequence[str]) -> list[str]:
        """The IRIs of kinds."""
        rows = self.store.select(f"SELECT DISTINCT ?k WHERE {{ ?s {iri(TYPE)} ?k }} LIMIT {_PAGE}")
        there = {row[0].text for row in rows if len(row) == 1 and row[0] and _sound(row[0])} - {f"{RDF}Statement"}
        named, found = self.names(there), set[str]()
        for kind in kinds:
            meant = {node for node in there if kind in (node, named[node], self.identifier(node))}
            if not meant:
                known = ", ".join(sorted(set(named.values()))[:20])
                raise InputError(f"the graph has no kind of things called {kind!r}; it has {known or 'none'}")
            found |= meant
        return sorted(found)

    def _all(self, where: str) -> Iterator[Row]:
        """All rows (?s ?p ?n), whatever their number: one after another, or page by page in the order of ?s."""
        if isinstance(self.store, Embedded):
            yield from self.store.each(f"SELECT ?s ?p ?n WHERE {{ {where} }}")
            return
        after, page, seen = "", _PAGE, set[str]()
        while len(seen) <= _THINGS:
            try:
                rows = self.store.select(
                    f'SELECT ?s ?p ?n WHERE {{ {where} FILTER(STR(?s) > "{after}") }} ORDER BY STR(?s) LIMIT {page}'
                )
            except LargeError:
                page //= 2
                if page < 16:
                    raise
                continue
            rows = [row for row in rows if len(row) == 3 and row[0] and _sound(row[0])]
            nodes = list(dict.fromkeys(row[0].text for row in rows if row[0]))
            full = len(rows) >= page
            # The last node of a full page may have more rows: it stands on the next one again, unless it fills one.
            done = nodes[:-1] if full and len(nodes) > 1 else nodes
            new = set(done) - seen
            yield from (row for row in rows if row[0] and row[0].text in new)
            if not full or not new:
                return
            seen |= new
            after = done[-1]
        raise ServerError(f"{self.store} names more than {_THINGS:,} things: name their kinds, or ask it for less")

    @staticmethod
    def identifier(node: str) -> str:
        """What a thing is called by in its source: as a table has it, or the end of its IRI."""
        end = node.removeprefix(ENTITY) if node.startswith(ENTITY) else _end(node)
        return one_line(unquote(end), LONGEST) or node


def _askable(text: str) -> bool:
    """Whether a name may be asked for. Some servers read what a backslash begins before all else, and see a quote."""
    return text.isprintable() and "\\" not in text and len(text) <= LONGEST


class _Named:
    """The best name of each node, and what else it is called, out of rows (node, predicate, name)."""

    def __init__(self, language: str) -> None:
        self.language = language.split("-")[0]
        self.best: dict[str, tuple[int, int, str]] = {}
        self.aliases: dict[str, set[str]] = {}

    def add(self, row: Row) -> None:
        if len(row) != 3 or row[0] is None or row[1] is None or row[2] is None:
            return
        (node, sort, _), predicate, (text, kind, language) = row[0], row[1].text, row[2]
        name = one_line(text, LONGEST)
        if kind != "literal" or sort != "iri" or not name:
            return
        fit = 0 if language.lower().split("-")[0] == self.language else 2 if language else 1
        if predicate == ALIAS and fit < 2:
            self.aliases.setdefault(node, set()).add(name)
        elif predicate in NAMES:
            rank = (fit, NAMES.index(predicate), name)
            self.best[node] = min(self.best.get(node, rank), rank)


def _sound(value: Value) -> bool:
    """Whether a value is an IRI that can be asked about."""
    return value.kind == "iri" and is_usable(value.text)


def _whole(row: Row) -> list[Value]:
    """The values of a row of which all are bound; nothing of another one."""
    found = [value for value in row if value is not None]
    return found if len(found) == len(row) else []


def _fact(subject: Value, predicate: Value, end: Value) -> Fact:
    literal = end.kind == "literal"
    return Fact(subject.text, predicate.text, one_line(end.text, _LONGEST_TEXT) if literal else end.text, literal)


def _facts_in(
    rows: Iterable[Row], nodes: Collection[str], end: int, limit: int, literals: bool, crowded: set[str]
) -> set[Fact]:
    """The facts of rows that are what was asked for, of each of `nodes` as many as are allowed."""
    found, many, sound = set[Fact](), dict[str, int](), dict[str, bool]()
    for row in rows:
        if len(row) != 3 or row[0] is None or row[1] is None or row[2] is None:
            continue  # an endpoint that lies
        subject, predicate, other = row[0], row[1], row[2]
        node = other.text if end else subject.text
        if node not in nodes or subject.kind != "iri" or (other.kind != "iri" and (end or not literals)):
            continue
        if predicate.text not in sound:
            sound[predicate.text] = _sound(predicate) and predicate.text not in _TECHNICAL
        if not sound[predicate.text] or not is_usable(subject.text if end else node):
            continue
        if other.kind == "blank" or (other.kind == "iri" and not is_usable(other.text)):
            continue
        fact = _fact(subject, predicate, other)
        if fact in found:
            continue
        if many.get(node, 0) == limit:
            crowded.add(node)
        else:
            many[node] = many.get(node, 0) + 1
            found.add(fact)
    return found


def _by_subject(facts: Sequence[Fact]) -> str:
    return _statements("(?s ?p ?o)", (fact[:3] for fact in facts), "subject ?s", "predicate ?p", "object ?o")


def _by_object(facts: Sequence[Fact]) -> str:
    return _statements("(?s ?p ?o)", (fact[:3] for fact in facts), "object ?o", "subject ?s", "predicate ?p")


def _of_texts(facts: Sequence[Fact]) -> str:
    """Text may have a language or a type that a fact does not tell: all that is said by the predicate is asked for."""
    pairs = sorted({fact[:2] for fact in facts})
    return _statements("(?s ?p)", pairs, "subject ?s", "predicate ?p", "object ?o")


def _statements(names: str, values: Iterable[Sequence[str]], *parts: str) -> str:
    """What stands on statements; engines that take patterns as they come begin with the first part."""
    bound = " ".join(f"({' '.join(map(iri, row))})" for row in values)
    about = " ; ".join(f"{iri(RDF + part.split()[0])} {part.split()[1]}" for part in parts)
    skip = ", ".join(iri(name) for name in sorted(_TECHNICAL))
    return (
        f"SELECT ?s ?p ?o ?k ?v WHERE {{ VALUES {names} {{ {bound} }} ?x {about} ; ?k ?v FILTER(?k NOT IN ({skip})) }}"
    )


def _end(node: str) -> str:
    return node.rstrip("/#").replace("#", "/").replace(":", "/").rsplit("/", 1)[-1]


def iri_in_words(node: str) -> str:
    """The end of an IRI in words: http://x/heart_attack -> heart attack, http://x/HeartAttack -> Heart Attack."""
    words = _HUMP.sub(" ", unquote(_end(node)).replace("_", " ").replace(".", " "))
    return one_line(words, LONGEST) or node[:LONGEST]


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

    def to_text(self, keep: Sequence[bool] | np.ndarray | None = None) -> str:
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
        text = self.to_text()
        return {"words": float(len(text.split()))} | {name: float(count([text])[0]) for name, count in counts.items()}
