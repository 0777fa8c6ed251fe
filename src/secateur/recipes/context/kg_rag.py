"""KG-RAG: biomedical knowledge graph-optimized prompt generation for large language models.

Soman, Rose, Morris, Akbas, Smith, Peetoom, Villouta-Reyes, Cerono, Shi, Rizk-Jackson, Israni, Nelson, Huang and
Baranzini, Bioinformatics 40(9), 2024 (arXiv 2311.17330).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.clients.stores import usable
from secateur.errors import BudgetError, InputError, SecateurError
from secateur.methods import graphs
from secateur.retrieval import encoders
from secateur.retrieval.encoders import Count
from secateur.retrieval.names import COMMON, Names
from secateur.score import relevance
from secateur.select import limits as limits_of
from secateur.select import ranking, thresholds
from secateur.subjects.graph.knowledge_graph import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.text import markup
from secateur.vocabulary import Array, Budget, Cut, Result, Selection

CARD = {
    "title": "KG-RAG: Biomedical Knowledge Graph-Optimized Prompt Generation for Large Language Models",
    "paper": "https://arxiv.org/abs/2311.17330",
    "cuts": "facts of a knowledge graph around what a question names, under a budget of tokens",
    "recovers": "nothing",
    "extra": "context",
    "family": "context",
}

FLOOR = 0.3
"""How like the question a fact must be, by all-MiniLM-L6-v2."""
ENTITIES = 16
"""Names in a language model's answer that are looked up; what is behind them is nonsense."""
LONGEST = 6
"""Words of a part of a question that is compared with names."""
PHRASES = 512
"""Parts of a question that are compared with names, at most."""

EXTRACTION = (
    "Which {kinds} does the question name? Answer with JSON alone, such as "
    '{{"entities": ["first name", "second name"]}}, and write each as the question does. If it names none, answer '
    '{{"entities": []}}.\nQuestion: {question}'
)
SYSTEM = (
    "You are given facts under Context, one a line, and a question. Answer the question briefly from these facts "
    "alone, and name the sources that the facts you use are said to come from. If they don't hold the answer, say so."
)
CHOOSING = 'Answer with JSON alone, {{"answer": "..."}}, and give one of these: {choices}.'


def kg_rag(
    subject: KnowledgeGraph,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    embedder: Any = "",
    namer: Any = "",
    tokenizer: Any = "",
    topics: Sequence[str] = (),
    percentile: float = 75.0,
    floor: float | None = None,
    calibrate: float = 0.0,
    volume: int = 150,
    few: int = 4,
    fill: bool = False,
    joins: float = 0.0,
    terms: float = 0.3,
    nearest: int = 1,
    fallback: int = 5,
    least: float = 0.6,
    lookup: Literal["all", "query"] = "all",
    kinds: Sequence[str] = (),
    filters: Sequence[str] = (),
    literals: bool = True,
    identifier: bool = True,
    origin: str = "",
    evidence: bool = False,
    llm: Any = "",
    llm_name: str = "",
    calls: int = 0,
    llm_tokens: int = 0,
    answer: bool = False,
    choices: Sequence[str] = (),
    system: str = "",
    device: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """From the facts around what a question names, keep those that are most like the question.

    1. What the question names is found: by a language model that answers with a list, or else by the names of the graph
       that stand in it, and by parts of it whose embedding is near that of a name. Each leads to the `nearest` nodes;
       where nothing is found, the `fallback` nodes nearest to the whole question stand in.
    2. Each node's facts, one hop around it, become a sentence each, "Compound ibuprofen treats Disease headache,
       according to DrugCentral".
    3. s, how like the question a sentence is, is (1 - terms) cosine + terms BM25 / its highest at the node. Of n nodes,
       each keeps the floor(volume / n) facts with the highest s among those with s > P and s > `floor`, P the
       percentile of that node's own s. Both are strict.
    4. Facts leave, the least similar first, until what is left fits into the budget, counted anew each time.

    Args:
        subject: the graph; it stays as it is.
        data: the question.
        budgets: tokens=1000, or words=600 where there is no tokenizer; or a share of all facts around the nodes.
        run: where scores go.
        embedder: folder or Hub id of a bi-encoder, or such a model; without one facts are ranked by BM25.
        namer: the same for names of nodes; the embedder unless given.
        tokenizer: folder or Hub id of the reader's tokenizer, or a function that counts tokens; the embedder's own if
            not given.
        topics: what the question is about, names or IRIs in the graph; else it is looked for in it. Where all are IRIs
            no names of the graph are read, which suits a large endpoint.
        percentile: of a node's similarities, from 0 to 100.
        floor: what s must exceed whatever the others have. It depends on the encoder: unless given it is 0.3, which
            suits all-MiniLM-L6-v2, or 0 without an embedder. The paper has 0.5 for its encoder's cosine alone.
        calibrate: put the floor at this percentile of s of facts and questions of the graph that have nothing to do
            with one another, 95 say: it is found so for any embedder. 0 for the floor as it is given.
        volume: facts of all nodes together, at most.
        terms: share of BM25 in s, from 0 (the paper) to 1.
        few: a node with at most so many facts is not cut by percentile.
        fill: facts that only their percentile takes come behind the others, the most alike first, as far as the budget
            has room; the floor and the volume hold as before.
        joins: s of a fact that joins two of the nodes becomes s + joins (1 - s), from 0 to 1; 0.3 where questions name
            several things that have to do with one another.
        nearest: nodes for each name.
        fallback: nodes where the question names nothing that is known; 0 for none.
        least: similarity below which the node nearest to a name is not taken for it.
        lookup: "all" reads the names of all things once, and compares the question with each; "query" asks the graph
            for those that the question may hold, which suits an endpoint of millions, and finds fewer that are spelt
            otherwise.
        kinds: the question is searched for things of these kinds alone, "Disease", by what the graph calls them.
        filters: what is asked of a fact's properties, "score>=0.7", "phase<=3" or "source=SwissProt|UniProt"; a fact
            without that property passes.
        literals: also facts that lead to words or numbers instead of nodes.
        identifier: one more sentence for each node, with what identifies it in the graph.
        origin: what a fact that names no source is said to come from; nothing is said if empty.
        evidence: put all that is known of a fact behind its sentence, as JSON; it is selected without.
        llm: address of a server of OpenAI's protocol, folder or Hub id of a language model, or such a model.
        llm_name: of the model, on a server.
        calls: of the language model, at most; no limit if 0. Names are then found without, and nothing is answered.
        llm_tokens: the same for tokens in and out.
        answer: also ask the language model the question, with what is kept.
        choices: answers of which it is to give one.
        system: what the language model is told before all else; if empty, to answer briefly and name sources.
        device: where embedder and namer are held if given by name, "cuda"; the processor if empty.
        seed: of the language model's answers.
        dry_run: as a run; nothing is kept.

    Nothing found, or no fact above both thresholds, or none that fits, gives an empty result, and `told-...` in the run
    says why. A language model that is down, or answers nonsense, counts as one that found nothing; where a limit on it
    is reached, names are found without it. A graph that does not answer raises `ServerError`.

    Departures: BM25 has a share in s (`terms`), since a small encoder hardly tells names of one sort apart; more of the
    facts that answer stay with both than with either. The paper's floor is for its own encoder. A percentile says
    nothing of a handful of facts, of which it would leave one at most (`few`), and where more than its share of facts
    are equally the most alike it would leave none: these stay; `fill` and `joins` are this project's. A fact that two
    nodes share is told once. What is said in words or numbers counts, too (`literals`). Sentences stay a list, where
    the released code joins them and splits them at ". ", so that names with a full stop break. Facts are cut by the
    budget in tokens too, not by their number alone. What the paper's prompt says of medical advice is left out, as are
    the renaming of two sources and the descriptions that name proteins of one graph.
    """
    numbers = {"volume": volume, "few": few, "fallback": fallback, "calls": calls, "llm_tokens": llm_tokens}
    wrong = next((name for name, value in numbers.items() if value < 0), "")
    if wrong or nearest < 1:
        raise InputError(f"{wrong or 'nearest'} is too small: give at least {0 if wrong else 1}")
    if (answer or choices) and not llm:
        raise InputError("an answer needs a language model: give one (--llm)")
    if not 0 <= terms <= 1:
        raise InputError(f"terms={terms}: give the share of BM25, from 0 to 1")
    if not 0 <= joins <= 1:
        raise InputError(f"joins={joins}: give how far s of facts between two nodes is raised to 1, from 0 to 1")
    if calibrate and not (0 < calibrate < 100 and embedder and floor is None):
        raise InputError(f"calibrate={calibrate:g}: give a percentile below 100, an embedder, and no floor")
    rules = tuple(map(rule, filters))
    reader = tokenizer or encoders.named(embedder)
    counts = {"tokens": encoders.counter(reader)} if reader else {}
    question = " ".join(data.split())
    model = chat.answering(llm, llm_name, calls=calls, tokens=llm_tokens) if llm else None
    embed = encoders.remembering(embedder, device=device) if embedder else None
    names = encoders.remembering(namer, device=device) if namer else embed
    if floor is None:
        floor = FLOOR if embed else 0.0
    if calibrate and embed:
        floor = run.json("floor", lambda: calibrated(subject, embed, calibrate, terms))

    def retrieved() -> dict[str, Any]:
        given = [" ".join(topic.split()) for topic in topics if topic.strip()]
        asked: dict[str, Any] = {"llm_calls": 0, "llm_tokens": 0} if model else {}
        if given:
            nodes, told = chosen(subject, given, names, tuple(kinds), nearest, least, lookup)
        else:
            listed, asked = named(question, model, kinds, seed) if model else (None, asked)
            nodes, told = linked(subject, question, listed, names, tuple(kinds), nearest, fallback, least, lookup)
        sites = labelled(subject, nodes)
        for site in sites:
            rows = sentences(subject, site, rules, literals, identifier, origin)
            site["rows"] = rated(rows, question, embed, terms, evidence)
            told["notes"] += [f"{site['name']} has more facts than are read"] * (site["node"] in subject.crowded)
        told["nodes"] = nodes
        return {"told": {**asked, **told, "notes": [*asked.get("notes", []), *told["notes"]]}, "sites": sites}

    found = run.json("retrieved", retrieved)
    sites = joined(found["sites"], joins)
    whole = lines(once(sites, [np.ones(len(site["rows"]), bool) for site in sites])).cost(counts)
    for budget in budgets:
        limits, most = limits_of.reading(budget, whole, "a context"), volume // max(1, len(sites))
        above = partial(passing, sites, percentile=percentile, floor=floor, most=most)
        high = above(few=few)
        further = above(few=sum(len(site["rows"]) for site in sites)) if fill else high
        kept, lost = fitting(further, limits, counts, {row["text"] for row in high.values()})
        facts = lines(kept)
        after, trace = facts.cost(counts), traced(sites, kept, counts)
        told = {
            **found["told"], **({"floor": floor} if calibrate else {}),
            "facts_before": sum(map(len, trace.values())), "facts_after": len(kept),
            **{f"{name}_before": value for name, value in whole.items()},
            **{f"{name}_after": value for name, value in after.items()},
        }  # fmt: skip
        told["notes"] = [*told["notes"], *reasons(sites, floor, most), *lost]
        run.json(f"trace-{budget}", partial(dict, trace))
        request = prompt(question, facts.written(), system=system or SYSTEM, choices=choices)
        run.json(f"told-{budget}", partial(answered, model if answer else None, request, told, seed, choices))
        gone = {name: (sum(not row["kept"] for row in rows), len(rows)) for name, rows in trace.items()}
        yield Result(str(budget), facts, Cut(gone, whole, after, tuple(told["notes"])), after)


Row = dict[str, Any]
"""A fact of a node: fact, text, path, predicate, target, provenance, evidence; then score and rank.

fact: subject, predicate, object and whether that is a literal; None for what identifies the node.
"""

Around = dict[str, Any]
"""A node and its facts: site, node, name, rows."""


# ------------------------------------------------------------------------------------- what the question speaks of


def named(
    question: str, model: chat.LanguageModel, kinds: Sequence[str], seed: int
) -> tuple[list[str] | None, dict[str, Any]]:
    """The names that a language model finds in the question, none where it gives no list; and what is told of it.

    None where it may not be asked any more.
    """
    calls, tokens, notes = model.meter.calls, model.meter.tokens, list[str]()
    found: list[str] | None = []
    try:
        request = EXTRACTION.format(kinds=", ".join(kinds) or "things", question=question)
        listed = listing(chat.said(model, request, most=256, temperature=0.0, seed=seed))
        found = listed or []
        notes += [] if listed is not None else ["the language model's answer is no list of names"]
    except BudgetError as error:
        found, notes = None, [f"names were found without the language model: {error}"]
    except SecateurError as error:
        notes.append(f"the language model was of no use: {error}")
    return found, {
        "llm_calls": model.meter.calls - calls,
        "llm_tokens": model.meter.tokens - tokens,
        "notes": notes,
    }


def objects(reply: str) -> Iterator[dict[str, Any]]:
    """The first objects of JSON that stand in a reply."""
    decoder = json.JSONDecoder()
    for start in [match.start() for match in itertools.islice(re.finditer(r"\{", reply), 20)]:
        try:
            found, _ = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def listing(reply: str) -> list[str] | None:
    """The first list of texts in an object of JSON in a reply; None where there is none."""
    for value in (value for found in objects(reply) for value in found.values()):
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            names = dict.fromkeys(" ".join(name.split())[:200] for name in value)
            return [name for name in names if name][:ENTITIES]
    return None


def linked(
    graph: KnowledgeGraph,
    question: str,
    listed: Sequence[str] | None,
    embed: encoders.Embed | None,
    kinds: tuple[str, ...],
    nearest: int,
    fallback: int,
    least: float,
    lookup: str,
) -> tuple[list[str], dict[str, Any]]:
    """The nodes that a question speaks of, in the order of their names in it; and what is told of it.

    listed: the names in it, where a language model was asked for them. embed: without it, names count as they stand.
    """
    index, lost = graphs.speaking(graph, [question] if listed is None else listed, kinds, lookup)
    if listed is None:
        found = standing(index, question, embed, nearest, least)
    elif embed is not None:
        found = list(zip(listed, near(index, listed, embed, nearest, least), strict=True))
    else:
        found = [(name, [node for one in index.mentions(name) for node in one.nodes][:nearest]) for name in listed]
    notes = [*lost, *(f"no name in the graph is near {name!r}" for name, nodes in found if not nodes)]
    nodes = list(dict.fromkeys(node for _, some in found for node in some))
    stands_in = not nodes and fallback > 0 and embed is not None and len(index) > 0
    if stands_in and embed is not None:
        (nodes,) = near(index, [question], embed, fallback, -1.0)
        notes.append("the question names nothing that is known: the nodes nearest to all of it stand in")
    if not nodes:
        notes.append("nothing in the graph was found for the question")
    return nodes, {"entities": [name for name, _ in found], "fallback": stands_in, "notes": notes}


def chosen(
    graph: KnowledgeGraph,
    topics: Sequence[str],
    embed: encoders.Embed | None,
    kinds: tuple[str, ...],
    nearest: int,
    least: float,
    lookup: str,
) -> tuple[list[str], dict[str, Any]]:
    """The nodes of topics that are given, IRIs as they are; and what is told of it."""
    called = [topic for topic in topics if not usable(topic)]
    index, told = graphs.speaking(graph, called, kinds, lookup) if called else (None, [])
    found = {topic: [topic] if index is None or usable(topic) else index.called(topic)[:nearest] for topic in topics}
    lost = [topic for topic, nodes in found.items() if not nodes]
    if lost and index is not None and embed is not None:
        found |= dict(zip(lost, near(index, lost, embed, nearest, least), strict=True))
    notes = [*told, *(f"nothing in the graph is called {topic!r}" for topic, nodes in found.items() if not nodes)]
    nodes = list(dict.fromkeys(node for some in found.values() for node in some))
    notes += [] if nodes else ["nothing in the graph was found for the question"]
    return nodes, {"entities": list(found), "fallback": False, "notes": notes}


def near(index: Names, texts: Sequence[str], embed: encoders.Embed, count: int, least: float) -> list[list[str]]:
    """The nodes whose names are nearest to each text."""
    return [[match.node for match in matches] for matches in index.nearest(texts, embed, count, least)]


def standing(
    index: Names, question: str, embed: encoders.Embed | None, nearest: int, least: float
) -> list[tuple[str, list[str]]]:
    """(part of the question, nodes): names that stand in it, and parts of the rest that are near to a name."""
    spans = [(one.start, one.end, list(one.nodes)[:nearest]) for one in index.mentions(question)]

    def free(start: int, end: int) -> bool:
        return not any(start < right and left < end for left, right, _ in spans)

    words = list(re.finditer(r"[^\W_](?:[\w'-]*\w)?", question))[:PHRASES]
    parts = [
        (words[i].start(), words[j].end())
        for i in range(len(words))
        for j in range(i, min(i + LONGEST, len(words)))
        if free(words[i].start(), words[j].end())
        and not COMMON.issuperset(word[0].lower() for word in words[i : j + 1])
    ][:PHRASES]
    texts = [question[start:end] for start, end in parts]
    found = index.nearest(texts, embed, nearest, least) if embed is not None else []
    close = [(-matches[0].score, *part, matches) for part, matches in zip(parts, found, strict=False) if matches]
    for _, start, end, matches in sorted(close):
        if free(start, end):
            spans.append((start, end, [match.node for match in matches]))
    return [(question[start:end], nodes) for start, end, nodes in sorted(spans)]


def labelled(graph: KnowledgeGraph, nodes: Sequence[str]) -> list[Around]:
    """Site, node and name of each node; no two sites have the same name."""
    names, found = graph.names(nodes), dict[str, Around]()
    for node in nodes:
        site = f"facts.{names[node]}"
        site = site if site not in found else f"{site} ({node})"
        found[site] = {"site": site, "node": node, "name": names[node]}
    return list(found.values())


# ------------------------------------------------------------------------------------------------- facts as sentences


class Rule(NamedTuple):
    """What is asked of a property of facts."""

    name: str
    allows: Callable[[str], bool]


def rule(text: str) -> Rule:
    """What score>=0.7, phase<=3 or source=SwissProt|UniProt asks for; `InputError` for what asks for nothing."""
    match = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=|=)\s*(.+?)\s*", text)
    if match is None:
        raise InputError(f"filter {text!r} was not understood: write score>=0.7, phase<=3 or source=SwissProt|UniProt")
    name, sign, asked = match[1].casefold(), match[2], match[3]
    if sign == "=":
        allowed = {value.strip() for value in asked.split("|")}
        return Rule(name, allowed.__contains__)
    limit, turn = number(asked), 1 if sign == ">=" else -1
    if limit is None:
        raise InputError(f"filter {text!r}: {asked!r} is no number; write such as score>=0.7")
    return Rule(name, lambda value: (found := number(value)) is not None and turn * found >= turn * limit)


def number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def passes(known: Mapping[str, Sequence[str]], rules: Sequence[Rule]) -> bool:
    """Whether each property of a fact that is asked for has a value that is allowed, or is not there."""
    there = folded(known)
    return all(any(map(rule.allows, there[rule.name])) for rule in rules if rule.name in there)


def folded(known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Properties by their names without letter case."""
    return {name.casefold(): values for name, values in known.items() if values}


def sentences(
    graph: KnowledgeGraph, site: Around, rules: Sequence[Rule], literals: bool, identifier: bool, origin: str
) -> list[Row]:
    """The facts around a node, each as a sentence with its provenance; and one that says what identifies the node."""
    node, facts = site["node"], graph.around([site["node"]], literals=literals)
    known = graph.known(facts)
    facts = [fact for fact in facts if passes(known[fact], rules)]
    things = {part for fact in facts for part in (fact.subject, *([] if fact.literal else [fact.object]))} | {node}
    names, titles = titled(graph, facts, things)
    found = list[Row]()
    for fact in facts:
        said, verb = known[fact], relation(fact.predicate, names)
        other = fact.object if fact.subject == node else fact.subject
        sources = provenance(said) or ([origin] if origin else [])
        text = statement(fact, names, titles)
        text += f", according to {', '.join(sources)}" if sources else ""
        found.append(
            {"fact": list(fact), "text": text, "path": f"{site['name']} > {verb}", "predicate": verb,
             "target": other if fact.literal else names[other], "provenance": sources, "evidence": plain(said)}
        )  # fmt: skip
    own = graph.identifier(node)
    if identifier and found and not same(own, site["name"]):
        text = f"{titles[node]} has the identifier {own}"
        found.append(
            {"fact": None, "text": text, "path": site["name"], "predicate": "identifier", "target": own,
             "provenance": [], "evidence": {}}
        )  # fmt: skip
    return found


def titled(
    graph: KnowledgeGraph, facts: Sequence[Fact], things: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """What things and the predicates of facts are called; and things with their kinds before that."""
    kinds, names = graph.kinds(things), graph.names([*things, *(fact.predicate for fact in facts)])
    return names, {thing: f"{kinds[thing]} {names[thing]}" if kinds.get(thing) else names[thing] for thing in things}


def statement(fact: Fact, names: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """A fact as a sentence."""
    end = fact.object if fact.literal else titles[fact.object]
    return f"{titles[fact.subject]} {relation(fact.predicate, names)} {end}"


_SPOKE = re.compile(r"([A-Z]+)_[A-Z][A-Za-z]*[a-z][A-Z][A-Za-z]*")
"""TREATS_CtD: what it says, then the kinds of its ends and a letter between them."""


def relation(predicate: str, names: Mapping[str, str]) -> str:
    """A predicate in words: TREATS_CtD is treats, others have their names."""
    match = _SPOKE.fullmatch(KnowledgeGraph.identifier(predicate))
    return match[1].lower() if match else names[predicate]


def same(one: str, other: str) -> bool:
    """Whether two names differ in signs and case alone."""
    return markup.terms(one.replace("_", " ")) == markup.terms(other.replace("_", " "))


PROVENANCE = {"sources": "", "source": "", "preprint_list": "", "pmid_list": "pubmedId:", "pmid": "pubmedId:"}
"""Properties that say where a fact comes from, the first that is there; and what is put before their values."""


def provenance(known: Mapping[str, Sequence[str]]) -> list[str]:
    """Where a fact comes from."""
    there = folded(known)
    name = next((name for name in PROVENANCE if name in there), "")
    return [value if value.startswith(PROVENANCE[name]) else PROVENANCE[name] + value for value in there.get(name, ())]


def plain(known: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is known of a fact as JSON holds it: numbers as numbers, and what is single not as a list."""

    def value(text: str) -> Any:
        return json.loads(text) if re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?(e-?\d{1,2})?", text) else text

    found = {name: [value(text) for text in known[name]] for name in sorted(known)}
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


# --------------------------------------------------------------------------------------------- what of them is kept


def rated(rows: Sequence[Row], question: str, embed: encoders.Embed | None, terms: float, evidence: bool) -> list[Row]:
    """The rows with their scores, the best first; and with evidence in their texts where it is to be told."""
    texts = [row["text"] for row in rows]
    if not rows:
        return []
    values = np.zeros(len(rows))
    if embed is None or terms > 0:
        found = relevance.bm25(markup.terms(question), [markup.terms(text) for text in texts])
        values = found / max(found.max(), 1e-9)
    if embed is not None:
        vectors = embed([question, *texts])
        values = terms * values + (1 - terms) * relevance.cosine(vectors[0], vectors[1:])
    # The last digits depend on what a text was read together with.
    values = np.round(values, 6)
    order = np.argsort(-values, kind="stable")
    ranked = [{**rows[i], "score": float(values[i]), "rank": rank} for rank, i in enumerate(order, start=1)]
    for row in ranked if evidence else []:
        row["text"] += f" {json.dumps(row['evidence'], ensure_ascii=False)}" if row["evidence"] else ""
    return ranked


def joined(sites: Sequence[Around], joins: float) -> list[Around]:
    """The same, the best facts first; s of those that join two nodes is raised by a share of what it lacks to 1."""
    nodes = {site["node"] for site in sites}

    def raised(row: Row) -> float:
        subject, _, end, literal = row["fact"] or ("", "", "", True)
        both = not literal and subject != end and {subject, end} <= nodes
        score = float(row["score"])
        return round(score + joins * (1 - score), 6) if both else score

    if not joins:
        return list(sites)
    found = list[Around]()
    for site in sites:
        rows = sorted(({**row, "score": raised(row)} for row in site["rows"]), key=lambda row: -row["score"])
        found.append({**site, "rows": [{**row, "rank": rank} for rank, row in enumerate(rows, start=1)]})
    return found


UNRELATED = 128
"""Facts of a graph by which its floor is found, each of another thing."""
ENOUGH = 100
"""Pairs of them that must have nothing to do with one another."""


def calibrated(graph: KnowledgeGraph, embed: encoders.Embed, percentile: float, terms: float) -> float:
    """How like a question is a fact that has nothing to do with it, at that percentile; 0 where the graph is too small.

    Each fact of a sample becomes a question, "What treats asthma?", and is compared with those that share no thing with
    it. Such facts share hardly a word with it either: of s only the share of the cosine is left.
    """
    questions, texts, ends = unrelated(graph)
    apart = np.array([[one.isdisjoint(other) for other in ends] for one in ends]).reshape(len(ends), -1)
    if apart.sum() < ENOUGH:
        return 0.0
    asked, told = embed(questions), embed(texts)
    found = np.stack([relevance.cosine(one, told) for one in asked])[apart]
    return round(float((1 - terms) * np.percentile(found, percentile)), 6)


@functools.lru_cache(maxsize=2)
def unrelated(graph: KnowledgeGraph) -> tuple[list[str], list[str], list[set[str]]]:
    """Facts of a graph, mostly of different things: a question to which each is the answer, its sentence, its ends."""
    facts = graph.sample(UNRELATED)
    names, titles = titled(graph, facts, {end for fact in facts for end in (fact.subject, fact.object)})
    texts = [statement(fact, names, titles) for fact in facts]
    questions = [f"What {relation(fact.predicate, names)} {titles[fact.object]}?" for fact in facts]
    return questions, texts, [{fact.subject, fact.object} for fact in facts]


def scores(rows: Sequence[Row]) -> np.ndarray:
    """[rows]."""
    return np.array([row["score"] for row in rows], dtype=float)


Place = tuple[int, int]
"""Which site, and which of its rows."""


def once(sites: Sequence[Around], masks: Sequence[np.ndarray]) -> dict[Place, Row]:
    """The rows of masks, in order; a fact that stands at two nodes only at the first."""
    seen, found = set[Any](), dict[Place, Row]()
    for i, (site, mask) in enumerate(zip(sites, masks, strict=True)):
        for j in np.flatnonzero(mask):
            row = site["rows"][j]
            key = tuple(row["fact"]) if row["fact"] else (site["node"],)
            if key not in seen:
                seen.add(key)
                found[i, int(j)] = row
    return found


def passing(sites: Sequence[Around], *, percentile: float, floor: float, most: int, few: int) -> dict[Place, Row]:
    """The rows of each node that are above both thresholds, at most so many of each; a fact of two nodes once."""
    above = partial(thresholds.above, percentile=percentile, floor=floor, most=most, few=few)
    return once(sites, [above(scores(site["rows"])) for site in sites])


def lines(kept: Mapping[Place, Row]) -> Facts:
    """What is to be read."""
    return Facts(
        [
            Line(row["text"], (Fact(*row["fact"]),) if row["fact"] else (), tuple(row["provenance"]))
            for row in kept.values()
        ]
    )


def fitting(
    kept: Mapping[Place, Row], limits: Mapping[str, float], counts: Mapping[str, Count], first: Container[str]
) -> tuple[dict[Place, Row], list[str]]:
    """What fits into the limits when the least similar leave first, texts of `first` last; and what is to be told.

    What can't fit even alone leaves before all.
    """
    texts = [row["text"] for row in kept.values()]
    alone = {"words": [len(text.split()) for text in texts], **{name: count(texts) for name, count in counts.items()}}
    over = [any(alone[name][i] > limit for name, limit in limits.items()) for i in range(len(texts))]
    short = {place: row for (place, row), much in zip(kept.items(), over, strict=True) if not much}
    notes = [f"{sum(over)} of {len(over)} facts are longer than the whole budget"] if any(over) else []
    if not short:
        return {}, [f"{note}: nothing is left" for note in notes]
    budget = Budget.of(limits)
    facts = lines(short)

    def measured(keep: Mapping[str, Array]) -> dict[str, float]:
        return facts.cut(Selection(keep))[0].cost(counts)

    alike = scores(list(short.values()))
    ahead = (np.ptp(alike) + 1.0) * np.array([row["text"] in first for row in short.values()])
    stays = ranking.by_budget(facts.units(**counts), {"facts": alike + ahead}, budget, measure=measured).keep["facts"]
    return {place: row for (place, row), stay in zip(short.items(), stays, strict=True) if stay}, notes


def traced(sites: Sequence[Around], kept: Mapping[Place, Row], counts: Mapping[str, Count]) -> dict[str, list[Row]]:
    """What a trace tells of each fact: itself, where it stands, its score and costs, and whether it is kept."""
    found = {}
    for i, site in enumerate(sites):
        costs = lines({(i, j): row for j, row in enumerate(site["rows"])}).units(**counts)["facts"].cost
        found[site["site"]] = [
            {**row, "node": site["node"],
             **{measure: float(column[j]) for measure, column in costs.items()}, "kept": (i, j) in kept}
            for j, row in enumerate(site["rows"])
        ]  # fmt: skip
    return found


def reasons(sites: Sequence[Around], floor: float, most: int) -> list[str]:
    """Why a node has no fact above its thresholds."""
    found = []
    for site in sites:
        best = max((row["score"] for row in site["rows"]), default=None)
        if best is None:
            found.append(f"{site['name']} has no facts")
        elif best <= floor:
            found.append(f"no fact of {site['name']} is above the floor {floor:g}: the best has {best:.3f}")
        elif not most:
            found.append(f"{site['name']} keeps nothing: its share of the volume is less than one fact")
    return found


# ------------------------------------------------------------------------------------------------------- the answer


def prompt(question: str, context: str, *, system: str = SYSTEM, choices: Sequence[str] = ()) -> list[dict[str, str]]:
    """The messages that ask a language model the question with its context; for one of `choices`, as JSON, if given."""
    asked = f"Context:\n{context}\n\nQuestion: {question}"
    asked += "\n" + CHOOSING.format(choices=", ".join(choices)) if choices else ""
    return [{"role": "system", "content": system}, {"role": "user", "content": asked}]


def answered(
    model: chat.LanguageModel | None,
    messages: Sequence[Mapping[str, str]],
    told: Mapping[str, Any],
    seed: int,
    choices: Sequence[str],
) -> dict[str, Any]:
    """`told` with the prompt and, where there is a model to ask, its answer."""
    found = {**told, "prompt": "\n\n".join(message["content"] for message in messages)}
    if model is None:
        return found
    calls, tokens = model.meter.calls, model.meter.tokens
    try:
        found["answer"] = chat.said(model, messages, most=512, temperature=0.0, seed=seed)
        if choices:
            found["choice"] = choice(found["answer"], choices)
    except SecateurError as error:
        found["notes"] = [*found["notes"], f"the language model gave no answer: {error}"]
    found["llm_calls"] += model.meter.calls - calls
    found["llm_tokens"] += model.meter.tokens - tokens
    return found


def choice(reply: str, choices: Sequence[str]) -> str:
    """Which of `choices` a reply gives: by its JSON, or as the only one that it names; empty where none is clear."""
    said = next((value["answer"] for value in objects(reply) if isinstance(value.get("answer"), str)), reply)
    exact = [one for one in choices if one.casefold() == said.strip().casefold()]
    within = [one for one in choices if re.search(rf"\b{re.escape(one)}\b", said, re.IGNORECASE)]
    return exact[0] if exact else within[0] if len(within) == 1 else ""
