"""KG-RAG: biomedical knowledge graph-optimized prompt generation for large language models.

Soman, Rose, Morris, Akbas, Smith, Peetoom, Villouta-Reyes, Cerono, Shi, Rizk-Jackson, Israni, Nelson, Huang and
Baranzini, Bioinformatics 40(9), 2024 (arXiv 2311.17330).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Lt

from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.errors import InputError, SecateurError
from secateur.methods.asking import Asking, Record, Spending, choice_in
from secateur.methods.fitting import fit_to_limits
from secateur.methods.linking import NOTHING, NodeLinking, link_names, link_question, link_topics, list_names
from secateur.retrieval import encoders
from secateur.retrieval.encoders import Count, Embed, Encoding
from secateur.retrieval.words import Words
from secateur.score import relevance
from secateur.select import limits, thresholds
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph
from secateur.subjects.graph.sentences import (
    Row,
    Site,
    Wording,
    as_facts,
    describe_node,
    find_missing,
    follow_facts,
    keep_leading,
    label_nodes,
    leave_out,
    parse_filter,
    sample_questions,
)
from secateur.vocabulary import Budget, Cut, Result

CARD = {
    "title": "KG-RAG: Biomedical Knowledge Graph-Optimized Prompt Generation for Large Language Models",
    "paper": "https://arxiv.org/abs/2311.17330",
    "cuts": "facts of a knowledge graph around what a question names, under a budget of tokens",
    "recovers": "nothing",
    "extra": "context",
    "family": "context",
}

FLOOR, PAPERS = 0.2, 0.5
"""Cosine that a fact must exceed, for all-MiniLM-L6-v2 without the node's name; and in the paper, or where nodes of
another name stand in."""
UNRELATED = 128
"""Facts of a graph by which its floor is found, each of another thing."""
ENOUGH = 100
"""Pairs of them that must have nothing to do with one another."""

SYSTEM = (
    "You are given facts under Context, one a line, and a question. Answer the question briefly from these facts "
    "alone, and name the sources that the facts you use are said to come from. If they don't hold the answer, say so."
)
CHOOSING = 'Answer with JSON alone, {{"answer": "..."}}, and give one of these: {choices}.'


@dataclass(frozen=True, slots=True)
class Answering(Asking):
    """Which language model is asked, and what with the facts that stay."""

    answer: bool = False
    """Also ask the language model the question, with what is kept."""
    choices: Sequence[str] = ()
    """Answers of which it is to give one; it is asked then, too."""
    system: str = ""
    """What the language model is told before all else; if empty, to answer briefly and name sources."""


def kg_rag(
    subject: KnowledgeGraph,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    encoding: Encoding = Encoding(),
    linking: NodeLinking = NodeLinking(least=0.6),
    wording: Wording = Wording(),
    answering: Answering = Answering(),
    percentile: Annotated[float, Ge(0), Le(100)] = 75.0,
    floor: float | None = None,
    calibrate: Annotated[float, Ge(0), Lt(100)] = 0.0,
    volume: Annotated[int, Ge(0)] = 150,
    few: Annotated[int, Ge(0)] = 4,
    fill: bool = True,
    joins: Annotated[float, Ge(0), Le(1)] = 0.0,
    terms: Annotated[float, Ge(0), Le(1)] = 0.3,
    paper: bool = False,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """From the facts around what a question names, keep those that are most like the question.

    1. What the question names is found: by a language model that answers with a list, or else by the names of the graph
       that stand in it, and by parts of it whose embedding is near that of a name. Each leads to the `nearest` nodes;
       where nothing is found, the `fallback` nodes nearest to the whole question by the embedder stand in.
    2. Each node's facts, one hop around it, become a sentence each, "Compound ibuprofen treats Disease headache,
       according to DrugCentral".
    3. s, how like the question a sentence is, is (1 - terms) cosine + terms BM25 / its highest, of all facts of all
       nodes; both without what the node is called, which stands in each of its facts. Of n nodes, each keeps the
       floor(volume / n) facts with the highest s among those with s > P and a cosine above `floor`, P the percentile of
       that node's own s. Both are strict. Without an embedder s is BM25 alone, and the floor is of that.
    4. Where a word of the question stands in no fact so far, the four things that the best facts lead to are looked at,
       too (`linking.follow`): their facts with such a word join the others, and all are scored anew, on one scale. They
       count as one more node in step 3. Without an embedder a fact that led to them passes the floor as before, and
       leaves no sooner than just before them.
    5. Facts leave, the least similar first, until what is left fits into the budget, counted anew each time.

    Args:
        subject: the graph; it stays as it is.
        data: the question.
        budgets: tokens=1000, or words=600 where there is no tokenizer; or a share of all facts around the nodes.
        run: where scores go.
        encoding, linking, wording, answering: see these classes.
        percentile: of a node's similarities, from 0 to 100.
        floor: what the cosine must exceed whatever the others have. It depends on the encoder: unless given it is 0.2,
            which suits all-MiniLM-L6-v2, or the paper's 0.5 where nodes stand in; 0 without an embedder.
        calibrate: put the floor at this percentile of the cosine of facts and questions of the graph that have nothing
            to do with one another, 95 say: it is found so for any embedder. 0 for the floor as it is given.
        volume: facts of all nodes together, at most.
        terms: share of BM25 in s, from 0 (the paper) to 1.
        paper: choose as the paper does: by the cosine of whole sentences alone, by its floor of 0.5 unless one is
            given, and by the percentile; `terms`, `few`, `fill`, `joins` and step 4 do not count. It needs an embedder.
            As elsewhere a single fact, and those that are equally the most alike, stay; the paper would keep none.
        few: a node with at most so many facts is not cut by percentile.
        fill: facts that only their percentile takes come behind the others, the most alike first, as far as the budget
            has room; the floor and the volume hold as before.
        joins: s of a fact that joins two of the nodes becomes s + joins (1 - s), from 0 to 1; 0.3 where questions name
            several things that have to do with one another.
        seed: of the language model's answers.
        dry_run: as a run; nothing is kept.

    Nothing found, or no fact above both thresholds, or none that fits, gives an empty result, and `told-...` in the run
    says why. Where a language model is down, a limit on it is reached, or it gives no list of names three times, names
    are found without it. A graph that does not answer raises `ServerError`.

    Departures: BM25 has a share in s (`terms`), since a small encoder hardly tells names of one sort apart; more of the
    facts that answer stay with both than with either; the floor is of the cosine, or the best fact by its words would
    pass any. What a node is called is left out where its facts are compared: facts of several nodes are on one scale
    so, and what has nothing to do with the question is near 0. The paper's floor is for its own encoder. A percentile
    says nothing of a handful of facts, of which it would leave one at most (`few`), and where more than its share of
    facts are equally the most alike it would leave none: these stay; `fill`, `joins` and step 4 are this project's. A
    fact that two nodes share is told once. What is said in words or numbers counts, too (`literals`). Sentences stay a
    list,
    where the released code joins them and splits them at ". ", so that names with a full stop break. Facts are cut by
    the budget in tokens too, not by their number alone. What the paper's prompt says of medical advice is left out, as
    are the renaming of two sources and the descriptions that name proteins of one graph. An answer without a list of
    names counts as one without names there, and the nearest nodes stand in; here it is asked for anew, and then the
    names of the graph decide.
    """
    if (answering.answer or answering.choices) and not answering.llm:
        raise InputError("an answer needs a language model: give one (--llm)")
    if calibrate and not (encoding.embedder and floor is None):
        raise InputError(f"calibrate={calibrate:g}: give an embedder, and no floor")
    if paper and not encoding.embedder:
        raise InputError("paper: the paper compares by an embedder alone: give one (--embedder)")
    if paper:
        terms, few, fill, joins, linking = 0.0, 0, False, 0.0, replace(linking, follow=0)
    filters = tuple(map(parse_filter, wording.filters))
    question, counts, model = " ".join(data.split()), encoding.counts(), answering.open_model(encoding.device)
    embed = encoding.open_embedder()
    embed_names = encoding.open_other(linking.namer) if linking.namer else embed
    usual, strict = (FLOOR, PAPERS) if embed else (0.0, 0.0)
    if calibrate and embed:
        usual = strict = run.json("floor", lambda: calibrate_floor(subject, embed, calibrate))

    def retrieve() -> Record:
        nodes, record = find_nodes(subject, question, model, embed_names, linking, seed)
        sites = label_nodes(subject, nodes)
        for site in sites:
            site["rows"] = describe_node(subject, site["node"], site["name"], wording, filters)
            record["notes"] += [f"{site['name']} has more facts than are read"] * (site["node"] in subject.crowded)
        asked, words = record.get("question", question), Words(encoding.language)
        score_sites(sites, asked, embed, terms, words, paper)
        if linking.follow and not record["fallback"]:
            missing = find_missing(sites, asked, words)
            above = usual if floor is None else floor
            further = follow_facts(subject, sites, above, linking.follow, missing, words, wording, filters)
            if further:  # anew with the others, since how rare a word is depends on all facts, and so does the highest
                before = [[row["score"] for row in site["rows"]] for site in sites]
                sites += further
                score_sites(sites, asked, embed, terms, words, False)
                keep_leading(sites, [] if embed else before, above)
        ranked = [{**site, "rows": rank_rows(site["rows"], wording.evidence)} for site in sites]
        return {"told": {**record, "nodes": nodes}, "sites": ranked}

    found = run.json("retrieved", retrieve)
    if floor is None:
        floor = strict if paper or found["told"]["fallback"] else usual
    sites = raise_joins(found["sites"], joins)
    whole = as_facts(merge_rows(sites, [np.ones(len(site["rows"]), bool) for site in sites]).values()).cost(counts)
    most = share_volume(sites, volume)
    above = partial(pass_thresholds, sites, percentile=percentile, floor=floor, most=most)
    for budget in budgets:
        limit = limits.limits_of_text(budget, whole, "a context")
        passing = above(few=few)
        further = above(few=sum(len(site["rows"]) for site in sites)) if fill else passing
        kept, lost = fit_rows(further, limit, counts, {row["text"] for row in passing.values()})
        facts = as_facts(kept.values())
        after, rows = facts.cost(counts), trace(sites, kept, counts)
        record = {
            **found["told"], **({"floor": floor} if calibrate else {}),
            "facts_before": sum(map(len, rows.values())), "facts_after": len(kept),
            **{f"{name}_before": value for name, value in whole.items()},
            **{f"{name}_after": value for name, value in after.items()},
        }  # fmt: skip
        record["notes"] = [*record["notes"], *explain_empty(sites, floor, most), *lost]
        run.json(f"trace-{budget}", partial(dict, rows))
        messages = write_prompt(question, facts.to_text(), answering)
        run.json(f"told-{budget}", partial(answer, model, messages, record, answering, seed))
        gone = {name: (sum(not row["kept"] for row in rows), len(rows)) for name, rows in rows.items()}
        yield Result(str(budget), facts, Cut(gone, whole, after, tuple(record["notes"])), after)


Place = tuple[int, int]
"""Which site, and which of its rows."""


# ------------------------------------------------------------------------------------- 1. what the question speaks of


def find_nodes(
    graph: KnowledgeGraph,
    question: str,
    model: chat.LanguageModel | None,
    embed: Embed | None,
    linking: NodeLinking,
    seed: int,
) -> tuple[list[str], Record]:
    """The nodes that the question speaks of, and the record: entities, fallback, notes, and what a model was asked."""
    asked: Record = {"llm_calls": 0, "llm_tokens": 0} if model else {}
    topics = linking.clean_topics()
    if topics:
        linked, notes = link_topics(graph, topics, embed, linking, linking.kinds, linking.nearest, question)
        nodes = list(dict.fromkeys(node for found in linked.values() for node in found))
        notes += [] if nodes else [NOTHING]
        return nodes, {**asked, "entities": list(linked), "fallback": False, "notes": notes}
    listed = None
    if model:
        listed, asked = list_names(question, model, linking.kinds, seed)
    if listed is None:
        nodes, record = link_question(graph, question, embed, linking)
    else:
        nodes, record = link_names(graph, question, listed, embed, linking)
    return nodes, {**asked, **record, "notes": [*asked.get("notes", []), *record["notes"]]}


# ------------------------------------------------------------------------------------ 3. how like the question it is


def score_sites(
    sites: Sequence[Site], question: str, embed: Embed | None, terms: float, words: Words, named: bool
) -> None:
    """Give each row its score and cosine, which are of one scale at all nodes.

    named: compare what nodes are called, too. It stands in the question and in each of a node's facts, and says nothing
    of which of them answers.
    """
    texts = list(dict.fromkeys(row["text"] for site in sites for row in site["rows"]))
    lexical = [np.zeros(len(site["rows"])) for site in sites]
    if texts and (embed is None or terms > 0):
        lexical = score_words(sites, question, texts, words)
    for site, shares in zip(sites, lexical, strict=True):
        rows, cosines = site["rows"], shares
        if embed is not None and rows:
            asked = question if named else leave_out(question, site["name"], words.stop)
            name = site["name"] if asked != question else ""
            (vector,), others = encoders.encode_pair(embed, [asked], [leave_out(row["text"], name) for row in rows])
            cosines = relevance.cosine(vector, others)
        for row, share, cosine in zip(rows, shares, cosines, strict=True):
            # The last digits depend on what a text was read together with.
            score = terms * float(share) + (1 - terms) * float(cosine) if embed else float(share)
            row |= {"score": round(score, 6), "cosine": round(float(cosine), 6)}


def score_words(sites: Sequence[Site], question: str, texts: Sequence[str], words: Words) -> list[np.ndarray]:
    """Of each node [rows]: BM25 of the question without the node's name, as a share of the highest of all nodes.

    Where no fact of any node has a word of the question but names, names count.
    """
    read, place = [words(text) for text in texts], {text: number for number, text in enumerate(texts)}
    asked = words(question)
    for named in (True, False):
        found = list[np.ndarray]()
        for site in sites:
            own = set(words(site["name"])) if named else set()
            scores = relevance.bm25([term for term in asked if term not in own], read)
            found.append(scores[[place[row["text"]] for row in site["rows"]]])
        highest = max((float(scores.max()) for scores in found if len(scores)), default=0.0)
        if highest > 0:
            return [scores / highest for scores in found]
    return found


def rank_rows(rows: Sequence[Row], evidence: bool) -> list[Row]:
    """The rows with their ranks, the best first; and with evidence in their texts where it is to be told."""
    order = sorted(rows, key=lambda row: -row["score"])
    ranked = [{**row, "rank": rank} for rank, row in enumerate(order, start=1)]
    for row in ranked if evidence else []:
        row["text"] += f" {json.dumps(row['evidence'], ensure_ascii=False)}" if row["evidence"] else ""
    return ranked


def raise_joins(sites: Sequence[Site], joins: float) -> list[Site]:
    """The same, the best facts first; s of those that join two nodes is raised by a share of what it lacks to 1."""
    nodes = {site["node"] for site in sites if "followed" not in site}

    def raise_score(row: Row) -> Row:
        subject, _, end, literal = row["fact"] or ("", "", "", True)
        both = not literal and subject != end and {subject, end} <= nodes
        values = {name: float(row[name]) for name in ("score", "cosine") if both}
        return {**row, **{name: round(value + joins * (1 - value), 6) for name, value in values.items()}}

    if not joins:
        return list(sites)
    return [{**site, "rows": rank_rows([raise_score(row) for row in site["rows"]], False)} for site in sites]


def calibrate_floor(graph: KnowledgeGraph, embed: Embed, percentile: float) -> float:
    """How like a question is a fact that has nothing to do with it, at that percentile; 0 where the graph is too small.

    Each fact of a sample becomes a question, "What treats asthma?", and is compared with those that share neither a
    thing nor a relation with it.
    """
    questions, texts, ends = sample_questions(graph, UNRELATED)
    apart = np.array([[one.isdisjoint(other) for other in ends] for one in ends]).reshape(len(ends), -1)
    if apart.sum() < ENOUGH:
        return 0.0
    of_questions, of_texts = encoders.encode_pair(embed, questions, texts)
    cosines = np.stack([relevance.cosine(vector, of_texts) for vector in of_questions])[apart]
    return round(float(np.percentile(cosines, percentile)), 6)


# --------------------------------------------------------------------------------------------- 3. and 5. what is kept


def share_volume(sites: Sequence[Site], volume: int) -> list[int]:
    """Facts of each node, at most: the same for all; nodes that were followed have the share of one together."""
    followed = sum("followed" in site for site in sites)
    share = volume // max(1, len(sites) - followed + bool(followed))
    return [share // followed if "followed" in site else share for site in sites]


def merge_rows(sites: Sequence[Site], masks: Sequence[np.ndarray]) -> dict[Place, Row]:
    """The rows of masks, in order; a fact that stands at two nodes only at the first."""
    seen, rows = set[Any](), dict[Place, Row]()
    for i, (site, mask) in enumerate(zip(sites, masks, strict=True)):
        for j in np.flatnonzero(mask):
            row = site["rows"][j]
            key = tuple(row["fact"]) if row["fact"] else (site["node"],)
            if key not in seen:
                seen.add(key)
                rows[i, int(j)] = row
    return rows


def pass_thresholds(
    sites: Sequence[Site], *, percentile: float, floor: float, most: Sequence[int], few: int
) -> dict[Place, Row]:
    """The rows of each node that are above both thresholds, at most so many of each; a fact of two nodes once."""
    # The floor comes last: what it takes leaves its place empty, so that a lower one never takes a fact away.
    above = partial(thresholds.above, percentile=percentile, floor=-np.inf, few=few)
    masks = [
        above(scores_of(site["rows"]), most=share) & (scores_of(site["rows"], "cosine") > floor)
        for site, share in zip(sites, most, strict=True)
    ]
    return merge_rows(sites, masks)


def scores_of(rows: Sequence[Row], name: str = "score") -> np.ndarray:
    """[rows]."""
    return np.array([row[name] for row in rows], dtype=float)


def fit_rows(
    rows: Mapping[Place, Row], limit: Mapping[str, float], counts: Mapping[str, Count], first: Container[str]
) -> tuple[dict[Place, Row], list[str]]:
    """What fits into the limits when the least similar leave first, texts of `first` last; and notes.

    What can't fit even alone leaves before all.
    """
    texts = [row["text"] for row in rows.values()]
    alone = {"words": [len(text.split()) for text in texts], **{name: count(texts) for name, count in counts.items()}}
    over = [any(alone[name][i] > most for name, most in limit.items()) for i in range(len(texts))]
    short = {place: row for (place, row), much in zip(rows.items(), over, strict=True) if not much}
    notes = [f"{sum(over)} of {len(over)} facts are longer than the whole budget"] if any(over) else []
    if not short:
        return {}, [f"{note}: nothing is left" for note in notes]
    scores = scores_of(list(short.values()))
    ahead = (np.ptp(scores) + 1.0) * np.array([row["text"] in first for row in short.values()])
    stays = fit_to_limits(as_facts(short.values()), scores + ahead, limit, counts).keep["facts"]
    return {place: row for (place, row), stay in zip(short.items(), stays, strict=True) if stay}, notes


def trace(sites: Sequence[Site], kept: Mapping[Place, Row], counts: Mapping[str, Count]) -> dict[str, list[Row]]:
    """What a trace tells of each fact: itself, where it stands, its score and costs, and whether it is kept."""
    found = {}
    for i, site in enumerate(sites):
        costs = as_facts(site["rows"]).units(**counts)["facts"].cost
        found[site["site"]] = [
            {**row, "node": site["node"],
             **{measure: float(column[j]) for measure, column in costs.items()}, "kept": (i, j) in kept}
            for j, row in enumerate(site["rows"])
        ]  # fmt: skip
    return found


def explain_empty(sites: Sequence[Site], floor: float, most: Sequence[int]) -> list[str]:
    """Why a node has no fact above its thresholds."""
    notes = []
    for site, share in zip(sites, most, strict=True):
        best = max((row["cosine"] for row in site["rows"]), default=None)
        if best is None:
            notes.append(f"{site['name']} has no facts")
        elif best <= floor:
            notes.append(f"no fact of {site['name']} is above the floor {floor:g}: the best has {best:.3f}")
        elif not share:
            notes.append(f"{site['name']} keeps nothing: its share of the volume is less than one fact")
    return notes


# ------------------------------------------------------------------------------------------------------- the answer


def write_prompt(question: str, context: str, answering: Answering = Answering()) -> list[dict[str, str]]:
    """The messages that ask a language model the question with its context; for one of `choices`, as JSON, if given."""
    asked = f"Context:\n{context}\n\nQuestion: {question}"
    asked += "\n" + CHOOSING.format(choices=", ".join(answering.choices)) if answering.choices else ""
    return [{"role": "system", "content": answering.system or SYSTEM}, {"role": "user", "content": asked}]


def answer(
    model: chat.LanguageModel | None,
    messages: Sequence[Mapping[str, str]],
    record: Record,
    answering: Answering,
    seed: int,
) -> Record:
    """The record with the prompt and, where the model is to answer, its answer."""
    found = {**record, "prompt": "\n\n".join(message["content"] for message in messages)}
    if model is None or not (answering.answer or answering.choices):
        return found
    spending = Spending(model)
    try:
        found["answer"] = chat.ask_text(model, messages, most=512, temperature=0.0, seed=seed)
        if answering.choices:
            found["choice"] = choice_in(found["answer"], answering.choices)
    except SecateurError as error:
        found["notes"] = [*found["notes"], f"the language model gave no answer: {error}"]
    found["llm_calls"] += spending.calls
    found["llm_tokens"] += spending.tokens
    return found
