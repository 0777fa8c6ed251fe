"""Questions on UMLS and on MovieLens' graph whose supporting facts are known, and a reader that answers from facts.

UMLS is 135 medical concepts and 6,529 facts. MovieLens' graph of Freebase says 72,846 things of films, whose people,
studios and subjects have identifiers for names. Neither says where a fact comes from: sources and scores are added.
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

from assets import packages
from claims._lab import settings
from secateur._utils.disk import writing
from secateur.methods.graphs import open_graph
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

SOURCES = ("Atlas", "Beacon", "Codex", "Digest", "Ledger")
Triple = tuple[str, str, str]
"""Subject, predicate and object as they are written."""


@dataclass(frozen=True)
class Question:
    """What is asked, the things that it names, the facts that answer it, what may be answered, and what is right."""

    text: str
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
    named: tuple[str, ...] = ()
    """Kinds of what questions name; all where there is none."""

    def title(self, thing: str) -> str:
        """How a sentence calls a thing."""
        return f"{self.kinds[thing]} {self.words[thing]}" if thing in self.kinds else self.words[thing]

    def sentence(self, fact: Triple) -> str:
        """A fact in words, without its source."""
        return f"{self.title(fact[0])} {self.words[fact[1]]} {self.title(fact[2])}"

    @functools.cached_property
    def titled(self) -> frozenset[str]:
        """Things that a question can name: they have a name of the kinds asked for, and no other thing has the same."""
        count = Counter(self.words[thing].casefold() for thing in self.near)
        return frozenset(
            thing
            for thing in self.near
            if count[self.words[thing].casefold()] == 1
            and (self.name == "UMLS" or self.words[thing] != thing)
            and self.kinds.get(thing, "") in (self.named or ("",))
        )


def _make(name: str, triples: Iterable[Triple], words: dict[str, str], kinds: dict[str, str], *named: str) -> World:
    facts = tuple(sorted(set(triples)))
    path = settings.CACHE / "graphs" / f"{name}.tsv"
    with writing(path) as temporary, Path(temporary).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        heads = ("subject", "object", "subject name", "object name", "subject kind", "object kind")
        table.writerow([*heads, "predicate", "source", "score"])
        for fact in facts:
            ends, digest = (fact[0], fact[2]), _digest(fact)
            titles = [*(words[end] for end in ends), *(kinds.get(end, "") for end in ends)]
            table.writerow([*ends, *titles, fact[1], SOURCES[digest % len(SOURCES)], digest // 7 % 100 / 100])
    near = defaultdict(list)
    for fact in facts:
        for thing in {fact[0], fact[2]}:
            near[thing].append(fact)
    return World(name, facts, words, open_graph(path), dict(near), kinds, named)


def _digest(fact: Triple) -> int:
    return int.from_bytes(hashlib.blake2b("\t".join(fact).encode(), digest_size=6).digest(), "big")


def _rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


@functools.cache
def umls() -> World:
    """PyKEEN's UMLS, its three parts together."""
    facts = [
        (row[0], row[1], row[2])
        for part in ("train", "valid", "test")
        for row in _rows(packages.umls() / f"{part}.txt")
    ]
    return _make("UMLS", facts, {part: part.replace("_", " ") for fact in facts for part in fact}, {})


@functools.cache
def movielens() -> World:
    """RecBole's graph of MovieLens' films; each fact in one direction, its relation without the path to it."""
    folder = packages.movielens()
    films = {row[0]: row[1] for row in _rows(folder / "ml-100k.item")[1:]}
    named = {thing: films[item] for item, thing in _rows(folder / "ml-100k.link")[1:]}
    facts = [(s, p.rpartition(".")[2], o) for s, p, o in _rows(folder / "ml-100k.kg")[1:] if p.startswith("film.film.")]
    words = {part: named.get(part, part) for fact in facts for part in (fact[0], fact[2])}
    words |= {relation: relation.replace("_", " ") for _, relation, _ in facts}
    return _make("MovieLens", facts, words, dict.fromkeys(named, "film"), "film")


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


def _ask(world: World, relation: str, thing: str, forward: bool) -> str:
    """The question what stands at the other end of a thing's relation."""
    name, verb = world.words[thing], world.words[relation]
    if relation in OF_FILMS:
        return OF_FILMS[relation].format(name)
    return f"{name} {verb} what?" if forward else f"What {verb} {name}?"


def single(world: World, seed: int, count: int) -> list[Question]:
    """What stands at the other end of a relation of one thing, where at most three things do; as many as there are."""
    draw = random.Random(seed)
    groups = dict[tuple[str, str, bool], list[Triple]]()
    for fact in world.triples:
        s, p, o = fact
        groups.setdefault((s, p, True), []).append(fact)
        if world.name != "MovieLens":
            groups.setdefault((o, p, False), []).append(fact)
    fit = sorted(key for key, facts in groups.items() if len(facts) <= 3 and key[0] in world.titled)
    questions = []
    for thing, relation, forward in draw.sample(fit, min(count, len(fit))):
        text = _ask(world, relation, thing, forward)
        gold = frozenset(groups[thing, relation, forward])
        questions.append(Question(text[:1].upper() + text[1:], (thing,), gold))
    return questions


def double(world: World, seed: int, count: int) -> list[Question]:
    """Which of five things has to do with both of two: the four others are neighbours of only one of them."""
    draw, questions = random.Random(1000 + seed), list[Question]()
    while len(questions) < count:
        first = draw.choice(world.triples)
        # Both facts are of the thing that is asked for: it stands on the other side of what the question names.
        a, x = draw.choice([(first[0], first[2]), (first[2], first[0])])
        others = [fact for fact in world.near[x] if {fact[0], fact[2]} - {x} and not {a} & {fact[0], fact[2]}]
        if a == x or a not in world.titled or not others:
            continue
        second = draw.choice(others)
        b = second[2] if second[0] == x else second[0]
        if b not in world.titled or (world.name != "UMLS" and (x in world.titled or first[1] != second[1])):
            continue
        beside = [{part for fact in world.near[thing] for part in (fact[0], fact[2])} - {thing} for thing in (a, b)]
        only = [sorted(beside[0] - beside[1] - {b}), sorted(beside[1] - beside[0] - {a})]
        if min(map(len, only)) < 2:
            continue
        options = draw.sample([x, *draw.sample(only[0], 2), *draw.sample(only[1], 2)], 5)
        listed = ", ".join(world.words[option] for option in options)
        if world.name == "UMLS":
            gaps = [" ".join("X" if part == x else world.words[part] for part in fact) for fact in (first, second)]
            text = f"Which of these fits, {gaps[0]} and {gaps[1]}: {listed}?"
        else:
            verb = world.words[first[1]]
            text = f"Which of these do {world.words[a]} and {world.words[b]} both have as {verb}: {listed}?"
        questions.append(Question(text, (a, b), frozenset([first, second]), tuple(options), x))
    return questions


def verdicts(world: World, seed: int, count: int) -> list[Question]:
    """Whether a fact is true; of every second one the object is another, that the relation leads to elsewhere."""
    draw, questions = random.Random(2000 + seed), list[Question]()
    known, leads = set(world.triples), dict[str, set[str]]()
    for _, p, o in world.triples:
        leads.setdefault(p, set()).add(o)
    for s, p, o in draw.sample([fact for fact in world.triples if fact[0] in world.titled], 4 * count):
        true, target = len(questions) % 2 == 0, o
        if not true:
            wrong = sorted(other for other in leads[p] if (s, p, other) not in known)
            if not wrong:
                continue
            target = draw.choice(wrong)
        fact = (s, p, target)
        names = (s, target) if target in world.titled else (s,)
        gold = frozenset([fact] if true else [])
        text = f"Is it true that {world.sentence(fact)}?"
        questions.append(Question(text, names, gold, ("true", "false"), str(true).lower()))
        if len(questions) == count:
            break
    return questions


KINDS: tuple[Callable[[World, int, int], list[Question]], ...] = (single, double, verdicts)


# ------------------------------------------------------------------------------------------------------------- reading


def facts_of(text: str) -> list[str]:
    """The lines of a context without where they come from."""
    return [line.rpartition(", according to ")[0] or line for line in text.split("\n") if line]


def recall(world: World, question: Question, text: str) -> float:
    """Share of the facts that answer the question that the text says."""
    lines = set(facts_of(text))
    return sum(world.sentence(fact) in lines for fact in question.gold) / len(question.gold)


def right(world: World, question: Question, text: str) -> float:
    """Whether a reader that matches names is right of a text; where it can't tell, the chance of a guess."""
    lines = facts_of(text)
    if set(question.options) == {"true", "false"}:
        asked = question.text.removeprefix("Is it true that ").removesuffix("?")
        return float(("true" if asked in lines else "false") == question.answer)

    def overlap(option: str) -> int:
        ours = world.title(option)
        ends = [(ours, world.title(name)) for name in question.names]
        ends += [(theirs, ours) for _, theirs in ends]
        matches = [any(line.startswith(f"{a} ") and line.endswith(f" {b}") for line in lines) for a, b in ends]
        half = len(matches) // 2
        return sum(first or second for first, second in zip(matches[:half], matches[half:], strict=True))

    counts = [overlap(option) for option in question.options]
    best = [option for option, count in zip(question.options, counts, strict=True) if count == max(counts) > 0]
    return float(best[0] == question.answer) if len(best) == 1 else 1 / len(question.options)
