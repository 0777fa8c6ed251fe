"""Facts of a knowledge graph as sentences with their sources, and filters on what is known of facts."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from secateur.errors import InputError
from secateur.subjects.graph.knowledge_graph import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.text import markup

__all__ = [
    "Filter",
    "Row",
    "Site",
    "Wording",
    "as_facts",
    "describe_node",
    "find_missing",
    "follow_facts",
    "keep_leading",
    "label_nodes",
    "leave_out",
    "name_ends",
    "parse_filter",
    "predicate_in_words",
    "sample_questions",
    "state_fact",
]

Row = dict[str, Any]
"""A fact of a node: fact, text, path, predicate, target, provenance, evidence.

fact: subject, predicate, object and whether that is a literal; None for what identifies the node.
"""

PROVENANCE = {"sources": "", "source": "", "preprint_list": "", "pmid_list": "pubmedId:", "pmid": "pubmedId:"}
"""Properties that say where a fact comes from, the first that is there; and what is put before their values."""
_SPOKE = re.compile(r"([A-Z]+)_[A-Z][A-Za-z]*[a-z][A-Z][A-Za-z]*")
"""TREATS_CtD: what it says, then the kinds of its ends and a letter between them."""
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?(e-?\d{1,2})?")


Site = dict[str, Any]
"""A node and its facts: site, node, name, rows; a row also has score, cosine (without an embedder score) and rank."""


@dataclass(frozen=True, slots=True)
class Wording:
    """Which facts of a node become sentences, and what these say."""

    filters: Sequence[str] = ()
    """What is asked of a fact's properties, "score>=0.7", "phase<=3" or "source=SwissProt|UniProt"; a fact without that
    property passes."""
    literals: bool = True
    """Also facts that lead to words or numbers instead of nodes."""
    identifier: bool = True
    """One more sentence for each node, with what identifies it in the graph."""
    origin: str = ""
    """What a fact that names no source is said to come from; nothing is said if empty."""
    evidence: bool = False
    """Put all that is known of a fact behind its sentence, as JSON; it is selected without."""


class Filter(NamedTuple):
    """What is asked of a property of facts."""

    name: str
    allows: Callable[[str], bool]


def parse_filter(text: str) -> Filter:
    """What score>=0.7, phase<=3 or source=SwissProt|UniProt asks for; `InputError` for what asks for nothing."""
    match = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=|=)\s*(.+?)\s*", text)
    if match is None:
        raise InputError(f"filter {text!r} was not understood: write score>=0.7, phase<=3 or source=SwissProt|UniProt")
    name, sign, wanted = match[1].casefold(), match[2], match[3]
    if sign == "=":
        allowed = {value.strip() for value in wanted.split("|")}
        return Filter(name, allowed.__contains__)
    limit, turn = _number(wanted), 1 if sign == ">=" else -1
    if limit is None:
        raise InputError(f"filter {text!r}: {wanted!r} is no number; write such as score>=0.7")
    return Filter(name, lambda text: (value := _number(text)) is not None and turn * value >= turn * limit)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def describe_node(
    graph: KnowledgeGraph, node: str, name: str, wording: Wording, filters: Sequence[Filter]
) -> list[Row]:
    """The facts around a node, each as a sentence with its provenance; and one that says what identifies the node."""
    facts = graph.around([node], literals=wording.literals)
    known = graph.annotations(facts)
    facts = [fact for fact in facts if _passes(known[fact], filters)]
    ends = {end for fact in facts for end in (fact.subject, *([] if fact.literal else [fact.object]))} | {node}
    names, titles = name_ends(graph, facts, ends)
    rows = list[Row]()
    for fact in facts:
        verb = predicate_in_words(fact.predicate, names)
        other = fact.object if fact.subject == node else fact.subject
        sources = _provenance(known[fact]) or ([wording.origin] if wording.origin else [])
        text = state_fact(fact, names, titles)
        text += f", according to {', '.join(sources)}" if sources else ""
        rows.append({
            "fact": list(fact), "text": text, "path": f"{name} > {verb}", "predicate": verb,
            "target": other if fact.literal else names[other], "provenance": sources,
            "evidence": _as_json(known[fact]),
        })  # fmt: skip
    own = graph.identifier(node)
    if wording.identifier and rows and not _same(own, name):
        rows.append({
            "fact": None, "text": f"{titles[node]} has the identifier {own}", "path": name, "predicate": "identifier",
            "target": own, "provenance": [], "evidence": {},
        })  # fmt: skip
    return rows


def name_ends(
    graph: KnowledgeGraph, facts: Sequence[Fact], ends: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """What things and the predicates of facts are called; and things with their kinds before that."""
    kinds, names = graph.kinds(ends), graph.names([*ends, *(fact.predicate for fact in facts)])
    return names, {end: f"{kinds[end]} {names[end]}" if kinds.get(end) else names[end] for end in ends}


def leave_out(text: str, name: str, stop: Collection[str] = ()) -> str:
    """A text without a name that stands in it; the text itself where only words of `stop` would be left."""
    rest = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE) if name else text
    rest = " ".join(rest.split())
    return rest if set(re.findall(r"\w+", rest.casefold())) - set(stop) else text


def label_nodes(graph: KnowledgeGraph, nodes: Sequence[str]) -> list[Site]:
    """Site, node and name of each node; no two sites have the same name."""
    names, sites = graph.names(nodes), dict[str, Site]()
    for node in nodes:
        site = f"facts.{names[node]}"
        site = site if site not in sites else f"{site} ({node})"
        sites[site] = {"site": site, "node": node, "name": names[node]}
    return list(sites.values())


Words = Callable[[str], Sequence[str]]
"""Text -> its words, as they are compared."""


def find_missing(sites: Sequence[Site], question: str, words: Words) -> set[str]:
    """The words of a question that stand neither in a fact nor in a name of the nodes."""
    known = {word for site in sites for row in site["rows"] for word in words(row["text"])}
    return set(words(question)) - known.union(*(words(site["name"]) for site in sites))


def follow_facts(
    graph: KnowledgeGraph,
    sites: Sequence[Site],
    floor: float,
    most: int,
    missing: Collection[str],
    words: Words,
    wording: Wording,
    filters: Sequence[Filter],
) -> list[Site]:
    """The nodes that the best facts above the floor lead to, at most so many, and of their facts those with a word of
    `missing` beside the node's name: one hop further, and "followed" in each site."""
    nodes, ends = dict.fromkeys(str(site["node"]) for site in sites), dict[str, None]()
    rows = [row for site in sites for row in site["rows"] if row["fact"] and row["cosine"] > floor]
    for row in sorted(rows, key=lambda row: -row["score"]):
        subject, _, end, literal = row["fact"]
        ends |= dict.fromkeys(node for node in (subject, end) if not literal and node not in nodes)
    followed = list(ends)[:most] if missing else []
    # Labelled with the others, since a record may be called as its band.
    labels = label_nodes(graph, [*nodes, *followed]) if followed else []
    found = [site for site in labels if site["node"] not in nodes]
    for site in found:
        facts = describe_node(graph, site["node"], site["name"], wording, filters)
        said = [set(words(leave_out(row["text"], site["name"]))) for row in facts]
        site["rows"] = [row for row, has in zip(facts, said, strict=True) if row["fact"] and has & set(missing)]
    return [{**site, "followed": True} for site in found if site["rows"]]


def keep_leading(sites: Sequence[Site], before: Sequence[Sequence[float]], floor: float) -> None:
    """Let facts that led to others pass the floor as they did, and leave no sooner than just before what they led to.

    Of the question they may have a name alone, which counted until others had more of its words. before: of each site
    that was not followed [rows], the scores by which facts led.
    """
    best = {site["node"]: max(row["score"] for row in site["rows"]) for site in sites if "followed" in site}
    for site, scores in zip(sites, before, strict=False):
        for row, score in zip(site["rows"], scores, strict=True):
            subject, _, end, literal = row["fact"] or ("", "", "", True)
            led = [best[node] for node in (subject, end) if node in best and not literal]
            if led and score > floor:
                behind = min(score, round(max(led) - 1e-6, 6))  # of equal scores the first would stay, not the answer
                row |= {"score": max(row["score"], behind), "cosine": max(row["cosine"], score)}


@functools.lru_cache(maxsize=2)
def sample_questions(graph: KnowledgeGraph, count: int) -> tuple[list[str], list[str], list[set[str]]]:
    """Facts of a graph, mostly of different things: a question to which each is the answer, its sentence, and
    its three parts.

    count: facts, at most.
    """
    facts = graph.sample(count)
    names, titles = name_ends(graph, facts, {end for fact in facts for end in (fact.subject, fact.object)})
    texts = [state_fact(fact, names, titles) for fact in facts]
    questions = [f"What {predicate_in_words(fact.predicate, names)} {titles[fact.object]}?" for fact in facts]
    return questions, texts, [{fact.subject, fact.predicate, fact.object} for fact in facts]


def as_facts(rows: Iterable[Row]) -> Facts:
    """What is to be read of some rows."""
    lines = list[Line]()
    for row in rows:
        facts = (Fact(*row["fact"]),) if row["fact"] else ()
        lines.append(Line(row["text"], facts, tuple(row["provenance"])))
    return Facts(lines)


def state_fact(fact: Fact, names: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """A fact as a sentence."""
    end = fact.object if fact.literal else titles[fact.object]
    return f"{titles[fact.subject]} {predicate_in_words(fact.predicate, names)} {end}"


def predicate_in_words(predicate: str, names: Mapping[str, str]) -> str:
    """A predicate in words: TREATS_CtD is treats, others have their names."""
    match = _SPOKE.fullmatch(KnowledgeGraph.identifier(predicate))
    return match[1].lower() if match else names[predicate]


def _passes(known: Mapping[str, Sequence[str]], filters: Sequence[Filter]) -> bool:
    """Whether each property of a fact that is asked for has a value that is allowed, or is not there."""
    there = _fold_names(known)
    return all(any(map(rule.allows, there[rule.name])) for rule in filters if rule.name in there)


def _fold_names(known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Properties by their names without letter case."""
    return {name.casefold(): values for name, values in known.items() if values}


def _same(one: str, other: str) -> bool:
    """Whether two names differ in signs and case alone."""
    return markup.terms(one.replace("_", " ")) == markup.terms(other.replace("_", " "))


def _provenance(known: Mapping[str, Sequence[str]]) -> list[str]:
    """Where a fact comes from."""
    there = _fold_names(known)
    name = next((name for name in PROVENANCE if name in there), "")
    return [value if value.startswith(PROVENANCE[name]) else PROVENANCE[name] + value for value in there.get(name, ())]


def _as_json(known: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is known of a fact as JSON holds it: numbers as numbers, and what is single not as a list."""
    found = dict[str, Any]()
    for name in sorted(known):
        values = [json.loads(text) if _NUMBER.fullmatch(text) else text for text in known[name]]
        found[name] = values[0] if len(values) == 1 else values
    return found
