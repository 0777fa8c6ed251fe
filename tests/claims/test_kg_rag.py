"""KG-RAG on UMLS, the graph of MovieLens' films, and WordNet: tokens, answers, gold facts, linking and sources."""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from assets import packages
from claims import causal, graphs, lab
from claims.graphs import Asked, World
from secateur._utils.rundir import Transient
from secateur.methods import graphs as graphs_of
from secateur.methods.linking import NodeLinking, link_question
from secateur.recipes.context import kg_rag as module
from secateur.recipes.context.kg_rag import kg_rag
from secateur.retrieval import encoders
from secateur.runs import keywords
from secateur.score import relevance
from secateur.subjects.text import markup
from secateur.vocabulary import Budget

pytestmark = pytest.mark.claim

SEEDS = (0, 1, 2)
WORLDS = {"umls": graphs.umls, "movielens": graphs.movielens, "wordnet": graphs.wordnet}
BUDGETS = (64, 128, 256, 512)
VOLUMES = (10, 20, 50, 100, 150, 200)
PERCENTILES = (0, 50, 75, 90)
FLOORS = (0.2, 0.3, 0.4, 0.5)
WINDOW = 512
"""Tokens of context that a small reader has room for."""
EACH = 20
"""Questions of each kind and seed."""
SETUP = (
    f"{EACH} questions per seed and kind: one thing and a relation; which of five things has to do with both of two; "
    "true or false. all-MiniLM-L6-v2 for names and facts, and its tokens"
)
ALL = 10_000_000


@functools.cache
def _tokens(line: str) -> int:
    return encoders.counter(str(packages.minilm()))([line])[0]


def count(texts: Sequence[str]) -> list[int]:
    """Tokens of MiniLM, a line at a time: its tokenizer takes none across a blank."""
    return [sum(map(_tokens, text.split("\n"))) for text in texts]


def embed() -> encoders.Embed:
    return encoders.open_remembering(str(packages.minilm()))


def _unasked(texts: Sequence[str]) -> np.ndarray:
    """In place of an encoder, where all is rated already."""
    return np.ones((len(texts), 1), dtype=np.float32)


def pruned(
    world: World, asked: Asked, retrieved: Mapping[str, Any], budgets: Sequence[int] = (ALL,), **options: Any
) -> list[str]:
    """What is kept of facts that were found and rated before, for each budget in tokens."""
    memory = Transient()
    memory.values["retrieved"] = retrieved
    limits = [Budget.parse(f"tokens={budget}") for budget in budgets]
    found = list(
        keywords.call(
            kg_rag, world.graph, asked.question, limits, memory, embedder=_unasked, tokenizer=count, **options
        )
    )
    texts = [result.subject.written() for result in found]
    exact = encoders.counter(str(packages.minilm()))(texts)
    assert exact == [result.cut.after["tokens"] for result in found]
    assert all(tokens <= budget for tokens, budget in zip(exact, budgets, strict=True))
    return texts


def found(world: World, asked: Asked) -> dict[str, Any]:
    """The facts around what a question names, rated by their likeness to it."""
    memory = Transient()
    how = {
        "embedder": str(packages.minilm()),
        "tokenizer": count,
        "identifier": False,
        "kinds": world.asked,
    }
    list(keywords.call(kg_rag, world.graph, asked.question, [Budget.parse(f"tokens={ALL}")], memory, **how))
    kept: dict[str, Any] = memory.values["retrieved"]
    return kept


def rated(retrieved: Mapping[str, Any], rate: Callable[[list[str]], Sequence[float]]) -> dict[str, Any]:
    """The same facts with other scores."""
    sites = []
    for site in retrieved["sites"]:
        rows = sorted(site["rows"], key=lambda row: row["fact"])
        values = rate([row["text"] for row in rows])
        ranked = [{**row, "score": float(value)} for row, value in zip(rows, values, strict=True)]
        sites.append({**site, "rows": sorted(ranked, key=lambda row: -row["score"])})
    return {**retrieved, "sites": sites}


def in_order(texts: list[str]) -> list[float]:
    """Scores that cut a context off at its end."""
    return [-float(place) for place in range(len(texts))]


def by_terms(asked: Asked, texts: list[str]) -> Sequence[float]:
    return relevance.bm25(markup.terms(asked.question), [markup.terms(text) for text in texts]) if texts else []


def by_likeness(asked: Asked, texts: list[str]) -> Sequence[float]:
    """The cosine alone, as in the paper."""
    vectors = embed()([asked.question, *texts])
    return list(relevance.cosine(vectors[0], vectors[1:]))


@functools.cache
def indexed(world: World) -> tuple[list[str], Callable[[Sequence[str]], np.ndarray]]:
    """All things, and what rates their names by BM25."""
    things = sorted(world.near)
    return things, relevance.lexical([markup.terms(world.words[thing]) for thing in things])


def full_text(world: World, asked: Asked) -> dict[str, Any]:
    """The facts around the things whose names are nearest to the question by BM25, as many as were linked."""
    things, rate = indexed(world)
    scores = rate(markup.terms(asked.question))
    best = [things[i] for i in np.argsort(-scores, kind="stable")[: max(1, len(asked.names))]]
    sites = [
        {"site": f"facts.{thing}", "node": thing, "name": world.words[thing],
         "rows": [{"fact": [*fact, False], "text": f"{world.said(fact)}, according to {graphs.source(fact)}",
                   "provenance": [graphs.source(fact)], "score": 0.0} for fact in world.near[thing]]}
        for thing in best
    ]  # fmt: skip
    return {"told": {"notes": []}, "sites": sites}


KINDS: dict[str, Callable[..., list[Asked]]] = {
    "single": graphs.single, "double": graphs.double, "verdicts": graphs.verdicts
}  # fmt: skip
LOOSE: dict[str, Any] = {"percentile": 0, "floor": -1e9, "few": 10**6, "volume": 10**9}
"""No threshold and no volume: the budget alone decides."""


def schema(world: World, asked: Asked) -> str:
    """What a retriever reads that writes a query: the graph's schema, the question, and the query itself."""
    relations = sorted({relation for _, relation, _ in world.triples})
    kinds = [f"({kind} {{name, identifier}})" for kind in sorted({*world.kinds.values(), "thing"})]
    rows = [*kinds, *(f"(thing)-[{relation} {{source, score}}]->(thing)" for relation in relations)]
    asks = [
        f'MATCH (a {{name: "{world.words[name]}"}})-[r:{fact[1]}]-(x) RETURN x.name, r.source'
        for name in asked.names for fact in asked.gold if name in fact
    ]  # fmt: skip
    return "\n".join([*rows, asked.question, *asks])


def first(text: str) -> str:
    """As many of a context's first lines as a small window holds."""
    kept, room = list[str](), WINDOW
    for line in text.split("\n"):
        room -= _tokens(line)
        if room < 0:
            break
        kept.append(line)
    return "\n".join(kept)


def measured(name: str, seed: int) -> dict[str, Any]:
    """Sums over the questions of one graph and seed: "kind.what" -> mean."""
    world, sums, many = WORLDS[name](), defaultdict[str, float](float), Counter[str]()

    def add(key: str, value: float) -> None:
        sums[key] += value
        many[key] += 1

    for kind, make in KINDS.items():
        for asked in make(WORLDS[name], seed, EACH):
            facts = found(world, asked)
            told = facts["told"]["nodes"]
            linked = {node.rpartition(":")[2] for node in told}
            add(f"{kind}.linked", float(set(asked.names) <= linked))
            (whole,), (text,) = pruned(world, asked, facts, **LOOSE), pruned(world, asked, facts)
            _readers(world, asked, kind, whole, text, add)
            if not asked.gold:
                continue
            golden = {world.said(fact) for fact in asked.gold}
            for row in (row for site in facts["sites"] for row in site["rows"]):
                sort = "gold" if row["fact"] and row["text"].partition(", according")[0] in golden else "other"
                for floor in FLOORS:
                    add(f"{kind}.{sort} below.{floor}", float(row["score"] <= floor))
            for percentile in PERCENTILES:
                (out,) = pruned(world, asked, facts, percentile=percentile)
                add(f"{kind}.recall.percentile.{percentile}", graphs.held(world, asked, out))
            (plain,) = pruned(world, asked, rated(facts, functools.partial(by_likeness, asked)))
            add(f"{kind}.recall.cosine", graphs.held(world, asked, plain))
            for volume in VOLUMES:
                (out,) = pruned(world, asked, facts, volume=volume)
                add(f"{kind}.recall.volume.{volume}", graphs.held(world, asked, out))
    return {key: value / many[key] for key, value in sums.items()}


def equalled(name: str, seed: int) -> dict[str, float]:
    """Recall of gold facts of one graph and seed at equal tokens: "budget.way" -> mean over kinds of question."""
    world, sums = WORLDS[name](), defaultdict[tuple[str, str], list[bool]](list)
    for kind, make in KINDS.items():
        for place, asked in enumerate(make(WORLDS[name], seed, EACH)):
            if not asked.gold:
                continue
            facts, draw = found(world, asked), np.random.default_rng([seed, place])
            others = {
                "cosine facts": rated(facts, functools.partial(by_likeness, asked)),
                "random facts": rated(facts, lambda texts, draw=draw: draw.normal(size=len(texts))),
                "BM25 facts": rated(facts, functools.partial(by_terms, asked)),
                "unpruned, cut off": rated(facts, in_order),
                "full-text search, cut off": rated(full_text(world, asked), in_order),
            }
            texts = {"ours": pruned(world, asked, facts, BUDGETS, fill=True, joins=0.3)}
            texts["ours without joins"] = pruned(world, asked, facts, BUDGETS, fill=True)
            texts["ours, not filled"] = pruned(world, asked, facts, BUDGETS)
            texts |= {way: pruned(world, asked, those, BUDGETS, **LOOSE) for way, those in others.items()}
            for way, outs in texts.items():
                for budget, out in zip(BUDGETS, outs, strict=True):
                    sums[f"{budget}.{way}", kind].append(graphs.held(world, asked, out))
    means = defaultdict[str, list[float]](list)
    for (key, _), held in sums.items():
        means[key].append(float(np.mean(held)))
    return {key: float(np.mean(each)) for key, each in means.items()}


def _readers(world: World, asked: Asked, kind: str, whole: str, text: str, add: Callable[[str, float], None]) -> None:
    """What the readers make of all facts, of those that stay, of what a small window holds, and of none."""
    add(f"{kind}.tokens.unpruned", count([whole])[0])
    add(f"{kind}.tokens.pruned", count([text])[0])
    add(f"{kind}.tokens.schema", count([schema(world, asked)])[0])
    lines = [line for line in text.split("\n") if line]
    add(f"{kind}.cited", sum(line in world.told for line in lines) / len(lines) if lines else 1.0)
    if not asked.options:
        return
    for way, context in (("unpruned", whole), ("pruned", text), ("none", "")):
        window = first(context)
        add(f"{kind}.span.{way}", graphs.right(world, asked, context))
        add(f"{kind}.window.{way}", graphs.right(world, asked, window))
        add(f"{kind}.similar.{way}", graphs.similar(world, asked, window, embed()))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WORLDS)
def test_one_seed(name, seed):
    """One at a time: all of them take longer than a claim may."""
    row = lab.remembered(f"kg_rag-{name}-{seed}", functools.partial(measured, name, seed))
    print({key: round(value, 3) for key, value in row.items()})
    assert all(np.isfinite(list(row.values())))


def rows(name: str) -> list[dict[str, float]]:
    """What was measured on one graph, a row for each seed."""
    return [lab.remembered(f"kg_rag-{name}-{seed}", functools.partial(measured, name, seed)) for seed in SEEDS]


def column(name: str, key: str, kinds: Sequence[str] = tuple(KINDS)) -> list[float]:
    """Of each seed: the mean over kinds of question."""
    return [sum(row[f"{kind}.{key}"] for kind in kinds) / len(kinds) for row in rows(name)]


ANSWERED = ("double", "verdicts")
"""Kinds of question with answers to choose from."""


@pytest.mark.parametrize("name", WORLDS)
def test_fewer_tokens_and_no_fewer_answers(name):
    """Check 1, with a reader that reads all there is."""
    tokens = {way: column(name, f"tokens.{way}", ANSWERED) for way in ("pruned", "unpruned")}
    answers = {way: column(name, f"span.{way}", ANSWERED) for way in ("pruned", "unpruned")}
    share = [one / other for one, other in zip(tokens["pruned"], tokens["unpruned"], strict=True)]
    lab.record(
        "kg_rag", f"answers-{name}",
        f"{name}: the facts that stay take less than half of the tokens of all, and a reader of them is right as often "
        "to 2 points",
        all(one < 0.5 for one in share) and sum(answers["pruned"]) >= sum(answers["unpruned"]) - 0.02 * len(SEEDS),
        ("right", answers["pruned"]), {"all facts": answers["unpruned"], "share of tokens": share}, lower=False,
        against=["all facts"], setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_a_reader_with_a_small_window_is_right_more_often(name):
    """Checks 1 and 6, with a reader that has room for 512 tokens."""
    ways = {way: column(name, f"window.{way}", ANSWERED) for way in ("pruned", "unpruned", "none")}
    lab.record(
        "kg_rag", f"window-{name}",
        f"{name}: a reader with room for {WINDOW} tokens is right more often of the facts that stay than of all",
        sum(ways["pruned"]) > sum(ways["unpruned"]), ("right", ways["pruned"]),
        {"all facts": ways["unpruned"], "no facts": ways["none"]}, lower=False, setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("reader", ["span", "similar"])
def test_a_reader_with_facts_is_right_more_often_than_without(name, reader):
    """Check 6."""
    ways = {way: column(name, f"{reader}.{way}", ANSWERED) for way in ("pruned", "none")}
    lab.record(
        "kg_rag", f"context-{reader}-{name}",
        f"{name}: the {reader} reader is right more often with the facts that stay than without any",
        sum(ways["pruned"]) > sum(ways["none"]), ("right", ways["pruned"]), {"no facts": ways["none"]}, lower=False,
        setup=SETUP,
    )  # fmt: skip


def answered(seed: int) -> dict[str, float]:
    """How often the causal reader is right about things that it never saw: of the facts that stay, of all, of none."""
    world = graphs.umls()
    held = causal.held_out(world, seed)
    reader, asked = causal.reader(world, held, seed), causal.choices(world, held, seed)
    times: Counter[str] = Counter()
    for choice in asked:
        facts = found(world, choice.asked)
        told = {
            "pruned": pruned(world, choice.asked, facts, (causal.WINDOW,))[0],
            "cut off": pruned(world, choice.asked, rated(facts, in_order), (causal.WINDOW,), **LOOSE)[0],
            "none": "",
        }
        for way, text in told.items():
            times[way] += causal.right(reader, world, choice, graphs.facts_of(text))
    return {way: times[way] / len(asked) for way in ("pruned", "cut off", "none")} | {"questions": len(asked)}


@pytest.mark.parametrize("seed", SEEDS)
def test_causal_reader_of_one_seed(seed):
    row = lab.remembered(f"kg_rag-causal-{seed}", functools.partial(answered, seed))
    assert row["questions"] >= 20


def test_a_causal_reader_with_facts_is_right_more_often_than_without():
    """Check 6, with a language model."""
    read = [lab.remembered(f"kg_rag-causal-{seed}", functools.partial(answered, seed)) for seed in SEEDS]
    ways = {way: [row[way] for row in read] for way in ("pruned", "cut off", "none")}
    lab.record(
        "kg_rag", "context-causal-umls",
        "umls: a causal reader is right more often with the facts that stay than without any, and than with as many "
        "tokens of all",
        sum(ways["pruned"]) > max(sum(ways["none"]), sum(ways["cut off"])), ("right", ways["pruned"]),
        {"no facts": ways["none"], "all facts, cut off": ways["cut off"]}, lower=False,
        setup=f"what a relation leads to from a thing held out of training: one of {causal.FEW} facts; a Llama of 2 "
        f"layers with room for {causal.WINDOW} tokens, trained in {causal.STEPS} steps on facts of other things",
    )  # fmt: skip


DRAWN = (0, 1, 2, 3, 4, 5, 6, 10, 11)
"""Seeds of what is compared at equal tokens, where one question decides over three. 7 to 9 were looked at before."""
SHORT = "graphs of 46 and 15 relations have a short schema; SPOKE's fills thousands of tokens"
HANDFUL = "0.936 of them: a quarter of ten to twenty facts is a handful, and those that answer are not always in it"


def failing(reason: str, *which: Any) -> dict[Any, pytest.MarkDecorator]:
    """Marks of the parameters for which a claim does not hold."""
    return dict.fromkeys(which, pytest.mark.xfail(strict=True, reason=reason))


@pytest.mark.parametrize("seed", DRAWN)
@pytest.mark.parametrize("name", WORLDS)
def test_equal_tokens_of_one_seed(name, seed):
    row = lab.remembered(f"kg_rag-equal-{name}-{seed}", functools.partial(equalled, name, seed))
    print({key: round(value, 3) for key, value in row.items()})
    assert all(0.0 <= value <= 1.0 for value in row.values())


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", WORLDS)
def test_gold_facts_at_equal_tokens(name, budget):
    """Check 2."""
    rivals = ("random facts", "BM25 facts", "unpruned, cut off", "full-text search, cut off")
    ways = (*rivals, "cosine facts", "ours, not filled", "ours without joins")
    read = [lab.remembered(f"kg_rag-equal-{name}-{seed}", functools.partial(equalled, name, seed)) for seed in DRAWN]
    others = {way: [row[f"{budget}.{way}"] for row in read] for way in ways}
    ours = [row[f"{budget}.ours"] for row in read]
    ahead = all(lab.clearly_less([-v for v in ours], [-v for v in others[way]]) for way in rivals)
    lab.record(
        "kg_rag", f"equal-{budget}-{name}",
        f"{name}: clearly more of the facts that answer stay in {budget} tokens than of random facts, of facts by "
        "BM25, of all facts cut off, and of those that a full-text search finds",
        ahead, ("recall of gold facts", ours), others, lower=False,
        against=rivals, setup=f"{SETUP}; fill, joins 0.3", seeds=DRAWN,
    )  # fmt: skip


SMALL = failing(HANDFUL, "wordnet")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SMALL.get(name, ())) for name in WORLDS])
def test_gold_facts_survive_and_fewer_do_at_higher_percentiles(name):
    """Check 3, and the curve over percentiles."""
    curve = {
        f"percentile {percentile}": column(name, f"recall.percentile.{percentile}", ["single"])
        for percentile in PERCENTILES
    }
    ours = curve.pop("percentile 75")
    curve["percentile 75 of the cosine alone"] = column(name, "recall.cosine", ["single"])
    sums = [sum(column(name, f"recall.percentile.{percentile}", ["single"])) for percentile in PERCENTILES]
    lab.record(
        "kg_rag", f"recall-{name}",
        f"{name}: of questions on one thing at least 95 % of the facts that answer stay at the defaults, and fewer the "
        "higher the percentile",
        sum(ours) >= 0.95 * len(SEEDS) and sums == sorted(sums, reverse=True), ("recall of gold facts", ours), curve,
        lower=False, setup=SETUP, reason=HANDFUL,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_more_volume_keeps_more_gold_facts(name):
    """The curve over volumes."""
    curve = {f"volume {volume}": column(name, f"recall.volume.{volume}") for volume in VOLUMES}
    ours = curve.pop("volume 150")
    sums = [sum(column(name, f"recall.volume.{volume}")) for volume in VOLUMES]
    lab.record(
        "kg_rag", f"volume-{name}",
        f"{name}: the larger the volume the more gold facts stay, and 150 facts keep at least 99 % of what 200 do",
        sums == sorted(sums) and sum(ours) >= 0.99 * sum(curve["volume 200"]), ("recall of gold facts", ours), curve,
        lower=False, setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_the_floor_spares_gold_facts(name):
    """How the default of 0.3 was found: the highest of the floors below which there is hardly a fact that answers."""
    curve = {f"floor {floor}, {sort}": column(name, f"{sort} below.{floor}")
             for floor in FLOORS for sort in ("gold", "other")}  # fmt: skip
    ours = curve.pop(f"floor {module.FLOOR}, gold")
    lab.record(
        "kg_rag", f"floor-{name}", f"{name}: at most 1 % of the facts that answer are below the default floor",
        sum(ours) <= 0.01 * len(SEEDS), ("share below", ours), curve, against=["floor 0.5, gold"], setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_cited_is_where_facts_come_from(name):
    """Check 5: each line that stays, with its source, is one of the graph's."""
    cited = column(name, "cited")
    lab.record(
        "kg_rag", f"sources-{name}", f"{name}: every line names the source that the graph has for its fact",
        all(share == 1.0 for share in cited), ("share of lines", cited), setup=SETUP,
    )  # fmt: skip


BRIEF = failing(SHORT, "umls", "movielens")


@pytest.mark.parametrize("name", [pytest.param(name, marks=BRIEF.get(name, ())) for name in WORLDS])
def test_fewer_tokens_than_the_schema_takes(name):
    """Check 0, on the side of tokens."""
    ours, schema_ = column(name, "tokens.pruned"), column(name, "tokens.schema")
    lab.record(
        "kg_rag", f"schema-{name}",
        f"{name}: a question takes less than half of the tokens of the schema and of a query, which a retriever reads "
        "that writes queries",
        sum(ours) < 0.5 * sum(schema_), ("tokens", ours), {"schema and query": schema_}, setup=SETUP,
        reason=SHORT,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- linking

CHANGES = ("case", "plural", "typo", "synonym")


def linking(seed: int) -> dict[str, float]:
    """Way of writing and of finding -> share of UMLS' concepts that a question with their name leads to."""
    world, draw, other, found = graphs.umls(), random.Random(seed), graphs.synonyms(), dict[str, float]()
    asks = ["What treats {}?", "What is associated with {}?", "{} is a part of what?"]
    index = graphs_of.names_of(world.graph)
    for how in CHANGES:
        many, hits = 0, Counter[str]()
        for thing in sorted(world.near):
            name = graphs.perturbed(world.words[thing], how, draw, other)
            if not name:
                continue
            question, many = draw.choice(asks).format(name), many + 1
            assert name in question
            assert name != world.words[thing]
            nodes, _ = link_question(world.graph, question, embed(), NodeLinking(least=0.6, fallback=0))
            hits["linked"] += any(node.endswith(f":{thing}") for node in nodes)
            (near,) = index.nearest([name], embed())
            hits["nearest name"] += near[0].node.endswith(f":{thing}")
            hits["exact"] += world.words[thing] in question
            hits["words"] += any(node.endswith(f":{thing}") for one in index.mentions(question) for node in one.nodes)
        found |= {f"{how}.{way}": hits[way] / many for way in ("linked", "nearest name", "exact", "words")}
    return found


@pytest.mark.parametrize("how", CHANGES)
def test_names_written_otherwise_are_found(how):
    """Check 4: the question itself is changed."""
    got = [lab.remembered(f"kg_rag-linking-{seed}", functools.partial(linking, seed)) for seed in SEEDS]
    values = {way: [row[f"{how}.{way}"] for row in got] for way in ("linked", "exact", "words", "nearest name")}
    ours = values.pop("linked")
    names = {"exact": "name in the question", "words": "its words, case aside", "nearest name": "nearest to it alone"}
    others = {names[way]: row for way, row in values.items()}
    lab.record(
        "kg_rag", f"linking-{how}", f"of names written otherwise ({how}) more are found than by exact match",
        sum(ours) > sum(values["exact"]), ("found", ours), others, lower=False, against=["name in the question"],
        setup="the 135 concepts of UMLS in three kinds of question, all-MiniLM-L6-v2; the last row is told the name "
        "without the question",
    )  # fmt: skip
