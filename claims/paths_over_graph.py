"""Paths-over-Graph (Tan et al.): paths between topics of a question, on MovieLens' graph; without a language model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assets import packages
from claims._lab import hops, pages
from claims._lab.calling import call
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur._utils.rundir import Transient
from secateur.recipes.context.paths_over_graph import paths_over_graph
from secateur.retrieval import encoders
from secateur.vocabulary import Result

SHAPES = ((1,), (2,), (3,), (1, 1), (2, 1), (2, 2))
LOOKED = scaled(300, 40)
"""Paths that are looked at in one round: the encoder reads some seventy a second here."""
TOKENS = 96
SETUP = (
    "24 questions per seed on MovieLens' graph of Freebase, 55k facts: one to three hops from one topic, or from two; "
    "without a language model, all-MiniLM-L6-v2; 300 paths looked at in one round"
)
SEEDS = range(3)
PILOT_SEED = scaled(0, 10_000)
"""Pilots ask other questions."""
MODES: dict[str, dict[str, Any]] = {
    "three steps": {},
    "whole paths": {"mode": "13"},
    "two steps": {"mode": "12"},
    "similarity alone": {"mode": "1"},
    "random": {"mode": "1"},
}


@functools.cache
def encoder() -> pages.CachedEmbedder:
    """MiniLM, each text once."""
    return pages.CachedEmbedder(encoders.encoder(str(packages.minilm())))


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """[N, 384]."""
    return encoder()(texts) if len(texts) else np.zeros((0, 384), np.float32)


@functools.cache
def questions(seed: int) -> list[hops.Question]:
    """Of each shape as many."""
    world = hops.movielens()
    return hops.draw_questions(world, hops.in_nouns, world.named(), PILOT_SEED + seed, SHAPES, scaled(4, 1))


@functools.cache
def nodes() -> dict[str, str]:
    """Name -> node."""
    world = hops.movielens()
    return {world.words[thing]: hops.PLACE + thing for thing in world.named()}


def pruned(question: hops.Question, budget: int, **options: Any) -> tuple[Result, Mapping[str, Any]]:
    """(The recipe's paths, what it says of its search)."""
    run, limit = Transient(), f"tokens={budget}"
    how = {"embedder": embed, "most": LOOKED, "tokenizer": encoders.counter(str(packages.minilm())), **options}
    topics = [nodes()[name] for name in question.topics]
    graph = hops.movielens().graph
    (result,) = call(paths_over_graph, graph, question.question, [limit], memory=run, topics=topics, **how)
    return result, run.values[f"told-{limit}"]


@functools.cache
def compared(seed: int) -> dict[str, dict[str, float]]:
    """Mode -> share of questions whose gold path is kept, share answered, and tokens that were scored."""
    world, draw = hops.movielens(), np.random.default_rng(seed)
    sums = {mode: Counter[str]() for mode in MODES}
    for question in questions(seed):
        for mode, options in MODES.items():
            chance = {"embedder": lambda texts: draw.normal(size=(len(texts), 8))} if mode == "random" else {}
            result, told = pruned(question, 10**6, **options, **chance)
            lines = [hops.in_words(world, line.facts) for line in result.subject.lines]
            sums[mode]["gold paths kept"] += any(walk <= line for walk in question.gold for line in lines)
            sums[mode]["Hits@1"] += told["answer"] == question.answer
            sums[mode]["scored tokens"] += told["judged_tokens"]
    count = len(questions(seed))
    return {mode: {name: total / count for name, total in row.items()} for mode, row in sums.items()}


@claim(
    question="Do three steps, and two with branches, keep more gold paths than similarity alone, and that than chance?",
    setup=SETUP,
    measure="gold paths kept",
    better="higher",
    pairs=[
        ("three steps", "similarity alone"),
        ("two steps", "similarity alone"),
        ("similarity alone", "random"),
    ],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return compared(seed)


@claim(
    question="With branches, are gold paths kept as often as with whole paths alone, to 2 points?",
    setup=SETUP,
    measure="gold paths kept",
    better="higher",
    margin=0.02,
    ours="three steps",
    baselines=["whole paths"],
    seeds=SEEDS,
)
def branches(seed: int) -> Figures:
    return {mode: compared(seed)[mode] for mode in ("three steps", "whole paths")}


@claim(
    question="In 96 tokens, do paths hold more of the gold evidence than random facts, facts by BM25, and truncation?",
    setup=SETUP,
    measure="gold evidence",
    better="higher",
    ours="paths",
    baselines=["random facts", "facts by BM25", "facts as they come, truncated"],
    seeds=SEEDS,
)
def evidence(seed: int) -> Figures:
    world, sums, draw = hops.movielens(), Counter[str](), np.random.default_rng(seed)
    count = encoders.counter(str(packages.minilm()))
    for question in questions(seed):
        result, _ = pruned(question, TOKENS)
        facts = hops.in_words(world, (fact for line in result.subject.lines for fact in line.facts))
        topics = [nodes()[name] for name in question.topics]
        sums["paths"] += hops.best_share(question.gold, facts)
        sums.update(hops.recall_of_rivals(world, question, topics, TOKENS, count, int(draw.integers(2**31))))
    return {way: value / len(questions(seed)) for way, value in sums.items()}
