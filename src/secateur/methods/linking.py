"""Entity linking: find the nodes of a knowledge graph that a question names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from secateur.clients.stores import is_usable
from secateur.methods import graphs
from secateur.methods.asking import Record
from secateur.retrieval.encoders import Embed
from secateur.retrieval.names import Names
from secateur.retrieval.words import COMMON
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

__all__ = ["NOTHING", "Linking", "NodeLinking", "link_names", "link_question", "link_topics"]

NOTHING = "nothing in the graph was found for the question"
LONGEST = 6
"""Words of a part of a question that is compared with names."""
PARTS = 512
"""Parts of a question that are compared with names, at most."""


@dataclass(frozen=True, slots=True)
class Linking:
    """How the names in a question lead to nodes."""

    topics: Sequence[str] = ()
    """What the question is about, names or IRIs in the graph; else it is looked for in the question. Where all are IRIs
    no names of the graph are read, which suits a large endpoint."""
    lookup: Literal["all", "query"] = "all"
    """"all" reads the names of all things once, and compares the question with each; "query" asks the graph for those
    that the question may hold, which suits an endpoint of millions, and finds fewer that are spelt otherwise."""
    least: float = 0.7
    """Cosine below which the nearest name is not taken for what is called so."""

    def clean_topics(self) -> list[str]:
        """The topics without spare spaces."""
        return [" ".join(topic.split()) for topic in self.topics if topic.strip()]


@dataclass(frozen=True, slots=True)
class NodeLinking(Linking):
    """The same, for several nodes of each name."""

    namer: Any = ""
    """Encoder of names of nodes, as `embedder`, which it is unless given."""
    kinds: Sequence[str] = ()
    """The question is searched for things of these kinds alone, "Disease", by what the graph calls them."""
    nearest: Annotated[int, Ge(1)] = 1
    """Nodes for each name."""
    fallback: Annotated[int, Ge(0)] = 5
    """Nodes where the question names nothing that is known; 0 for none."""


def link_topics(
    graph: KnowledgeGraph,
    topics: Sequence[str],
    embed: Embed | None,
    linking: Linking,
    kinds: Sequence[str] = (),
    nearest: int = 1,
) -> tuple[dict[str, list[str]], list[str]]:
    """Topic -> nodes, IRIs as they are; and notes on those without any. Without an encoder names count as written."""
    called = [topic for topic in topics if not is_usable(topic)]
    if not called:
        return {topic: [topic] for topic in topics}, []
    names, notes = graphs.find_names(graph, called, tuple(kinds), linking.lookup)
    nodes = {topic: [topic] if is_usable(topic) else names.find_named(topic)[:nearest] for topic in topics}
    lost = [topic for topic in topics if not nodes[topic]]
    if lost and embed is not None:
        nodes |= dict(zip(lost, _nearest(names, lost, embed, nearest, linking.least), strict=True))
    notes += [f"nothing in the graph is called {topic!r}" for topic in topics if not nodes[topic]]
    return nodes, notes


def link_names(
    graph: KnowledgeGraph, question: str, listed: Sequence[str], embed: Embed | None, linking: NodeLinking
) -> tuple[list[str], Record]:
    """The nodes of names that a language model listed, and the record of them, as `link_question`."""
    names, lost = graphs.find_names(graph, listed, tuple(linking.kinds), linking.lookup)
    if embed is not None:
        linked = list(zip(listed, _nearest(names, listed, embed, linking.nearest, linking.least), strict=True))
    else:
        linked = []
        for name in listed:
            nodes = [node for mention in names.mentions(name) for node in mention.nodes]
            linked.append((name, nodes[: linking.nearest]))
    return _record(names, question, linked, lost, embed, linking)


def link_question(
    graph: KnowledgeGraph, question: str, embed: Embed | None, linking: NodeLinking
) -> tuple[list[str], Record]:
    """The nodes that a question names, in the order of their names in it; the nearest to all of it where there is none.

    The record holds entities (names in the question), fallback (whether the nearest stand in) and notes.
    """
    names, lost = graphs.find_names(graph, [question], tuple(linking.kinds), linking.lookup)
    return _record(names, question, _find_mentions(names, question, embed, linking), lost, embed, linking)


def _record(
    names: Names,
    question: str,
    linked: Sequence[tuple[str, list[str]]],
    lost: Sequence[str],
    embed: Embed | None,
    linking: NodeLinking,
) -> tuple[list[str], Record]:
    notes = [*lost, *(f"no name in the graph is near {name!r}" for name, nodes in linked if not nodes)]
    found = list(dict.fromkeys(node for _, nodes in linked for node in nodes))
    stands_in = not found and linking.fallback > 0 and embed is not None and len(names) > 0
    if stands_in and embed is not None:
        (found,) = _nearest(names, [question], embed, linking.fallback, -1.0)
        notes.append("the question names nothing that is known: the nodes nearest to all of it stand in")
    if not found:
        notes.append(NOTHING)
    return found, {"entities": [name for name, _ in linked], "fallback": stands_in, "notes": notes}


def _find_mentions(
    names: Names, question: str, embed: Embed | None, linking: NodeLinking
) -> list[tuple[str, list[str]]]:
    """(part of the question, nodes): names that stand in it, and parts of the rest that are near to a name."""
    spans = [(found.start, found.end, list(found.nodes)[: linking.nearest]) for found in names.mentions(question)]

    def is_free(start: int, end: int) -> bool:
        return not any(start < right and left < end for left, right, _ in spans)

    if embed is not None:
        parts = [(start, end) for start, end in _parts(question) if is_free(start, end)][:PARTS]
        texts = [question[start:end] for start, end in parts]
        matches = names.nearest(texts, embed, linking.nearest, linking.least)
        close = [(-near[0].score, *part, near) for part, near in zip(parts, matches, strict=True) if near]
        for _, start, end, near in sorted(close):
            if is_free(start, end):
                spans.append((start, end, [match.node for match in near]))
    return [(question[start:end], nodes) for start, end, nodes in sorted(spans)]


def _parts(question: str) -> Iterator[tuple[int, int]]:
    """Where runs of words start and end that are not common words alone."""
    words = list(re.finditer(r"[^\W_](?:[\w'-]*\w)?", question))[:PARTS]
    for first in range(len(words)):
        for last in range(first, min(first + LONGEST, len(words))):
            if not COMMON.issuperset(word[0].lower() for word in words[first : last + 1]):
                yield words[first].start(), words[last].end()


def _nearest(names: Names, texts: Sequence[str], embed: Embed, count: int, least: float) -> list[list[str]]:
    return [[match.node for match in matches] for matches in names.nearest(texts, embed, count, least)]
