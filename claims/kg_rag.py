"""KG-RAG (Soman et al.): facts of UMLS and MovieLens' graph in a budget of tokens, for questions with known facts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from assets import packages
from claims._lab import graphs
from claims._lab.calling import call
from claims._lab.claim import Figures, claim
from claims._lab.graphs import Question, World
from claims._lab.settings import scaled
from secateur._utils.rundir import Transient
from secateur.recipes.context.kg_rag import kg_rag
from secateur.retrieval import encoders
from secateur.score import relevance
from secateur.subjects.text import markup

EACH = scaled(20, 2)
TOKENS, ALL = 256, 10_000_000
SETUP = (
    "20 questions per seed and kind: one thing and a relation; which of five things has to do with both of two; true "
    "or false; all-MiniLM-L6-v2 for names and facts, and its tokens"
)
WORLDS = scaled({"UMLS": graphs.umls, "MovieLens": graphs.movielens}, {"UMLS": graphs.umls})
LOOSE: dict[str, Any] = {"percentile": 0, "floor": -1e9, "few": 10**6, "volume": 10**9}
"""No threshold and no volume: the budget alone decides."""
RIVALS = ("random facts", "BM25 facts", "cosine facts", "cut off")
PILOT_SEED = scaled(0, 10_000)
"""Pilots ask other questions."""


@functools.cache
def _tokens(line: str) -> int:
    return encoders.counter(str(packages.minilm()))([line])[0]


def count(texts: Sequence[str]) -> list[int]:
    """Tokens of MiniLM, a line at a time: its tokenizer takes none across a blank."""
    return [sum(map(_tokens, text.split("\n"))) for text in texts]


def questions(world: World, seed: int) -> Iterator[tuple[str, Question]]:
    """(kind, question), of each kind as many."""
    for make in graphs.KINDS:
        for question in make(world, PILOT_SEED + seed, EACH):
            yield make.__name__, question


def retrieve(world: World, question: Question) -> dict[str, Any]:
    """The facts around what a question names, rated by the recipe."""
    memory = Transient()
    how = {"embedder": str(packages.minilm()), "tokenizer": count, "identifier": False, "kinds": world.named}
    call(kg_rag, world.graph, question.text, [f"tokens={ALL}"], memory=memory, **how)
    facts: dict[str, Any] = memory.values["retrieved"]
    return facts


def pruned(world: World, question: Question, facts: Mapping[str, Any], budget: int = ALL, **options: Any) -> str:
    """What the recipe keeps of facts that were found and rated before."""
    memory = Transient()
    memory.values["retrieved"] = facts
    how = {"embedder": lambda texts: np.ones((len(texts), 1), np.float32), "tokenizer": count, **options}
    (result,) = call(kg_rag, world.graph, question.text, [f"tokens={budget}"], memory=memory, **how)
    text: str = result.subject.to_text()
    return text


def rerated(facts: Mapping[str, Any], rate: Callable[[list[str]], Sequence[float]]) -> dict[str, Any]:
    """The same facts with other scores."""
    sites = []
    for site in facts["sites"]:
        rows = sorted(site["rows"], key=lambda row: row["fact"])
        values = rate([row["text"] for row in rows])
        ranked = [{**row, "score": float(value)} for row, value in zip(rows, values, strict=True)]
        sites.append({**site, "rows": sorted(ranked, key=lambda row: -row["score"])})
    return {**facts, "sites": sites}


def by_terms(question: str, texts: list[str]) -> Sequence[float]:
    """BM25."""
    return relevance.bm25(markup.terms(question), [markup.terms(text) for text in texts]) if texts else []


def by_likeness(question: str, texts: list[str]) -> Sequence[float]:
    """The cosine alone, as in the paper."""
    vectors = encoders.open_remembering(str(packages.minilm()))([question, *texts])
    return list(relevance.cosine(vectors[0], vectors[1:]))


@functools.cache
def recalls(name: str, seed: int) -> dict[str, float]:
    """Way -> recall of gold facts in 256 tokens, mean over kinds of question."""
    world, draw = WORLDS[name](), np.random.default_rng(seed)
    held: dict[str, dict[str, list[float]]] = {}
    for kind, question in questions(world, seed):
        if not question.gold:
            continue
        facts = retrieve(world, question)
        rates: dict[str, Callable[[list[str]], Sequence[float]]] = {
            "random facts": lambda texts: draw.normal(size=len(texts)),
            "BM25 facts": functools.partial(by_terms, question.text),
            "cosine facts": functools.partial(by_likeness, question.text),
            "cut off": lambda texts: [-float(place) for place in range(len(texts))],
        }
        texts = {
            "KG-RAG": pruned(world, question, facts, TOKENS, fill=True, joins=0.3),
            "without joins": pruned(world, question, facts, TOKENS, fill=True),
        }
        for way, rate in rates.items():
            texts[way] = pruned(world, question, rerated(facts, rate), TOKENS, **LOOSE)
        for way, text in texts.items():
            held.setdefault(way, {}).setdefault(kind, []).append(graphs.recall(world, question, text))
    return {way: float(np.mean([np.mean(row) for row in kinds.values()])) for way, kinds in held.items()}


@claim(
    question="In 256 tokens, do more of the facts that answer stay than of random ones, by BM25, by cosine or cut off?",
    setup=SETUP,
    measure="recall of gold facts",
    better="higher",
    pairs=[(f"{world}: KG-RAG", f"{world}: {rival}") for world in WORLDS for rival in RIVALS],
    seeds=range(9),
)
def headline(seed: int) -> Figures:
    return {
        f"{world}: {way}": value
        for world in WORLDS
        for way, value in recalls(world, seed).items()
        if way != "without joins"
    }


@claim(
    question="Do more of the facts that answer stay where facts that join two things of the question count more?",
    setup=f"{SETUP}; UMLS, 256 tokens",
    measure="recall of gold facts",
    better="higher",
    ours="with joins",
    baselines=["without joins"],
    seeds=range(9),
)
def joins(seed: int) -> Figures:
    found = recalls("UMLS", seed)
    return {"with joins": found["KG-RAG"], "without joins": found["without joins"]}


@claim(
    question="Is a reader right as often, to 2 points, of the facts that stay at the defaults as of all?",
    setup=f"{SETUP}; questions with answers to choose from; a reader that matches names",
    measure="right answers",
    better="higher",
    margin=0.02,
    pairs=[(f"{world}: facts that stay", f"{world}: all facts") for world in WORLDS],
    seeds=range(3),
)
def answers(seed: int) -> Figures:
    figures = {}
    for name, make in WORLDS.items():
        world = make()
        rows: dict[str, list[tuple[float, int]]] = {"facts that stay": [], "all facts": []}
        for _, question in questions(world, seed):
            if question.options:
                facts = retrieve(world, question)
                kept = {"facts that stay": pruned(world, question, facts)}
                kept["all facts"] = pruned(world, question, facts, **LOOSE)
                for way, text in kept.items():
                    rows[way].append((graphs.right(world, question, text), count([text])[0]))
        for way, row in rows.items():
            right, tokens = np.mean(row, axis=0).tolist()
            figures[f"{name}: {way}"] = {"right answers": right, "tokens": tokens}
    return figures
