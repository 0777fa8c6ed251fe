"""PoG: Paths-over-Graph: knowledge graph empowered large language model reasoning.

Tan, Wang, Liu, Xu, Yuan and Zhang, WWW 2025 (arXiv 2410.14211).
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.clients.stores import usable
from secateur.errors import BudgetError, InputError, SecateurError
from secateur.methods import graphs
from secateur.retrieval import encoders
from secateur.retrieval.encoders import Count
from secateur.retrieval.names import COMMON
from secateur.score import naming, relevance
from secateur.select import beams, ranking
from secateur.select import limits as limits_of
from secateur.subjects.graph import walks
from secateur.subjects.graph.knowledge_graph import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.graph.walks import Cluster, Path, Surroundings
from secateur.subjects.text import markup
from secateur.vocabulary import Array, Budget, Cut, Result, Selection

CARD = {
    "title": "PoG: Paths-over-Graph: Knowledge Graph Empowered Large Language Model Reasoning",
    "paper": "https://arxiv.org/abs/2410.14211",
    "cuts": "paths of a knowledge graph through all that a question names, under a budget of tokens",
    "recovers": "nothing",
    "extra": "context",
    "family": "context",
}

Mode = Literal["1", "12", "13", "123"]


def paths_over_graph(
    subject: KnowledgeGraph,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    embedder: Any = "",
    tokenizer: Any = "",
    topics: Sequence[str] = (),
    llm: Any = "",
    llm_name: str = "",
    calls: int = 0,
    llm_tokens: int = 0,
    indicator: str = "",
    depth: int = 3,
    start: int = 0,
    wide: int = 80,
    branch: int = 20,
    width: int = 3,
    mode: Mode = "123",
    one_relation: bool = False,
    ordered: bool = True,
    supplement: bool = True,
    expand: bool = True,
    reduce: bool = True,
    summarise: bool = True,
    enough: float = 0.5,
    least: float = 0.7,
    lookup: Literal["all", "query"] = "all",
    batch: int = 40,
    window: int = 16_000,
    most: int = 2000,
    reading: int = 20_000,
    hub: int = 300,
    threads: int = 1,
    device: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Find the paths that lead through all that a question names, and keep the few that answer it.

    1. Topics are found in the question, which is read for an indicator of the path, a part of it for each topic, and
       how long the path may be (D).
    2. From h = ceil(D / 2) hops up to `depth` (from D where there is one topic): the graph around the topics is read,
       and reduced to walks of at most h hops from a topic to a node that all of them reach. All paths in it through
       the topics are pruned; if what is left answers the question, that is it.
    3. If not, names that the answer might have are looked up and paths are led through them (`supplement`); and what
       stands beside the best paths is added to them (`expand`).

    Paths with the same relations are one, with all their entities. Pruning is in three steps: the `wide` most like the
    indicator stay; then those whose beginnings and ends a judge prefers, until `branch` are left; then those that it
    prefers as a whole, until `width` are left. The judge is a language model that sees `batch` of them at a time and
    names three. Without one, relations r are aligned in order with the phrases p of the question,

        s = (1 / hops + 1 / phrases) max over alignments of sum of cos(r, p),

    and paths suffice where one holds all topics and each phrase has its relation there, with a cosine of `enough`.

    Args:
        subject: the graph; it stays as it is.
        data: the question.
        budgets: tokens=100, or words=60 where there is no tokenizer; or a share of all paths, tokens=20%.
        run: where what was found goes.
        embedder: folder or Hub id of a bi-encoder, or such a model; without one texts are compared by their words.
        tokenizer: folder or Hub id of the reader's tokenizer, or a function that counts tokens; the embedder's own if
            not given.
        topics: what the question is about, names or IRIs in the graph; else they are looked for in it.
        llm: address of a server of OpenAI's protocol, folder or Hub id of a language model, or such a model.
        llm_name: of the model, on a server.
        calls: of the language model, at most; no limit if 0. The rest is judged without.
        llm_tokens: the same for tokens in and out.
        indicator: what the path may look like, "A" - treats - x - causes - "B"; else the language model's guess.
        depth: hops from each topic, at most.
        start: hops to start with; 0 to go by the indicator.
        wide: paths that the first step of pruning leaves, by similarity.
        branch: the second, by beginnings and ends.
        width: the third, and so the result.
        mode: which steps there are: 1, 12, 13 or 123.
        one_relation: of several relations between two entities take one (PoG-E).
        ordered: lead paths through topics in the order in which the indicator names them, or the question does without
            one; otherwise in the order in which they are given or found.
        supplement: the second phase.
        expand: the third phase.
        reduce: look for paths in the reduced graph, not in all that was read.
        summarise: let the language model shorten the paths before it judges whether they suffice.
        enough: cosine at which a relation says what a phrase of the question asks, without a language model.
        least: cosine below which the nearest name is not taken for what a topic is called.
        lookup: "all" reads the names of all things once, and compares the question with each; "query" asks the graph
            for those that the question may hold, which suits an endpoint of millions, and finds fewer that are spelt
            otherwise.
        batch: paths or branches that the judge sees at once.
        window: tokens that a prompt may have; a local model's own where that is less.
        most: paths that are looked at in one round, and beginnings of paths at each hop.
        reading: facts that are read of the graph, at most.
        hub: facts that are read of one node other than a topic, in one direction.
        threads: queries to the graph at once.
        device: where the embedder is held if given by name, "cuda"; the processor if empty.
        seed: of the language model's answers.
        dry_run: as a run; nothing is kept.

    No topic found gives an empty result, and so does a best path that does not fit into the budget: `told-...` in the
    run says why. Topics that don't meet within `depth` hops are explored in groups that do, or one by one. A language
    model that is down, or answers nonsense three times, is replaced by the judge without one, and a graph that stops
    answering midway by what was read of it; one that never answers raises `ServerError`.

    Departures: the released code ends its search where it has seen the gold answer; here nothing but the question is
    read. It mixes up topics whose searches end out of order, extends only the first arrival at an entity, and asks
    without end for a list that it can read; none of these is kept. D is the number of steps of the indicator, as in
    the code; of more than two topics, those from one to the next. Branches of paths with the same relations are one,
    as the paths are; where one hop more makes whole paths of all branches, they stay short, or the judge would read as
    much as without them. Where more than `most` paths begin alike in length, those go on whose relations are most like
    the question. A thing without a name is called by the end of its IRI. A round of the third phase looks at the `wide`
    most similar edges. Without a language model the supplement looks up the three entities on paths whose names are
    most like the question.
    """
    numbers = {
        "depth": depth, "wide": wide, "branch": branch, "width": width, "batch": batch, "window": window, "most": most,
        "reading": reading, "hub": hub, "threads": threads,
    }  # fmt: skip
    least_of = dict.fromkeys(numbers, 1) | {"start": 0, "calls": 0, "llm_tokens": 0}
    numbers |= {"start": start, "calls": calls, "llm_tokens": llm_tokens}
    for name, value in numbers.items():
        if value < least_of[name]:
            raise InputError(f"{name}={value}: give at least {least_of[name]}")
    if mode not in ("1", "12", "13", "123"):
        raise InputError(f"mode={mode!r}: give 1, 12, 13 or 123")
    reader = tokenizer or encoders.named(embedder)
    counts = {"tokens": encoders.counter(reader)} if reader else {}
    like = Likeness(encoders.remembering(embedder, device=device) if embedder else None)
    question, model = " ".join(data.split()), None
    if llm:
        model = chat.answering(llm, llm_name, calls=calls, tokens=llm_tokens)

    def searched() -> dict[str, Any]:
        rule = Rule(like, enough)
        judge: Judge = rule if model is None else Asked(model, rule, window, seed)
        found, notes = linked(subject, question, topics, judge, like, least, lookup)
        names = subject.names(found)
        asked = judge.analysed(question, found, [names[node] for node in found], indicator)
        asked = asked if ordered else reordered(asked, found)
        around = Surroundings(subject, asked.topics, most=reading, hub=hub, threads=threads)
        hops = Hops(start or asked.hops, depth)
        search = Search(
            subject, asked, judge, like, around, counts, notes, Widths(wide, branch, width, batch, mode, most, depth)
        )
        best = list[Cluster]()
        if asked.topics:
            best = explored(search, hops, reduce, one_relation, summarise)
            if not search.sufficient and supplement:
                best = supplemented(search, best, hops, one_relation, summarise)
            if not search.sufficient and expand and best:
                best = expanded(search, best, hops, one_relation, summarise)
            search.decided(best)
        return search.told(best)

    found = run.json("found", searched)
    lines = [Line(row["text"], tuple(Fact(*fact) for fact in row["facts"])) for row in found["best"]]
    for budget in budgets:
        limits = limits_of.reading(budget, found["whole"], "a context of paths")
        facts, notes = within(lines, limits, counts)
        kept = {line.text for line in facts.lines}
        rows = [{**row, "kept": row["text"] in kept} for row in found["rows"]]
        run.json(f"trace-{budget}", partial(dict, {"paths": rows}))
        after = facts.cost(counts)
        told = {**found["told"], "notes": [*found["told"]["notes"], *notes], "paths_kept": len(facts.lines)}
        run.json(f"told-{budget}", partial(dict, told))
        gone = {"paths": (found["told"]["paths"] - len(facts.lines), found["told"]["paths"])}
        yield Result(str(budget), facts, Cut(gone, found["whole"], after, tuple(told["notes"])), after)


@dataclass(frozen=True, slots=True)
class Asking:
    """A question as it was read.

    topics: nodes, in the order in which a path is to lead through them; names of these, and a part of the question for
    each. lengths: steps that each part seems to speak of. indicator: what paths are compared with. steps: how many it
    has (D). phrases: what the question says of each step, in the order of the path. others: what else the indicator
    names.
    """

    question: str
    topics: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    indicator: str = ""
    steps: int = 1
    phrases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def hops(self) -> int:
        """Hops from each topic with which a search starts: half of the steps from one to the next, where they join."""
        return max(1, self.steps if len(self.topics) < 2 else math.ceil(self.steps / (2 * (len(self.topics) - 1))))


@dataclass(frozen=True, slots=True)
class Piece:
    """A path or a piece of one in words, its relations in order, and whether it holds the path's beginning and end."""

    text: str
    relations: tuple[str, ...]
    begins: bool = True
    ends: bool = True


# ---------------------------------------------------------------------------------------------------------- how alike


FEW = 5
"""Names of one place of a path that are compared with the question."""


class Likeness:
    """How alike texts are: cosine of what an encoder makes of them, or of their words where there is none."""

    def __init__(self, embed: encoders.Embed | None) -> None:
        self.embed = embed

    def __call__(self, questions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """[questions, texts]. Rounded: the last digits depend on what a text was read together with."""
        if not questions or not texts:
            return np.zeros((len(questions), len(texts)))
        if self.embed is None:
            return np.round(naming.tfidf([terms(text) for text in questions], [terms(text) for text in texts]), 6)
        vectors = self.embed([*questions, *texts])
        asked, said = vectors[: len(questions)], vectors[len(questions) :]
        return np.round(np.stack([relevance.cosine(one, said) for one in asked]), 6)

    def ranked(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """[texts]: cosine, or BM25."""
        if self.embed is None:
            return np.round(relevance.bm25(terms(question), [terms(text) for text in texts]), 6)
        return np.asarray(self([question], texts)[0])


def terms(text: str) -> list[str]:
    """What is compared of a text without an encoder: its words, without the commonest endings."""
    return [re.sub(r"(?:ing|ed|es|s|e)$", "", term) or term for term in markup.terms(text.replace("_", " "))]


# ------------------------------------------------------------------------------------------------------------ judges


class Judge(Protocol):
    """Whoever reads the question and decides which paths matter, and whether they suffice."""

    def keywords(self, question: str) -> list[str]:
        """What the question is about, as it says it; none where that is to be found by names."""
        ...

    def analysed(self, question: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> Asking:
        """The question as it was read."""
        ...

    def fits(self, asking: Asking, pieces: Sequence[Piece]) -> bool:
        """Whether so many can be judged at once."""
        ...

    def choose(self, asking: Asking, pieces: Sequence[Piece]) -> list[int]:
        """The places of the best, the best first."""
        ...

    def proposed(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
        """(name of a possible answer, the chain that leads there), at most three; `names` stand on the paths."""
        ...

    def summary(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        """The paths, shorter, with nothing named that is not in `names`."""
        ...

    def verdict(self, asking: Asking, texts: Sequence[str], whole: Sequence[Piece]) -> tuple[bool, str]:
        """Whether the paths answer the question, and the answer; `whole`: those of them that hold all topics."""
        ...

    def forced(self, asking: Asking, texts: Sequence[str]) -> str:
        """The best answer that there is, though the paths do not suffice."""
        ...

    def told(self) -> dict[str, Any]:
        """Calls, tokens and what went wrong."""
        ...


_FUNCTION = (
    "been being both either how into its neither of on other one ones or over some someone something such than the "
    "their them then there these they thing things this those through to under was whose with you your"
)
STOP = COMMON | set(_FUNCTION.split())
ASKING = frozenset(("what", "which"))


class Rule:
    """A judge without a language model, by how alike words are.

    A topic's part of the question is the clause that names it. A phrase is a run of words between function words, and
    each is a step, the nearer to the topic the earlier.
    """

    def __init__(self, like: Likeness, enough: float) -> None:
        self.like, self.enough = like, enough

    def keywords(self, question: str) -> list[str]:
        """None."""
        return []

    def analysed(self, question: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> Asking:
        """The clauses that name the topics, and their phrases."""
        chain = indicator or question
        order = sorted(range(len(nodes)), key=lambda i: (place(names[i], chain), i))
        topics, known = tuple(nodes[i] for i in order), tuple(names[i] for i in order)
        clauses = re.split(r"[,;]|\b(?:and|but|while)\b", question) if len(known) > 1 else []
        parts = tuple(
            next((clause.strip() for clause in clauses if name.casefold() in clause.casefold()), question)
            for name in known
        )
        found = links(indicator)
        others = tuple(
            name for name in found[::2]
            if len(found) > 2 and name.casefold() not in {one.casefold() for one in known} and not _OPEN.match(name)
        )  # fmt: skip
        steps = (len(found) - 1) // 2 if len(found) > 2 else 0
        return divided(Asking(question, topics, known, parts, (), chain, steps, (), others))

    def fits(self, asking: Asking, pieces: Sequence[Piece]) -> bool:
        """Always."""
        return True

    def choose(self, asking: Asking, pieces: Sequence[Piece]) -> list[int]:
        """By how well their relations and the phrases of the question are aligned."""
        relations = list(dict.fromkeys(relation for piece in pieces for relation in piece.relations))
        phrases = asking.phrases or (asking.question,)
        alike, at = self.like(phrases, relations), {relation: number for number, relation in enumerate(relations)}
        scores = []
        for piece in pieces:
            # Of a piece, the phrases at its side count, and one more in case the path has a step that none speaks of.
            some = len(phrases) if piece.begins and piece.ends else min(len(phrases), len(piece.relations) + 1)
            side = alike[:some] if piece.begins else alike[len(phrases) - some :]
            value = sum(aligned(side[:, [at[relation] for relation in piece.relations]]))
            scores.append(value / max(1, len(piece.relations)) + value / max(1, some))
        return [int(place) for place in np.argsort(-np.round(scores, 6), kind="stable")]

    def proposed(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
        """The names on paths that are most like the question."""
        scores = self.like.ranked(asking.question, names)
        return [(names[i], "") for i in np.argsort(-scores, kind="stable")[:3]]

    def summary(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        """The paths as they are."""
        return list(texts)

    def verdict(self, asking: Asking, texts: Sequence[str], whole: Sequence[Piece]) -> tuple[bool, str]:
        """Whether a path holds all topics, and a relation for each phrase."""
        for piece in whole:
            alike = self.like(asking.phrases, piece.relations)
            if not asking.phrases or all(value >= self.enough for value in aligned(alike)):
                return True, ""
        return False, ""

    def forced(self, asking: Asking, texts: Sequence[str]) -> str:
        """Nothing that is not in the paths."""
        return ""

    def told(self) -> dict[str, Any]:
        """Nobody was asked."""
        return {"calls": 0, "prompt_tokens": 0, "answer_tokens": 0, "notes": []}


KEYWORDS = """Which things does the question name? Answer with their names, separated by semicolons.
Question: Which drug treats asthma and is made by Acme?
Things: asthma; Acme

Question: {question}
Things: """
ANALYSIS = """Read a question whose topics are known. Guess the chain of relations that leads through the topics and \
the answer, and split the question into one for each topic, in the order of the chain.
Question: Which drug treats asthma and is made by Acme?
Topics: Acme; asthma
Chain: "asthma" - is treated by - answer(drug) - is made by - "Acme"
Question 1: Which drug treats asthma?
Question 2: Which drug is made by Acme?

Question: {question}
Topics: {topics}
"""
CHOICE = """Which of these help most to answer the question? Answer with the numbers of the best three, the best first.
Question: {example}
1. asthma <-[treats]- {{salbutamol, prednisone}}
2. asthma -[resembles]-> bronchitis
Best: 1

Question: {question}
{pieces}
Best: """
PROPOSAL = """Guess up to three answers to the question, each with the chain that leads to it, one a line.
Question: Which drug treats asthma and is made by Acme?
Known:
asthma <-[treats]- salbutamol
Answer: salbutamol | Chain: "asthma" - is treated by - "salbutamol" - is made by - "Acme"

Question: {question}
Known:
{paths}
"""
SUMMARY = """Shorten these paths to what matters for the question, one chain a line. Name nothing that they don't name.
Question: Which drug treats asthma?
asthma <-[treats]- {{salbutamol, prednisone}} -[causes]-> tremor
Short:
asthma <-[treats]- {{salbutamol, prednisone}}

Question: {question}
{paths}
Short:
"""
VERDICT = """Do these paths suffice to answer the question? Answer {{Yes}} and the answer, or {{No}} and why not.
Question: Which drug treats asthma?
asthma <-[treats]- salbutamol
{{Yes}} salbutamol

Question: {question}
{paths}
"""
FORCED = """Answer the question by these paths and by what you know. Give the answer alone.
Question: {question}
{paths}
Answer: """
TRIES = 3
"""How often a language model is asked for the same list."""
WARM = 0.4
"""Temperature of all but verdicts."""


class Asked:
    """A language model as judge. Where it gives no answer that can be read, `other` judges in its place.

    A server that is down, and a bound on calls or tokens that is reached, end the asking for good.
    """

    def __init__(self, model: chat.LanguageModel, other: Rule, window: int, seed: int) -> None:
        self.model, self.other, self.seed, self.notes = model, other, seed, list[str]()
        self.window = min(float(window), getattr(model, "window", math.inf))
        meter = model.meter
        self.before = (meter.calls, meter.prompt_tokens, meter.answer_tokens)
        self.lost = False

    def ask(self, prompt: str, most: int = 256, temperature: float = WARM, again: int = 0) -> str:
        """What it says; empty where it says nothing."""
        if self.lost or self._size(prompt) + most > self.window:
            return ""
        try:
            return chat.said(self.model, prompt, most=most, temperature=temperature, seed=self.seed + again)
        except SecateurError as error:
            # What is wrong with this prompt alone may be right with the next; the rest will be no better then.
            self.lost = isinstance(error, BudgetError) or not isinstance(error, InputError)
            self.note(f"the language model gave no answer: {error}")
            return ""

    def note(self, text: str) -> None:
        """Tell it once."""
        self.notes += [text] if text not in self.notes else []

    def _size(self, prompt: str) -> int:
        count = getattr(self.model, "prompt", None)
        # A server's tokenizer is not known: three letters a token is more than most need.
        return len(count(prompt)) if count else len(prompt) // 3 + 1

    def keywords(self, question: str) -> list[str]:
        """The things in its list."""
        said = self.ask(KEYWORDS.format(question=question), 64).partition("\n")[0]
        named = dict.fromkeys(" ".join(part.split())[:200] for part in said.split(";"))
        return [name for name in named if name][:TOPICS]

    def analysed(self, question: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> Asking:
        """Its chain and its questions, as far as they can be read."""
        said = self.ask(ANALYSIS.format(question=question, topics="; ".join(names))) if nodes else ""
        chain = " ".join(found[1][:1000].split()) if (found := _CHAIN.search(said)) else ""
        guess = chain if len(links(chain)) > 2 else ""
        asking = self.other.analysed(question, nodes, names, indicator or guess)
        asked = _PART.findall(said)
        if len(asked) != len(names) or not names:
            return asking
        parts = tuple(" ".join(part.split())[:500] for part in asked)
        return divided(replace(asking, parts=parts, steps=(len(links(asking.indicator)) - 1) // 2))

    def _choice(self, asking: Asking, pieces: Sequence[Piece]) -> str:
        listed = "\n".join(f"{number}. {piece.text}" for number, piece in enumerate(pieces, start=1))
        return CHOICE.format(example="Which drug treats asthma?", question=asking.question, pieces=listed)

    def fits(self, asking: Asking, pieces: Sequence[Piece]) -> bool:
        """Whether the prompt fits into its window."""
        return self._size(self._choice(asking, pieces)) + 64 <= self.window

    def choose(self, asking: Asking, pieces: Sequence[Piece]) -> list[int]:
        """The numbers in its answer."""
        prompt = self._choice(asking, pieces)
        for again in range(TRIES):
            said = self.ask(prompt, 64, again=again)
            found = [int(number) - 1 for number in re.findall(r"\d{1,6}", said[:500])]
            found = [number for number in dict.fromkeys(found) if 0 <= number < len(pieces)]
            if found:
                return found[:3]
            if self.lost or not said:
                break
        self.note("a choice of the language model could not be read, and was made without it")
        return self.other.choose(asking, pieces)

    def proposed(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
        """What it would look for."""
        said = self.ask(PROPOSAL.format(question=asking.question, paths="\n".join(texts)))
        found = [(name[:200].strip(), chain[:1000]) for name, chain in _PROPOSED.findall(said)]
        return found[:3] or self.other.proposed(asking, texts, names)

    def summary(self, asking: Asking, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        """Its lines that are chains of entities on the paths; all paths where there is none."""
        said = self.ask(SUMMARY.format(question=asking.question, paths="\n".join(texts)), 512)
        known = {name.casefold() for name in names}
        found = []
        for line in said.splitlines():
            ends = [part.strip(" {}\"'") for part in re.split(r"<?-\[[^\]]*\]->?", line)]
            held = [name.strip() for end in ends for name in ([end] if end.casefold() in known else end.split(","))]
            if len(ends) > 1 and all(name.casefold() in known for name in held):
                found.append(" ".join(line.split()))
        return found or list(texts)

    def verdict(self, asking: Asking, texts: Sequence[str], whole: Sequence[Piece]) -> tuple[bool, str]:
        """Its {Yes} with the answer, or {No}."""
        prompt = VERDICT.format(question=asking.question, paths="\n".join(texts))
        for again in range(TRIES):
            said = self.ask(prompt, temperature=0.0 if not again else WARM, again=again)
            found = re.search(r"\b(yes|no)\b[\s}\]).:,]*(.*)", said, re.IGNORECASE | re.DOTALL)
            if found:
                answer = " ".join(found[2].split())[:500]
                return found[1].lower() == "yes", answer if found[1].lower() == "yes" else ""
            if self.lost or not said:
                break
        self.note("a verdict of the language model could not be read, and was made without it")
        return self.other.verdict(asking, texts, whole)

    def forced(self, asking: Asking, texts: Sequence[str]) -> str:
        """Its guess."""
        return " ".join(self.ask(FORCED.format(question=asking.question, paths="\n".join(texts))).split())[:500]

    def told(self) -> dict[str, Any]:
        """What its meter counted since."""
        meter = self.model.meter
        now = (meter.calls, meter.prompt_tokens, meter.answer_tokens)
        spent = [after - before for after, before in zip(now, self.before, strict=True)]
        return {
            **dict(zip(("calls", "prompt_tokens", "answer_tokens"), spent, strict=True)), "notes": self.notes,
        }  # fmt: skip


# Possessive, and within a line as far as signs go: tried once at each line, whatever a model says.
_CHAIN = re.compile(r"^[^\w\n]*+chain[^\w\n:]*+:\s*+(.+)", re.IGNORECASE | re.MULTILINE)
_PART = re.compile(r"^[^\w\n]*+question \d++[^\w\n:]*+:\s*+(.+)", re.IGNORECASE | re.MULTILINE)
_PROPOSED = re.compile(
    r"^[^\w\n]*+answer[^\w\n:]*+:\s*+([^|\n]++)(?:\|\s*+chain[^\w\n:]*+:\s*+(.*))?$", re.IGNORECASE | re.MULTILINE
)

_OPEN = re.compile(r"(?:answer\b.*|[a-z]|\?.*)$", re.IGNORECASE)
"""What stands in an indicator for what is not known."""


def links(indicator: str) -> list[str]:
    """Entities and relations in turn: "A" - treats - x - causes - "B"."""
    line = " ".join(indicator.split())
    return [part.strip().strip("\"'“”") for part in re.split(r" (?:-+>?|<-+|→|–|—) ", line) if part.strip()]


def place(name: str, text: str) -> float:
    """Where a name stands in a text, or the part of it that is found there; behind all where nothing is."""
    text, name = text.casefold(), name.casefold()
    if name in text:
        return text.index(name)
    found = difflib.SequenceMatcher(None, text, name, autojunk=False).find_longest_match()
    return found.a if found.size >= 3 else len(text)


def divided(asking: Asking) -> Asking:
    """The question with the phrases of its parts, from topic to topic; D is how many there are, unless it is known.

    A path from one topic to the next has the phrases of the one, then those of the other backwards. A part without any
    speaks of the same as the one before it: "directed both A and B".
    """
    each = list[list[str]]()
    for part, name in zip(asking.parts, asking.names, strict=True):
        each.append(spoken(part, name, asking.names) or (each[-1] if each else []))
    each = [phrases or next((other for other in each if other), []) for phrases in each]
    along = each[0] if len(each) == 1 else [
        phrase for near, far in itertools.pairwise(each) for phrase in [*near, *reversed(far)]
    ]  # fmt: skip
    lengths = tuple(max(1, len(phrases)) for phrases in each)
    return replace(asking, phrases=tuple(along), lengths=lengths, steps=asking.steps or max(1, len(along)))


def reordered(asking: Asking, topics: Sequence[str]) -> Asking:
    """The question with its topics in another order; D stays."""
    places = [asking.topics.index(topic) for topic in topics]
    names, parts = (tuple(row[place] for place in places) for row in (asking.names, asking.parts))
    return divided(replace(asking, topics=tuple(topics), names=names, parts=parts))


def spoken(text: str, topic: str, names: Sequence[str]) -> list[str]:
    """Phrases of a text, those nearest to the topic first: runs of words between names and function words.

    What it asks for at its start is none: "which drug treats" asks for a drug.
    """
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(re.escape(name), " ¦ " if name == topic else " , ", text, flags=re.IGNORECASE)
    words = [*re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[,;.?!:¦]", text.casefold()), "."]
    at, found, run, before = words.index("¦") if "¦" in words else 0, list[tuple[int, str]](), list[str](), ""
    for number, word in enumerate(words):
        if word not in STOP and word[0].isalnum():
            run.append(word)
            continue
        if run and not found and before in ASKING and (len(run) > 1 or word in STOP):
            run = run[1:]
        if run:
            found.append((max(at - number + 1, number - len(run) - at), " ".join(run)))
        run, before = [], word
    return [phrase for _, phrase in sorted(found, key=lambda one: one[0])]


def aligned(alike: np.ndarray) -> list[float]:
    """Each row's value in the alignment of rows and columns, one to one and in order, of the largest sum; or 0."""
    rows, columns = alike.shape
    best = np.zeros((rows + 1, columns + 1))
    for i, j in itertools.product(range(rows), range(columns)):
        best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + max(0.0, alike[i, j]))
    found, i, j = [0.0] * rows, rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found[i] = float(alike[i, j])
    return found


# ------------------------------------------------------------------------------------------------------------ search


@dataclass(frozen=True, slots=True)
class Hops:
    """Hops from each topic: those to start with, and the most."""

    first: int
    most: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(min(self.first, self.most), self.most + 1))


@dataclass(frozen=True, slots=True)
class Widths:
    """How many paths each step of pruning leaves, how many are judged at once, and how many are looked at."""

    wide: int
    branch: int
    width: int
    batch: int
    mode: str
    most: int
    depth: int


@dataclass(eq=False)
class Search:
    """What the phases share: the question as it was read, what was read of the graph, who judges, and the record."""

    graph: KnowledgeGraph
    asking: Asking
    judge: Judge
    like: Likeness
    around: Surroundings
    counts: Mapping[str, Count]
    notes: list[str]
    widths: Widths
    sufficient: bool = False
    answer: str = ""
    summary: list[str] = field(default_factory=list)
    phase: str = "none"
    hops: int = 0
    entities: tuple[int, int] = (0, 0)
    """Around the topics, and left by the reduction, where it was done last."""
    names: dict[str, str] = field(default_factory=dict)
    texts: dict[str, float] = field(default_factory=dict)
    """What was looked at, and how alike to the indicator it is."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _liking: dict[str, float] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------------- in words

    def learn(self, nodes: Sequence[str]) -> None:
        """Names of nodes and relations; without an answer, the nodes' own."""
        new = [node for node in dict.fromkeys(nodes) if node not in self.names]
        try:
            self.names |= self.graph.names(new) if new else {}
        except SecateurError as error:
            self.names |= {node: node for node in new}
            self.notes.append(f"some names were not read: {error}")

    def told_of(self, clusters: Sequence[Cluster]) -> list[str]:
        """Paths in words."""
        shown = [node for one in clusters for nodes in one.nodes for node in nodes[: walks.LISTED]]
        self.learn([*shown, *(step.relation for one in clusters for step in one.steps)])
        return [walks.verbalised(one.nodes, one.steps, self.names) for one in clusters]

    def pieces(self, branches: Sequence[Sequence[Any]], paths: Sequence[Cluster], whole: bool = True) -> list[Piece]:
        """Branches of paths in words, or whole paths: with the entities of all paths that have them."""
        topics, blocks, found = self.asking.topics, [path.blocks for path in paths], list[Piece]()
        for branch in map(tuple, branches):
            begins = whole or branch[0] == topics[:1]
            ends = whole or not begins or (len(topics) > 1 and branch[-1] == topics[-1:])
            size, held = len(branch), list[tuple[tuple[str, ...], ...]]()
            for path, own in zip(paths, blocks, strict=True):
                if begins and own[:size] == branch:
                    held.append(path.nodes[: size // 2 + 1])
                elif not begins and own[-size:] == branch:
                    held.append(path.nodes[-(size // 2 + 1) :])
            places = [tuple(sorted(set(itertools.chain(*place)))) for place in zip(*held, strict=True)]
            steps = branch[1::2]
            text = walks.verbalised(places, steps, self.names)
            found.append(Piece(text, tuple(self.names[step.relation] for step in steps), begins, ends))
        return found

    def bounded(self, whole: bool) -> None:
        """Tell once that there were more paths than are looked at."""
        note = f"there are more paths than the {self.widths.most} that are looked at in one round"
        self.notes += [note] if not whole and note not in self.notes else []

    def liking(self) -> dict[str, float]:
        """Relation -> how like the indicator it is: what goes on where there are too many paths."""
        new = sorted(self.around.relations() - self._liking.keys())
        if new:
            self.learn(new)
            asked = list(dict.fromkeys(self.asking.phrases)) or [self.asking.indicator]
            alike = self.like(asked, [self.names[relation] for relation in new]).max(0)
            self._liking |= dict(zip(new, map(float, alike), strict=True))
        return self._liking

    # ----------------------------------------------------------------------------------------------- three-step pruning

    def alike(self, clusters: Sequence[Cluster]) -> np.ndarray:
        """[clusters]: how like the indicator they are."""
        said = self.told_of(clusters)
        # Of a place with many entities a few are read: what they have in common is what matters.
        few = [walks.verbalised(one.nodes, one.steps, self.names, listed=FEW) for one in clusters]
        new = {text: short for text, short in zip(said, few, strict=True) if text not in self.texts}
        scores = self.like.ranked(self.asking.indicator, list(new.values()))
        self.texts |= dict(zip(new, map(float, scores), strict=True))
        return np.array([self.texts[text] for text in said])

    def fuzzy(self, clusters: Sequence[Cluster], width: int) -> list[Cluster]:
        """The `width` most like the indicator, the likest first."""
        order = np.argsort(-self.alike(clusters), kind="stable")[:width]
        return [clusters[place] for place in order]

    def pruned(self, clusters: Sequence[Cluster]) -> tuple[list[Cluster], list[Cluster]]:
        """What is left after all steps, the best first; and after the first of them."""
        how = self.widths
        clusters = walks.clustered(dict.fromkeys(path for one in clusters for path in one.members))
        near = self.fuzzy(clusters, how.width if how.mode == "1" else how.wide)
        left, last = near, how.width if how.mode == "12" else how.branch
        if "2" in how.mode and len(near) > last:
            kept = beams.branched(
                [one.blocks for one in near], partial(self.choose, near, False), width=last, longest=how.depth + 1,
                batch=how.batch, fits=partial(self.fits, near, False),
            )  # fmt: skip
            left = [near[place] for place in kept]
        branched = len(left)
        if "3" in how.mode:
            left = self.narrowed(left, how.width)
        left = left[: how.width]
        sizes = {"enumerated": len(clusters), "fuzzy": len(near), "branch": branched, "precise": len(left), "rounds": 1}
        self.steps |= {name: self.steps.get(name, 0) + size for name, size in sizes.items()}
        for one, text in zip(near, self.told_of(near), strict=True):
            self.rows[text] = {
                "path": self.way(one), "text": text, "score": self.texts[text],
                "nodes": [list(nodes[: walks.LISTED]) for nodes in one.nodes],
                "steps": [list(step) for step in one.steps], "facts": [list(fact) for fact in shown(one)],
            }  # fmt: skip
        return left, near

    def fits(self, paths: Sequence[Cluster], whole: bool, branches: Sequence[Sequence[Any]]) -> bool:
        """Whether the judge can look at so many."""
        return self.judge.fits(self.asking, self.pieces(branches, paths, whole))

    def choose(self, paths: Sequence[Cluster], whole: bool, branches: Sequence[Sequence[Any]]) -> list[int]:
        """What the judge chooses of paths, or of branches."""
        pieces = self.pieces(branches, paths, whole)
        self.seen(pieces)
        return self.judge.choose(self.asking, pieces)

    def narrowed(self, paths: Sequence[Cluster], width: int) -> list[Cluster]:
        """The paths that the judge prefers as a whole."""
        kept = beams.narrowed(
            [one.blocks for one in paths], partial(self.choose, paths, True), width=width, top=min(3, width),
            batch=self.widths.batch, fits=partial(self.fits, paths, True),
        )  # fmt: skip
        return [paths[place] for place in kept]

    def seen(self, pieces: Sequence[Piece]) -> None:
        """Count what the judge looks at."""
        count = self.counts.get("tokens", lambda texts: [len(text.split()) for text in texts])
        self.steps["judged"] = self.steps.get("judged", 0) + 1
        self.steps["judged_tokens"] = self.steps.get("judged_tokens", 0) + sum(count([one.text for one in pieces]))

    def way(self, cluster: Cluster) -> str:
        """The relations of a path, with their directions."""
        return " ".join(("> " if step.forward else "< ") + self.names[step.relation] for step in cluster.steps)

    # ---------------------------------------------------------------------------------------------- what it amounts to

    def judged(self, best: Sequence[Cluster], phase: str, hops: int, summarise: bool) -> bool:
        """Whether the best paths suffice."""
        if not best:
            return False
        self.phase, self.hops = phase, hops
        texts, names = self.told_of(best), self.said(best)
        topics = set(self.asking.topics)
        complete = [one for one in best if topics <= {node for nodes in one.nodes for node in nodes}]
        whole = self.pieces([one.blocks for one in complete], complete)
        if summarise:
            texts = self.judge.summary(self.asking, texts, names)
        self.summary = texts
        self.sufficient, answer = self.judge.verdict(self.asking, texts, whole)
        self.answer = answer or self.guess(best[0]) if self.sufficient else ""
        return self.sufficient

    def decided(self, best: Sequence[Cluster]) -> None:
        """Where no phase sufficed, the answer that the best paths come nearest to."""
        if not self.sufficient and best:
            self.answer = self.judge.forced(self.asking, self.told_of(best)) or self.guess(best[0])

    def said(self, clusters: Sequence[Cluster]) -> list[str]:
        """The names that paths show, of entities and relations."""
        shown = [node for one in clusters for nodes in one.nodes for node in nodes[: walks.LISTED]]
        shown += [step.relation for one in clusters for step in one.steps]
        return list(dict.fromkeys(self.names[node] for node in shown))

    def guess(self, path: Cluster) -> str:
        """What stands where the answer should: at the end, or as far between two topics as their parts are long."""
        place, stops = len(path.nodes) - 1, path.members[0].stops
        if len(stops) > 1:
            there, back = (*self.asking.lengths, 1, 1)[:2]
            place = min(max(1, round(stops[1] * there / (there + back))), max(1, stops[1] - 1))
        return ", ".join(self.names[node] for node in path.nodes[min(place, len(path.nodes) - 1)][: walks.LISTED])

    def told(self, best: Sequence[Cluster]) -> dict[str, Any]:
        """What a run keeps: the best paths and their facts, what was looked at, and the figures."""
        whole = Facts([Line(text, ()) for text in self.texts])
        rows = list(self.rows.values())
        costs = Facts([Line(row["text"], ()) for row in rows]).units(**self.counts)["facts"].cost
        rows = [{**row, **{name: float(column[i]) for name, column in costs.items()}} for i, row in enumerate(rows)]
        kept = [
            {"text": text, "facts": [list(fact) for fact in shown(one)]}
            for one, text in zip(best, self.told_of(best), strict=True)
        ]
        judged = self.judge.told()
        told = {
            "answer": self.answer, "summary": self.summary, "sufficient": self.sufficient, "phase": self.phase,
            "hops": self.hops, "steps": self.asking.steps, "topics": list(self.asking.topics),
            "names": list(self.asking.names),
            "indicator": self.asking.indicator, "facts_read": self.around.facts, "entities": self.entities[0],
            "entities_reduced": self.entities[1], "paths": len(self.texts),
            **{f"paths_{name}": self.steps.get(name, 0) for name in ("enumerated", "fuzzy", "branch", "precise")},
            **{name: self.steps.get(name, 0) for name in ("rounds", "judged", "judged_tokens")},
            **judged, "notes": [*self.notes, *self.around.notes, *judged["notes"]],
        }  # fmt: skip
        return {"best": kept, "rows": rows, "whole": whole.cost(self.counts), "told": told}


def shown(path: Cluster) -> list[Fact]:
    """The facts that a text of it says: of the members whose every entity is listed."""
    listed = [set(nodes[: walks.LISTED]) for nodes in path.nodes]
    seen = [one for one in path.members if all(node in names for node, names in zip(one.nodes, listed, strict=True))]
    return list(dict.fromkeys(fact for one in seen for fact in walks.facts(one)))


# ------------------------------------------------------------------------------------------------------- three phases


def explored(search: Search, hops: Hops, reduce: bool, one: bool, summarise: bool) -> list[Cluster]:
    """Phase 1: paths through all topics, with ever more hops, until they suffice; the best of them."""
    count = len(search.asking.topics)
    if count > 1:
        best = together(search, list(range(count)), hops, reduce, one, summarise)
        if best or search.sufficient:
            return best
        groups = search.around.together(hops.most)
        search.notes.append(f"the topics do not meet within {hops.most} hops: {len(groups)} groups of them stand alone")
    else:
        groups = [[0]]
    best = []
    for group in groups:
        if len(group) > 1:
            best += together(search, group, hops, reduce, one, summarise)
        else:
            best += alone(search, group[0], hops, one, summarise)
    return search.pruned(best)[0] if len(groups) > 1 else best


def together(
    search: Search, group: Sequence[int], hops: Hops, reduce: bool, one: bool, summarise: bool
) -> list[Cluster]:
    """Paths through some topics, in the order of the indicator, and through what else it names if there are such."""
    around, best = search.around, list[Cluster]()
    order = [search.asking.topics[number] for number in group]
    for many in hops:
        around.reach(many)
        meeting = around.meeting(many, group)
        if not meeting:
            continue
        beside: walks.Beside = around.reduced(many, group)
        search.entities = (len(set[str]().union(*(around.within(number, many) for number in group))), len(beside))
        beside = beside if reduce else around.beside
        forced = inserted(search, order, matched(search, search.asking.others, list(beside), 0.95))
        found = list[Path]()
        if forced != order:
            found = through(search, beside, forced, many, None, one)
        if not found:
            found = through(search, beside, order, many, meeting if len(order) > 2 else None, one)
        best, _ = search.pruned([*best, *walks.clustered(found)])
        if search.judged(best, "topics", many, summarise):
            break
    return best


def through(
    search: Search,
    beside: walks.Beside,
    order: Sequence[str],
    hops: int,
    meeting: set[str] | None,
    one: bool,
    each: int = 0,
) -> list[Path]:
    """Paths that lead through nodes in order; the `each` most like the indicator between two of them, if given."""
    most, liking, parts = search.widths.most, search.liking(), list[list[Path]]()
    for near, far in itertools.pairwise(order):
        found = walks.between(beside, near, far, hops, meeting=meeting, most=most, liking=liking, one=one)
        search.bounded(found.whole)
        parts.append(list(found.paths))
        if each and len(found.paths) > each:
            scores = search.alike([walks.clustered([path])[0] for path in found.paths])
            parts[-1] = [found.paths[place] for place in np.argsort(-scores, kind="stable")[:each]]
    found = walks.chained(parts, most=most, liking=liking)
    search.bounded(found.whole)
    return list(found.paths)


def alone(search: Search, topic: int, hops: Hops, one: bool, summarise: bool) -> list[Cluster]:
    """Paths from one topic: at first all up to the hops to start with, then those that are one hop longer.

    What is read next are the ends of the paths that the first step of pruning left, and no others.
    """
    around, best, pool = search.around, list[Cluster](), list[Path]()
    edge = [Path((search.asking.topics[topic],), ())]
    for many in range(1, hops.most + 1):
        around.read(path.nodes[-1] for path in edge)
        found = walks.grown(around.beside, edge, most=search.widths.most, liking=search.liking(), one=one)
        search.bounded(found.whole)
        edge = list(found.paths)
        pool += edge
        if many < min(hops.first, hops.most):
            continue
        best, near = search.pruned([*best, *walks.clustered(pool)])
        if search.judged(best, "topics", many, summarise) or not edge:
            break
        edge = [path for cluster in near for path in cluster.members if len(path.steps) == many]
        pool = []
    return best


def supplemented(search: Search, best: list[Cluster], hops: Hops, one: bool, summarise: bool) -> list[Cluster]:
    """Phase 2: paths that are led through what the answer might be."""
    around = search.around
    around.reach(hops.most)
    held = [node for path in best for nodes in path.nodes for node in nodes if node not in search.asking.topics]
    near = list(dict.fromkeys([*held, *nearby(around)]))
    search.learn(near)
    texts, known = search.told_of(best), list(dict.fromkeys(search.names[node] for node in near))
    found = list[Path]()
    for name, chain in search.judge.proposed(search.asking, texts, known)[:3]:
        for node in matched(search, [name], near, 0.8)[: hops.most]:
            order = inserted(search, list(search.asking.topics), [node], chain)
            for many in range(1, hops.most + 1):
                around.reach(many)
                paths = through(search, around.beside, order, many, None, one, each=10)
                if paths:
                    scores = search.alike([walks.clustered([path])[0] for path in paths])
                    found += [paths[place] for place in np.argsort(-scores, kind="stable")[:50]]
                    break
    if not found:
        return best
    best, _ = search.pruned([*best, *walks.clustered(found)])
    search.judged(best, "supplement", hops.most, summarise)
    return best


def expanded(search: Search, best: list[Cluster], hops: Hops, one: bool, summarise: bool) -> list[Cluster]:
    """Phase 3: what stands beside the entities of the best paths, a few edges at a time."""
    done, running, how = set(search.asking.topics), list[Path](), search.widths
    for _ in range(hops.most):
        begun = [
            Path(path.nodes[: place + 1], path.steps[:place], tuple(stop for stop in path.stops if stop <= place))
            for cluster in best
            for path in cluster.members[: walks.LISTED]
            for place in range(1, len(path.nodes))
        ]
        begun = [path for path in dict.fromkeys([*running, *begun]) if path.nodes[-1] not in done]
        ends = list(dict.fromkeys(path.nodes[-1] for path in begun))
        if not ends:
            break
        done |= set(ends)
        search.around.read(ends)
        edges = walks.grown(
            search.around.beside, [Path((node,), ()) for node in ends], most=how.most, liking=search.liking(), one=one
        )
        search.bounded(edges.whole)
        near = search.fuzzy(walks.clustered(edges.paths), how.wide)
        kept = search.narrowed(near, 3)
        running = [
            Path((*path.nodes, edge.nodes[1]), path.steps + edge.steps, path.stops)
            for cluster in kept
            for edge in cluster.members
            for path in begun
            if path.nodes[-1] == edge.nodes[0] and edge.nodes[1] not in path.nodes
        ]
        scores = search.alike([walks.clustered([path])[0] for path in running])
        running = [running[place] for place in np.argsort(-scores, kind="stable")[:10]]
        best, _ = search.pruned([*best, *walks.clustered(running)])
        if search.judged(best, "expand", hops.most, summarise):
            break
    return best


def nearby(around: Surroundings, most: int = 10_000) -> list[str]:
    """Nodes around the topics, those few hops away first."""
    far = {node: min(hops) for node, hops in around.far().items()}
    return sorted(far, key=lambda node: (far[node], node))[:most]


def matched(search: Search, asked: Sequence[str], nodes: Sequence[str], least: float) -> list[str]:
    """The node whose name is most like each name that is asked for, if it is more than `least`."""
    if not asked or not nodes:
        return []
    search.learn(nodes)
    alike = naming.tfidf([terms(name) for name in asked], [terms(search.names[node]) for node in nodes])
    best = [(int(row.argmax()), float(row.max())) for row in alike]
    return list(dict.fromkeys(nodes[place] for place, value in best if value > least))


def inserted(search: Search, order: Sequence[str], nodes: Sequence[str], chain: str = "") -> list[str]:
    """The order with more nodes where a chain names them; behind the first topic where it does not."""
    found, chain = list(order), chain or search.asking.indicator
    for node in nodes:
        if node in found:
            continue
        at = place(search.names[node], chain)
        before = [i for i, other in enumerate(found) if place(search.names[other], chain) <= at < len(chain)]
        found.insert(min(before[-1] + 1 if before else 1, max(1, len(order) - 1) if len(order) > 1 else 1), node)
    return found


# ------------------------------------------------------------------------------------------------ before and after it


TOPICS = 6
"""Things that a question is about, at most."""


def linked(
    graph: KnowledgeGraph,
    question: str,
    topics: Sequence[str],
    judge: Judge,
    like: Likeness,
    least: float,
    lookup: str,
) -> tuple[list[str], list[str]]:
    """The nodes that a question is about, and what is to be told of those that were not found.

    Where no topics are given, they are what a language model finds in the question, or the names of the graph that
    stand in it, or what its phrases are nearest to.
    """
    found, notes = list[str](), list[str]()
    asked = [" ".join(topic.split()) for topic in topics if topic.strip()] or judge.keywords(question)
    names = None
    if not all(map(usable, asked)) or not asked:
        names, notes = graphs.speaking(graph, asked or [question], lookup=lookup)
    for topic in asked:
        nodes = [topic] if names is None or usable(topic) else names.called(topic)
        if not nodes and names is not None and like.embed:
            nodes = [match.node for match in names.nearest([topic], like.embed, 1, least)[0]]
        found += nodes[:1]
        notes += [] if nodes else [f"nothing in the graph is called {topic!r}"]
    if not found and not topics and names is not None:
        if asked:
            names, more = graphs.speaking(graph, [question], lookup=lookup)
            notes += more
        found = [mention.nodes[0] for mention in names.mentions(question)]
        if not found and like.embed:
            near = names.nearest(spoken(question, "", ()) or [question], like.embed, 1, least)
            found = [match.node for matches in near for match in matches]
    found = list(dict.fromkeys(found))
    notes += [] if found else ["nothing in the graph was found for the question"]
    notes += [f"the question names {len(found)} things, of which {TOPICS} are looked at"] if len(found) > TOPICS else []
    return found[:TOPICS], notes


def within(lines: Sequence[Line], limits: Mapping[str, float], counts: Mapping[str, Count]) -> tuple[Facts, list[str]]:
    """As many of the paths, the best first, as fit; and what is to be told where none does."""
    facts = Facts(lines)
    budget = Budget.of(limits)

    def measured(keep: Mapping[str, Array]) -> dict[str, float]:
        return facts.cut(Selection(keep))[0].cost(counts)

    ranks = {"facts": -np.arange(len(lines), dtype=float)}
    kept, _ = facts.cut(ranking.by_budget(facts.units(**counts), ranks, budget, measure=measured))
    lost = bool(lines) and not kept.lines
    return kept, [f"not even the best path fits into {budget}: raise it"] if lost else []
