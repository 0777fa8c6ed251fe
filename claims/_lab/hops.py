"""Questions on real graphs whose answers lie one to three hops away, from one topic or two; and rivals."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from assets import packages
from secateur.clients.stores import Embedded
from secateur.retrieval.encoders import Count
from secateur.score import relevance
from secateur.subjects.graph.knowledge_graph import Fact, KnowledgeGraph
from secateur.subjects.graph.walks import Surroundings
from secateur.subjects.text import markup

Triple = tuple[str, str, str]
Step = tuple[str, bool]
"""A relation, and whether it is followed as it is written."""


@dataclass(frozen=True, eq=False)
class World:
    """A graph as it is written, its words, and the same behind secateur."""

    triples: tuple[Triple, ...]
    words: dict[str, str]
    """Thing or relation -> its name."""
    graph: KnowledgeGraph

    def named(self) -> list[str]:
        """Things whose name no other thing has."""
        things = sorted({thing for s, _, o in self.triples for thing in (s, o)})
        many = Counter(self.words[thing] for thing in things)
        return [thing for thing in things if many[self.words[thing]] == 1]


PLACE = "urn:hops:"


def load_world(triples: Sequence[Triple], words: dict[str, str]) -> World:
    """In memory: facts and names."""
    store, words = Embedded(), {part: words.get(part, part.replace("_", " ")) for fact in triples for part in fact}
    ox = store.library
    node = functools.cache(lambda part: ox.NamedNode(PLACE + part))
    label = ox.NamedNode("http://www.w3.org/2000/01/rdf-schema#label")
    store.graph.bulk_extend(ox.Quad(*map(node, fact)) for fact in triples)
    store.graph.bulk_extend(ox.Quad(node(part), label, ox.Literal(word)) for part, word in words.items())
    return World(tuple(sorted(set(triples))), words, KnowledgeGraph(store))


@functools.cache
def movielens() -> World:
    """RecBole's graph of Freebase about MovieLens' films: each fact in one direction, relations without their kind."""

    def rows(kind: str) -> list[list[str]]:
        lines = (packages.movielens() / f"ml-100k.{kind}").read_text("utf-8").splitlines()[1:]
        return [line.split("\t") for line in lines]

    films = {row[0]: row[1] for row in rows("item")}
    named = {thing: films[item] for item, thing in rows("link")}
    facts = [(s, p.rpartition(".")[2], o) for s, p, o in rows("kg") if p.startswith("film.film.") and " " not in s + o]
    return load_world(facts, named)


@dataclass(frozen=True)
class Question:
    """A question, the names of its topics, its answer, and the walks that lead there: facts in words."""

    question: str
    topics: tuple[str, ...]
    answer: str
    gold: tuple[frozenset[Triple], ...]
    hops: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------- sampling


def neighbours(world: World) -> dict[str, dict[Step, list[str]]]:
    """Thing -> step -> where it leads."""
    found: dict[str, dict[Step, list[str]]] = defaultdict(lambda: defaultdict(list))
    for s, p, o in world.triples:
        if s != o:
            found[s][p, True].append(o)
            found[o][p, False].append(s)
    return found


def follow(beside: dict[str, dict[Step, list[str]]], start: str, steps: Sequence[Step]) -> dict[str, list[list[str]]]:
    """End -> the walks that lead there by these steps, without a thing twice."""
    edge = [[start]]
    for step in steps:
        edge = [[*walk, node] for walk in edge for node in beside[walk[-1]].get(step, ()) if node not in walk]
        if len(edge) > 2000:
            return {}
    found: dict[str, list[list[str]]] = {}
    for walk in edge:
        found.setdefault(walk[-1], []).append(walk)
    return found


def facts(world: World, walk: Sequence[str], steps: Sequence[Step]) -> list[Triple]:
    """The facts of a walk, in words."""
    found = []
    for (p, forward), a, b in zip(steps, walk, walk[1:], strict=False):
        s, o = (a, b) if forward else (b, a)
        found.append((world.words[s], world.words[p], world.words[o]))
    return found


def draw_questions(
    world: World, speak: Speak, named: Sequence[str], seed: int, shapes: Sequence[tuple[int, ...]], count: int
) -> list[Question]:
    """`count` questions of each shape, hops from each topic to the answer, which is the only one.

    named: things that a question may name. speak: how a question is put.
    """
    draw, beside, found, known = random.Random(seed), neighbours(world), list[Question](), set(named)
    for shape in shapes:
        done = set[str]()
        while len(done) < count:
            drawn = draw_ways(draw, beside, draw.choice(named), shape, known)
            if drawn is None:
                continue
            answer, ways = drawn
            ends = [follow(beside, topic, steps) for topic, steps in ways]
            topics = tuple(world.words[topic] for topic, _ in ways)
            if set.intersection(*map(set, ends)) != {answer} or world.words[answer] in topics:
                continue
            question = speak(
                [(name, [(world.words[p], f) for p, f in steps]) for name, (_, steps) in zip(topics, ways, strict=True)]
            )
            if question in done:
                continue
            done.add(question)
            gold = [
                frozenset(
                    fact for walk, (_, steps) in zip(walks, ways, strict=True) for fact in facts(world, walk, steps)
                )
                for walks in itertools.islice(itertools.product(*(way[answer] for way in ends)), 500)
            ]
            found.append(Question(question, topics, world.words[answer], tuple(gold), shape))
    return found


Way = tuple[str, list[Step]]
"""A topic, and the steps from there to the answer."""


def draw_ways(
    draw: random.Random, beside: dict[str, dict[Step, list[str]]], topic: str, shape: tuple[int, ...], named: set[str]
) -> tuple[str, list[Way]] | None:
    """A random answer so many hops from the topic, and from others that are named; no thing stands on two ways."""
    there = random_walk(draw, beside, topic, shape[0])
    if there is None:
        return None
    walk, steps = there
    ways, held = [(topic, steps)], set(walk)
    for hops in shape[1:]:
        back = random_walk(draw, beside, walk[-1], hops)
        if back is None or back[0][-1] not in named or set(back[0][1:]) & held:
            return None
        held |= set(back[0])
        ways.append((back[0][-1], [(p, not forward) for p, forward in reversed(back[1])]))
    return walk[-1], ways


def random_walk(
    draw: random.Random, beside: dict[str, dict[Step, list[str]]], start: str, hops: int
) -> tuple[list[str], list[Step]] | None:
    """A random walk, without a thing twice. Relations are drawn, then neighbours, so that rare ones come too."""
    walk, steps = [start], list[Step]()
    for _ in range(hops):
        step = draw.choice(sorted(beside[walk[-1]]))
        node = draw.choice(beside[walk[-1]][step])
        if node in walk:
            return None
        walk.append(node)
        steps.append(step)
    return walk, steps


Speak = Callable[[Sequence[tuple[str, Sequence[Step]]]], str]
"""(topic, the steps to the answer) of each topic -> the question."""


NOUNS = {
    "actor": "actor", "award nomination": "nominated award", "award won": "won award",
    "cinematography": "cinematographer", "country": "country", "directed by": "director", "genre": "kind",
    "language": "spoken language", "prequel": "film before", "produced by": "producer",
    "production companies": "studio", "rating": "age rating", "sequel": "film after", "subjects": "topic",
    "written by": "author",
}  # fmt: skip


def in_nouns(ways: Sequence[tuple[str, Sequence[Step]]]) -> str:
    """Relations of films and words as nouns: What is the director of the one whose actor is m.0bln8?"""

    def phrase(noun: str, steps: Sequence[Step]) -> str:
        for relation, forward in steps:
            name = NOUNS[relation]
            noun = f"the {name} of {noun}" if forward else f"the one whose {name} is {noun}"
        return noun

    return "What is " + " and ".join(phrase(*way) for way in ways) + "?"


# ------------------------------------------------------------------------------------------------------ what is right


def in_words(world: World, facts: Iterable[Fact]) -> set[Triple]:
    """Facts in words."""
    return {tuple(world.words[part.removeprefix(PLACE)] for part in fact[:3]) for fact in facts}


def best_share(gold: Sequence[frozenset[Triple]], facts: set[Triple]) -> float:
    """Share of the facts of a walk to the answer that are there, of the walk that has most."""
    return max(len(walk & facts) / len(walk) for walk in gold)


# -------------------------------------------------------------------------------------------------------------- rivals


def surroundings(world: World, topics: Sequence[str], hops: int) -> tuple[list[Fact], list[str]]:
    """The facts around topics, the nearest first, and what each says."""
    around = Surroundings(world.graph, topics, most=50_000)
    around.reach(hops)
    far = {node: min(hops) for node, hops in around.far().items()}
    found = [
        Fact(near, step.relation, other)
        for near, beside in around.beside.items()
        for other, steps in beside.items()
        for step in steps
        if step.forward
    ]
    found.sort(key=lambda fact: (min(far.get(fact.subject, 99), far.get(fact.object, 99)), fact))
    return found, [" ".join(world.words[part.removeprefix(PLACE)] for part in fact[:3]) for fact in found]


def take_within(
    facts: Sequence[Fact], texts: Sequence[str], order: Iterable[int], budget: int, count: Count
) -> list[Fact]:
    """Facts in an order, as long as they fit."""
    kept, spent = list[Fact](), 0
    for place in order:
        spent += count([texts[place]])[0] + 1
        if spent > budget:
            break
        kept.append(facts[place])
    return kept


def stems(text: str) -> list[str]:
    """Words without their endings."""
    return [re.sub(r"(?:ing|ed|es|s|e)$", "", term) or term for term in markup.terms(text.replace("_", " "))]


def recall_of_rivals(
    world: World, question: Question, topics: Sequence[str], budget: int, count: Count, seed: int
) -> dict[str, float]:
    """Way -> share of the gold facts, of those around the topics within as many hops as the answer is away."""
    facts, texts = surroundings(world, topics, max(question.hops))
    ranked = relevance.bm25(stems(question.question), [stems(text) for text in texts])
    orders = {
        "random facts": np.random.default_rng(seed).permutation(len(facts)),
        "facts by BM25": np.argsort(-ranked, kind="stable"),
        "facts as they come, truncated": range(len(facts)),
    }
    return {
        way: best_share(question.gold, in_words(world, take_within(facts, texts, list(map(int, order)), budget, count)))
        for way, order in orders.items()
    }
