"""Questions on real graphs whose supporting facts are known, rivals that look for them there too, and readers.

UMLS is 135 medical concepts and 6,529 facts. MovieLens' graph of Freebase says 72,846 things of films, whose people,
studios and subjects have identifiers for names. WordNet says 187,583 things of 116,650 synsets. None says where a fact
comes from: sources and scores are put to the facts here, so that citations can be checked.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assets import packages
from assets import wordnet as net_of
from claims import lab
from secateur._utils.disk import writing
from secateur.methods.graphs import open_graph
from secateur.retrieval import encoders
from secateur.score import relevance
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

SOURCES = ("Atlas", "Beacon", "Codex", "Digest", "Ledger")
Triple = tuple[str, str, str]
"""Subject, predicate and object as they are written."""


@dataclass(frozen=True)
class Asked:
    """A question, the things that it names, the facts that answer it, what may be answered, and what is right."""

    question: str
    names: tuple[str, ...]
    gold: frozenset[Triple]
    options: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True, eq=False)
class World:
    """A graph as it is written, and the same behind secateur."""

    name: str
    triples: tuple[Triple, ...]
    words: dict[str, str]
    """Thing or relation -> its name."""
    graph: KnowledgeGraph
    near: dict[str, list[Triple]]
    """Thing -> facts around it, sorted."""

    kinds: dict[str, str]
    """Thing -> its kind, of those that have one."""
    asked: tuple[str, ...] = ()
    """Kinds of what questions name; all where there is none."""
    least: int = 0
    """Facts that stand around what questions name, at least."""

    def title(self, thing: str) -> str:
        """How a sentence calls a thing."""
        return f"{self.kinds[thing]} {self.words[thing]}" if thing in self.kinds else self.words[thing]

    def said(self, fact: Triple) -> str:
        """A fact as a sentence, without its source."""
        return f"{self.title(fact[0])} {self.words[fact[1]]} {self.title(fact[2])}"

    @functools.cached_property
    def told(self) -> frozenset[str]:
        """All facts as sentences with their sources."""
        return frozenset(f"{self.said(fact)}, according to {source(fact)}" for fact in self.triples)


def source(fact: Triple) -> str:
    """Where a fact is said to come from."""
    return SOURCES[_digest(fact) % len(SOURCES)]


def score(fact: Triple) -> float:
    """How sure it is said to be, 0 to 0.99."""
    return _digest(fact) // 7 % 100 / 100


def _digest(fact: Triple) -> int:
    return int.from_bytes(hashlib.blake2b("\t".join(fact).encode(), digest_size=6).digest(), "big")


def _world(name: str, triples: Iterable[Triple], words: dict[str, str], kinds: dict[str, str], **asked: Any) -> World:
    facts = tuple(sorted(set(triples)))
    path = lab.CACHE / "graphs" / f"{name}.tsv"
    with writing(path) as temporary, Path(temporary).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        heads = ("subject", "object", "subject name", "object name", "subject kind", "object kind")
        table.writerow([*heads, "predicate", "source", "score"])
        for fact in facts:
            ends = (fact[0], fact[2])
            table.writerow(
                [*ends, *(words[end] for end in ends), *(kinds.get(end, "") for end in ends), fact[1], source(fact),
                 score(fact)]
            )  # fmt: skip
    near = defaultdict(list)
    for fact in facts:
        for thing in {fact[0], fact[2]}:
            near[thing].append(fact)
    return World(name, facts, words, open_graph(path), dict(near), kinds, **asked)


def _rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


@functools.cache
def umls() -> World:
    """PyKEEN's UMLS, its three parts together."""
    found = [tuple(row) for part in ("train", "valid", "test") for row in _rows(packages.umls() / f"{part}.txt")]
    return _world("umls", found, {part: part.replace("_", " ") for fact in found for part in fact}, {})


@functools.cache
def movielens() -> World:
    """RecBole's graph of MovieLens' films; each fact in one direction, its relation without the path to it."""
    folder = packages.movielens()
    films = {row[0]: row[1] for row in _rows(folder / "ml-100k.item")[1:]}
    named = {thing: films[item] for item, thing in _rows(folder / "ml-100k.link")[1:]}
    found = [(s, p.rpartition(".")[2], o) for s, p, o in _rows(folder / "ml-100k.kg")[1:] if p.startswith("film.film.")]
    words = {part: named.get(part, part) for fact in found for part in (fact[0], fact[2])}
    words |= {relation: relation.replace("_", " ") for _, relation, _ in found}
    return _world("movielens", found, words, dict.fromkeys(named, "film"), asked=("film",))


@functools.cache
def wordnet() -> World:
    """WordNet. Questions are on animals and places with ten facts or more: of fewer there is little to prune."""
    net = net_of.net()
    return _world("wordnet", net.triples, net.words, net.kinds, asked=("noun animal", "noun location"), least=10)


# ---------------------------------------------------------------------------------------------------------- questions

OF_FILMS = {
    "actor": "Who plays in {}?",
    "award_nomination": "Which award was {} nominated for?",
    "award_won": "Which award did {} win?",
    "cinematography": "Who was the cinematographer of {}?",
    "country": "In which country was {} made?",
    "directed_by": "Who directed {}?",
    "genre": "Which genre is {} of?",
    "language": "Which language is spoken in {}?",
    "prequel": "What is the prequel of {}?",
    "produced_by": "Who produced {}?",
    "production_companies": "Which company made {}?",
    "rating": "Which rating does {} have?",
    "sequel": "What is the sequel of {}?",
    "subjects": "Which subjects is {} about?",
    "written_by": "Who wrote {}?",
}
AS_NOUNS = frozenset(
    ("antonym", "attribute", "cause", "domain_region", "domain_topic", "domain_usage", "entailment", "hypernym",
     "member_holonym", "part_holonym", "substance_holonym")
)  # fmt: skip
"""Relations of WordNet that are nouns."""


def put(world: World, relation: str, thing: str, forward: bool) -> str:
    """The question what stands at the other end of a thing's relation."""
    name, verb = world.words[thing], world.words[relation]
    if relation in OF_FILMS:
        return OF_FILMS[relation].format(name)
    if relation in AS_NOUNS:
        return f"What is the {verb} of {name}?" if forward else f"Of what is {name} the {verb}?"
    return f"{name} {verb} what?" if forward else f"What {verb} {name}?"


@functools.cache
def titled(make: Callable[[], World]) -> frozenset[str]:
    """Things that a question can name: they have a name, and no other thing has the same."""
    world = make()
    count = Counter(world.words[thing].casefold() for thing in world.near)
    return frozenset(
        thing for thing in world.near
        if count[world.words[thing].casefold()] == 1 and (world.name == "umls" or world.words[thing] != thing)
        and len(world.near[thing]) >= world.least and world.kinds.get(thing, "") in (world.asked or ("",))
    )  # fmt: skip


@functools.cache
def single(make: Callable[[], World], seed: int, count: int = 100) -> list[Asked]:
    """What stands at the other end of a relation of one thing, where at most three things do; as many as there are."""
    world, draw = make(), random.Random(seed)
    groups = dict[tuple[str, str, bool], list[Triple]]()
    for fact in world.triples:
        s, p, o = fact
        groups.setdefault((s, p, True), []).append(fact)
        if world.name != "movielens":
            groups.setdefault((o, p, False), []).append(fact)
    fit = sorted(key for key, facts in groups.items() if len(facts) <= 3 and key[0] in titled(make))
    found = []
    for thing, relation, forward in draw.sample(fit, min(count, len(fit))):
        asked = put(world, relation, thing, forward)
        found.append(Asked(asked[:1].upper() + asked[1:], (thing,), frozenset(groups[thing, relation, forward])))
    return found


@functools.cache
def double(make: Callable[[], World], seed: int, count: int = 100) -> list[Asked]:
    """Which of five things has to do with both of two: the four others are neighbours of only one of them."""
    world, draw, found = make(), random.Random(1000 + seed), list[Asked]()
    things, facts = titled(make), sorted(world.triples)
    while len(found) < count:
        one = draw.choice(facts)
        # Both facts are of the thing that is asked for: it stands on the other side of what the question names.
        ends = [(one[0], one[2]), (one[2], one[0])]
        a, x = draw.choice(ends)
        others = [fact for fact in world.near[x] if {fact[0], fact[2]} - {x} and not {a} & {fact[0], fact[2]}]
        if a == x or a not in things or not others:
            continue
        two = draw.choice(others)
        b = two[2] if two[0] == x else two[0]
        if b not in things or (world.name != "umls" and (x in things or one[1] != two[1])):
            continue
        if world.name == "wordnet" and not one[2] == two[2] == x:
            continue
        beside = [{part for fact in world.near[thing] for part in (fact[0], fact[2])} - {thing} for thing in (a, b)]
        only = [sorted(beside[0] - beside[1] - {b}), sorted(beside[1] - beside[0] - {a})]
        if min(map(len, only)) < 2:
            continue
        wrong = draw.sample(only[0], 2) + draw.sample(only[1], 2)
        options = draw.sample([x, *wrong], 5)
        listed = ", ".join(world.words[option] for option in options)
        if world.name == "umls":
            parts = [_gap(world, fact, x) for fact in (one, two)]
            asked = f"Which of these fits, {parts[0]} and {parts[1]}: {listed}?"
        elif world.name == "wordnet":  # what may be answered is of the kinds that questions name: it is not told
            asked = f"What do {world.words[a]} and {world.words[b]} both have as {world.words[one[1]]}?"
        else:
            verb = world.words[one[1]]
            asked = f"Which of these do {world.words[a]} and {world.words[b]} both have as {verb}: {listed}?"
        found.append(Asked(asked, (a, b), frozenset([one, two]), tuple(options), x))
    return found


def _gap(world: World, fact: Triple, x: str) -> str:
    """A fact with a gap for the thing that is asked for."""
    return " ".join("X" if part == x else world.words[part] for part in fact)


@functools.cache
def verdicts(make: Callable[[], World], seed: int, count: int = 100) -> list[Asked]:
    """Whether a fact is true; of every second one the object is another, that the relation leads to elsewhere."""
    world, draw, found = make(), random.Random(2000 + seed), list[Asked]()
    known, leads = set(world.triples), dict[str, set[str]]()
    for _, p, o in world.triples:
        leads.setdefault(p, set()).add(o)
    things = titled(make)
    for s, p, o in draw.sample([fact for fact in world.triples if fact[0] in things], 4 * count):
        true, target = len(found) % 2 == 0, o
        if not true:
            wrong = sorted(other for other in leads[p] if (s, p, other) not in known)
            if not wrong:
                continue
            target = draw.choice(wrong)
        claim = (s, p, target)
        gold = frozenset([claim] if true else [])
        names = (s, target) if target in things else (s,)
        found.append(Asked(f"Is it true that {world.said(claim)}?", names, gold, ("true", "false"), str(true).lower()))
        if len(found) == count:
            break
    return found


# ------------------------------------------------------------------------------------------------------------- readers


def facts_of(text: str) -> list[str]:
    """The lines of a context without where they come from."""
    return [line.rpartition(", according to ")[0] or line for line in text.split("\n") if line]


def statement(asked: Asked) -> str:
    """What a question of `verdicts` asks about."""
    return asked.question.removeprefix("Is it true that ").removesuffix("?")


def span_reader(world: World, asked: Asked, text: str) -> str:
    """The option that stands in facts with the most of the question's things; empty where none or several do."""
    said = facts_of(text)
    if set(asked.options) == {"true", "false"}:
        return "true" if statement(asked) in said else "false"

    def overlap(option: str) -> int:
        one = world.title(option)
        return sum(
            any(
                (line.startswith(f"{one} ") and line.endswith(f" {other}"))
                or (line.startswith(f"{other} ") and line.endswith(f" {one}"))
                for line in said
            )
            for other in map(world.title, asked.names)
        )

    counts = [overlap(option) for option in asked.options]
    best = [option for option, count in zip(asked.options, counts, strict=True) if count == max(counts) > 0]
    return best[0] if len(best) == 1 else ""


def right(world: World, asked: Asked, text: str) -> float:
    """Whether the span reader is right of a text; where it can't tell, the chance of a guess among the options."""
    said = span_reader(world, asked, text)
    return float(said == asked.answer) if said else 1 / len(asked.options)


def similar(world: World, asked: Asked, text: str, embed: encoders.Embed) -> float:
    """Whether a reader by similarity is right: what each option says, and its likeness to the nearest fact of the text.

    Without a text it is the likeness of the option to the question.
    """
    said = facts_of(text)
    if set(asked.options) == {"true", "false"}:
        if not said:
            return 0.5
        vectors = embed([statement(asked), *said])
        return float(("true" if relevance.cosine(vectors[0], vectors[1:]).max() > SURE else "false") == asked.answer)
    names = [world.title(thing) for thing in asked.names]
    told = [f"{world.title(option)} {name}" for option in asked.options for name in names]
    vectors = embed([*told, *(said or [asked.question])])
    likeness = [relevance.cosine(vector, vectors[len(told) :]).max() for vector in vectors[: len(told)]]
    sums = np.array(likeness).reshape(len(asked.options), -1).sum(1)
    return float(asked.options[int(sums.argmax())] == asked.answer)


SURE = 0.97
"""Likeness above which a reader by similarity takes a fact for what is asked about."""


def held(world: World, asked: Asked, text: str) -> float:
    """Share of the facts that answer the question that the text says."""
    said = set(facts_of(text))
    return sum(world.said(fact) in said for fact in asked.gold) / len(asked.gold)


# -------------------------------------------------------------------------------------------------------- perturbations


def synonyms() -> dict[str, str]:
    """Word -> another word of its first noun sense in WordNet."""
    folder, synsets, found = packages.wordnet(), dict[str, list[str]](), dict[str, str]()
    for line in (folder / "data.noun").read_text("utf-8").splitlines():
        if not line.startswith("  "):
            fields = line.split(" ")
            synsets[fields[0]] = [fields[4 + 2 * i].lower() for i in range(int(fields[3], 16))]
    for line in (folder / "index.noun").read_text("utf-8").splitlines():
        if not line.startswith("  "):
            fields = line.split()
            first = fields[-int(fields[2])]
            others = [word.replace("_", " ") for word in synsets[first] if word != fields[0]]
            if others and "_" not in fields[0]:
                found[fields[0]] = others[0]
    return found


def perturbed(name: str, how: str, draw: random.Random, other: dict[str, str]) -> str:
    """A name written otherwise; empty where it can't be, or would be the same."""
    words = name.split()
    if how == "case":
        found = name.upper()
    elif how == "plural":
        last = words[-1]
        ended = last[:-1] + "ies" if last.endswith("y") else last + ("es" if last.endswith(("s", "x", "ch")) else "s")
        found = " ".join([*words[:-1], ended])
    elif how == "typo":
        longest = max(words, key=len)
        if len(longest) < 4:
            return ""
        place = draw.randrange(1, len(longest) - 2)
        swapped = longest[:place] + longest[place + 1] + longest[place] + longest[place + 2 :]
        found = name.replace(longest, swapped, 1)
    else:
        known = [word for word in words if word in other]
        if not known:
            return ""
        word = draw.choice(known)
        found = name.replace(word, other[word], 1)
    return found if found != name else ""
