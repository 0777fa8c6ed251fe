"""Entity linking: find the nodes of a knowledge graph that a question names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge

from secateur.clients import chat
from secateur.clients.stores import is_usable
from secateur.errors import SecateurError
from secateur.methods import graphs
from secateur.methods.asking import Record, Spending, list_in
from secateur.methods.similarity import Similarity
from secateur.retrieval.encoders import Embed
from secateur.retrieval.names import Match, Names
from secateur.retrieval.words import COMMON, Words, stop_words
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

__all__ = [
    "NOTHING",
    "Linking",
    "NodeLinking",
    "Span",
    "Spelling",
    "correct",
    "find_spans",
    "link_names",
    "link_question",
    "link_topics",
    "list_names",
    "rank_homonyms",
]


class Spelling(NamedTuple):
    """What stands in a question, and the name in the graph that is taken for it."""

    written: str
    name: str

    @property
    def note(self) -> str:
        """For whoever asked."""
        return f"nothing in the graph is called {self.written!r}: {self.name!r} is taken for it"


Span = tuple[int, int, list[str]]
"""Where a name starts and ends in a question, and the nodes that it may mean, the best first."""

NOTHING = "nothing in the graph was found for the question"
TRIES, WARM = 3, 0.4
"""How often a language model is asked for names until they can be read, and the temperature but for the first time."""
LONGEST = 6
"""Words of a part of a question that is compared with names."""
PARTS = 512
"""Parts of a question that are compared with names, at most."""
SPELT = 0.8
"""How like a name a part of a question is spelt, at least; see `Names.spelt_alike`."""
HOMONYMS, BESIDE = 20, 30
"""Things of one name that are told apart by the question, and facts of each that are looked at."""
RELATED = 256
"""Facts of a thing, in each direction, by which it is known how it is related to others."""
LEAD = 0.03
"""Cosine by which the name that a part of a question is nearest to is ahead of those of other things."""
_ASKING = re.compile(r"\b(?:which|what)\s+$", re.IGNORECASE)
"""Behind this stands the kind of thing that is asked for, as in "Which language is spoken", and no name."""


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
    """Encoder of names of nodes, as `embedder`, which it is unless given; `precision` is of both if they are one."""
    kinds: Sequence[str] = ()
    """The question is searched for things of these kinds alone, "Disease", by what the graph calls them."""
    nearest: Annotated[int, Ge(1)] = 1
    """Nodes for each name."""
    fallback: Annotated[int, Ge(0)] = 5
    """Nodes where the question names nothing that is known, the nearest to all of it by the embedder; 0 for none."""
    follow: Annotated[int, Ge(0)] = 4
    """Nodes that the best facts lead to, and that are looked at, too, where a word of the question stands in no fact of
    those that it names, at most; 0 for none. "Where was the founder of Cordia born?" asks for a fact two hops away."""


def link_topics(
    graph: KnowledgeGraph,
    topics: Sequence[str],
    embed: Embed | None,
    linking: Linking,
    kinds: Sequence[str] = (),
    nearest: int = 1,
    question: str = "",
) -> tuple[dict[str, list[str]], list[str]]:
    """Topic -> nodes, IRIs as they are; and notes on those without any, and on those that were spelt otherwise.

    What may be an IRI or a name, DOID:2841, is the thing that is called so where there is one.

    Of several things of one name those come first that have most to do with the question. What nothing is called is
    looked for by its spelling, then by an encoder where there is one.
    """
    called = [topic for topic in topics if not _is_surely_iri(topic)]
    if not called:
        return {topic: [topic] for topic in topics}, []
    names, notes = graphs.find_names(graph, called, tuple(kinds), linking.lookup)
    nodes = {
        topic: rank_homonyms(graph, question, names.find_named(topic), embed)[:nearest] if topic in called else [topic]
        for topic in topics
    }
    nodes |= {topic: [topic] for topic in called if not nodes[topic] and is_usable(topic)}
    lost = [topic for topic in topics if not nodes[topic]]
    for topic, (spelt, spelling) in zip(lost, _spelt(graph, names, lost, question, embed, linking), strict=True):
        nodes[topic] = spelt[:nearest]
        notes += [spelling.note] if spelling else []
    lost = [topic for topic in topics if not nodes[topic]]
    if lost and embed is not None:
        nodes |= dict(zip(lost, _nearest(names, lost, embed, nearest, linking.least), strict=True))
    notes += [f"nothing in the graph is called {topic!r}" for topic in topics if not nodes[topic]]
    return nodes, notes


def _is_surely_iri(topic: str) -> bool:
    return is_usable(topic) and topic.lower().startswith(("http://", "https://", "urn:"))


EXTRACTION = (
    "Which {kinds} does the question name? Answer with JSON alone, such as "
    '{{"entities": ["first name", "second name"]}}, and write each as the question does. If it names none, answer '
    '{{"entities": []}}.\nQuestion: {question}'
)


def list_names(
    question: str, model: chat.LanguageModel, kinds: Sequence[str], seed: int
) -> tuple[list[str] | None, Record]:
    """The names that a language model finds in the question, and the record of it.

    What can't be read is asked for anew, `TRIES` times in all. None where there is no list then, where the model is
    down, or may not be asked any more: names are to be found without it.
    """
    spending, request = Spending(model), EXTRACTION.format(kinds=", ".join(kinds) or "things", question=question)
    names, failure = None, "its answer is no list of names"
    try:
        for attempt in range(TRIES):
            # The same question at temperature 0 has the same answer.
            warmth = WARM if attempt else 0.0
            names = list_in(chat.ask_text(model, request, most=256, temperature=warmth, seed=seed + attempt))
            if names is not None:
                break
    except SecateurError as error:
        failure = str(error)
    notes = [f"names were found without the language model: {failure}"] if names is None else []
    return names, {"llm_calls": spending.calls, "llm_tokens": spending.tokens, "notes": notes}


def link_names(
    graph: KnowledgeGraph, question: str, listed: Sequence[str], embed: Embed | None, linking: NodeLinking
) -> tuple[list[str], Record]:
    """The nodes of names that a language model listed, and the record of them, as `link_question`."""
    names, notes = graphs.find_names(graph, listed, tuple(linking.kinds), linking.lookup)
    linked = list[tuple[str, list[str]]]()
    near = _nearest(names, listed, embed, linking.nearest, linking.least) if embed is not None else [[] for _ in listed]
    spelt = _spelt(graph, names, listed, question, embed, linking)
    for name, by_vectors, (by_spelling, spelling) in zip(listed, near, spelt, strict=True):
        exact = [node for mention in names.mentions(name) for node in mention.nodes]
        same = names.find_named(name)
        nodes = rank_homonyms(graph, question, same or ([] if by_vectors else exact), embed)
        if not nodes and spelling:
            nodes, notes = by_spelling, [*notes, spelling.note]
        linked.append((name, (nodes or by_vectors)[: linking.nearest]))
    return _record(names, question, linked, notes, embed, linking)


def link_question(
    graph: KnowledgeGraph, question: str, embed: Embed | None, linking: NodeLinking
) -> tuple[list[str], Record]:
    """The nodes that a question names, in the order of their names in it; the nearest to all of it where there is none.

    A part that an encoder finds near a name is none where it says what a thing is or does and not which: where its
    terms are those of a relation or kind of what it would lead to, or of what is named; where it stands behind "which";
    and, if the question names something else, where names of several things are about as near.

    The record holds entities (names in the question), fallback (whether the nearest stand in) and notes; and, where
    names were spelt otherwise than in the graph, the question with their names there.
    """
    names, notes = graphs.find_names(graph, [question], tuple(linking.kinds), linking.lookup)
    spans, spellings = find_spans(graph, names, question, embed, linking)
    spans = [(start, end, nodes[: linking.nearest]) for start, end, nodes in spans]
    if embed is not None:
        parts = [(start, end) for start, end in _parts(question, graph) if _is_free(spans, start, end)][:PARTS]
        texts = [question[start:end] for start, end in parts]
        matches = names.nearest(texts, embed, linking.nearest + 1, linking.least)
        close = [(-near[0].score, *part, near) for part, near in zip(parts, matches, strict=True) if near]
        named, said = bool(spans), _say_terms(graph, spans) if close else set[str]()
        for _, start, end, near in sorted(close):
            text, span = question[start:end], (start, end, [match.node for match in near[: linking.nearest]])
            if named and _is_torn(near):
                said |= _terms_alone(graph, text)
            elif not _is_free(spans, start, end) or _ASKING.search(question[:start]):
                continue
            elif not _is_said(graph, said | _say_terms(graph, [span]), text):
                spans.append(span)
    linked = [(question[start:end], nodes) for start, end, nodes in sorted(spans)]
    found, record = _record(
        names, question, linked, [*notes, *(spelling.note for spelling in spellings)], embed, linking
    )
    return found, {**record, "question": correct(question, spellings)} if spellings else record


def find_spans(
    graph: KnowledgeGraph, names: Names, question: str, embed: Embed | None, linking: Linking
) -> tuple[list[Span], list[Spelling]]:
    """The names that stand in a question as they are, or spelt a little otherwise; and those of the latter.

    Words that say nothing (`stop_words` of the graph's language) are no names on their own, and what facts of the
    things named say is none that is spelt wrong. Things of one name are in the order of what they have to do with the
    question.
    """
    found = names.mentions(question, common=_common(graph))
    spans: list[Span] = [
        (mention.start, mention.end, rank_homonyms(graph, question, mention.nodes, embed)) for mention in found
    ]
    parts = [(start, end) for start, end in _parts(question, graph) if _is_free(spans, start, end)][:PARTS]
    texts = [question[start:end] for start, end in parts]
    matches = names.spelt_alike(texts, max(linking.least, SPELT))
    close = [
        (-near[0].score, start - end, start, end, near)
        for (start, end), near in zip(parts, matches, strict=True)
        if near
    ]
    otherwise, said = list[Spelling](), _say_terms(graph, spans) if close else set[str]()
    for _, _, start, end, near in sorted(close):
        if _is_free(spans, start, end) and not _is_said(graph, said, question[start:end]):
            spans.append((start, end, rank_homonyms(graph, question, [match.node for match in near], embed)))
            said |= _say_terms(graph, spans[-1:])
            otherwise.append(Spelling(question[start:end], near[0].name))
    return sorted(spans), otherwise


def _say_terms(graph: KnowledgeGraph, spans: Sequence[Span]) -> set[str]:
    """The terms of what relates the things of `spans` to others, and of their kinds."""
    nodes = {node for _, _, found in spans for node in found[:HOMONYMS]}
    relations = {fact.predicate for fact in graph.around(nodes, literals=True, most=RELATED, noted=False)}
    terms = _words(graph)
    return {
        term for said in (graph.names(relations), graph.kinds(nodes)) for name in said.values() for term in terms(name)
    }


def _is_said(graph: KnowledgeGraph, said: set[str], text: str) -> bool:
    """Whether all terms of `text` are of `said`, so that it is no name: an issue is no tissue, a currency no Euro."""
    return said.issuperset(_words(graph)(text))


def _is_torn(near: Sequence[Match]) -> bool:
    """Whether a thing of another name is as near, or nearly so: "country" is a word for both, and names neither."""
    first, *others = near
    return any(match.name != first.name and first.score - match.score < LEAD for match in others)


def correct(question: str, spellings: Sequence[Spelling]) -> str:
    """The question with names as the graph spells them: what is compared with it knows no others."""
    for written, name in spellings:
        question = re.sub(rf"(?<!\w){re.escape(written)}(?!\w)", name.replace("\\", r"\\"), question)
    return question


def rank_homonyms(graph: KnowledgeGraph, question: str, nodes: Sequence[str], embed: Embed | None) -> list[str]:
    """Things of one name, those first whose kind and facts are most like the question; equals as they were given.

    Of more than `HOMONYMS` the others come behind.
    """
    several = list(dict.fromkeys(nodes))
    if len(several) < 2 or not question.strip():
        return several
    first, rest = several[:HOMONYMS], several[HOMONYMS:]
    kinds, beside = graph.kinds(first), graph.around(first, most=BESIDE, noted=False)
    names = graph.names({end for fact in beside for end in (fact.subject, fact.predicate, fact.object)} | set(first))
    said: dict[str, list[str]] = {node: [kinds[node]] for node in first}
    for fact in beside:
        for node, other in ((fact.subject, fact.object), (fact.object, fact.subject)):
            if node in said:
                said[node] += [names[fact.predicate], names[other]]
    scores = Similarity(embed, digits=6).rank(question, [" ".join(dict.fromkeys(said[node])) for node in first])
    order = sorted(range(len(first)), key=lambda i: -scores[i])
    return [*(first[i] for i in order), *rest]


def _spelt(
    graph: KnowledgeGraph,
    names: Names,
    texts: Sequence[str],
    question: str,
    embed: Embed | None,
    linking: Linking,
) -> list[tuple[list[str], Spelling | None]]:
    """Of each text the nodes of the name that it is a misspelling of, and that; nothing where it is of none."""
    found = list[tuple[list[str], Spelling | None]]()
    for text, near in zip(texts, names.spelt_alike(texts, max(linking.least, SPELT)), strict=True):
        nodes = rank_homonyms(graph, question, [match.node for match in near], embed)
        found.append((nodes, Spelling(text, near[0].name) if near else None))
    return found


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


def _common(graph: KnowledgeGraph) -> frozenset[str]:
    """Words of English, and of the graph's language, that name nothing."""
    return COMMON | stop_words(graph.language.partition("-")[0])


def _terms_alone(graph: KnowledgeGraph, text: str) -> set[str]:
    """The term of a text of one term; nothing of another text, whose terms may each be of a name."""
    terms = _words(graph)(text)
    return set(terms) if len(terms) == 1 else set()


def _words(graph: KnowledgeGraph) -> Words:
    return Words(graph.language.partition("-")[0])


def _is_free(spans: Sequence[Span], start: int, end: int) -> bool:
    return not any(start < right and left < end for left, right, _ in spans)


def _parts(question: str, graph: KnowledgeGraph) -> Iterator[tuple[int, int]]:
    """Where runs of words start and end of which neither the first nor the last is a common word."""
    words, common = list(re.finditer(r"[^\W_](?:[\w'-]*\w)?", question))[:PARTS], _common(graph)
    for first in range(len(words)):
        for last in range(first, min(first + LONGEST, len(words))):
            run = [word[0].lower() for word in words[first : last + 1]]
            if run[0] not in common and run[-1] not in common:
                yield words[first].start(), words[last].end()


def _nearest(names: Names, texts: Sequence[str], embed: Embed, count: int, least: float) -> list[list[str]]:
    return [[match.node for match in matches] for matches in names.nearest(texts, embed, count, least)]
