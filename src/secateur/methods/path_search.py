"""State of a search for paths: the question, what was read of the graph, and the trace of paths examined."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from secateur.errors import SecateurError
from secateur.methods.asking import Record
from secateur.methods.path_judges import Piece, SimilarityJudge
from secateur.methods.path_questions import PathQuestion
from secateur.methods.similarity import Similarity
from secateur.retrieval.encoders import Count
from secateur.subjects.graph import walks
from secateur.subjects.graph.knowledge_graph import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.graph.walks import Cluster, Surroundings

__all__ = ["Exploring", "Hops", "PathSearch", "Widths"]

Branch = Sequence[Any]
"""Nodes and steps in turn, a piece of `Cluster.blocks`."""

FEW = 5
"""Names of one place of a path that are compared with the question."""


@dataclass(frozen=True, slots=True)
class Hops:
    """Hops from each topic."""

    depth: Annotated[int, Ge(1)] = 3
    """Hops from each topic, at most."""
    start: Annotated[int, Ge(0)] = 0
    """Hops to start with; 0 to go by the indicator."""


@dataclass(frozen=True, slots=True)
class Widths:
    """What each step of pruning leaves."""

    wide: Annotated[int, Ge(1)] = 80
    """Paths that the first step of pruning leaves, by similarity."""
    branch: Annotated[int, Ge(1)] = 20
    """The second, by beginnings and ends."""
    width: Annotated[int, Ge(1)] = 3
    """The third, and so the result."""
    mode: Literal["1", "12", "13", "123"] = "123"
    """Which steps there are: 1, 12, 13 or 123."""
    batch: Annotated[int, Ge(1)] = 40
    """Paths or branches that the judge sees at once."""
    most: Annotated[int, Ge(1)] = 2000
    """Paths that are looked at in one round, and beginnings of paths at each hop."""


@dataclass(frozen=True, slots=True)
class Exploring:
    """How the graph around the topics is read."""

    reading: Annotated[int, Ge(1)] = 20_000
    """Facts that are read of the graph, at most."""
    hub: Annotated[int, Ge(1)] = 300
    """Facts that are read of one node other than a topic, in one direction."""
    threads: Annotated[int, Ge(1)] = 1
    """Queries to the graph at once."""
    reduce: bool = True
    """Look for paths in the reduced graph, not in all that was read."""
    one_relation: bool = False
    """Of several relations between two entities take one (PoG-E)."""


@dataclass(eq=False)
class PathSearch:
    """What the phases of a search share, and the record of it.

    counts: measure -> (texts -> how many each has). summarise: let the judge shorten paths before it decides.
    sufficient, answer, summary, phase, hops: of the last decision. entities: around the topics, and left by the
    reduction, where it was done last. names: of nodes and relations. texts: what was looked at -> how like the
    indicator it is. rows: text -> its row in a trace. steps: figures of pruning, summed over rounds.
    """

    graph: KnowledgeGraph
    question: PathQuestion
    judge: SimilarityJudge
    similarity: Similarity
    around: Surroundings
    counts: Mapping[str, Count]
    notes: list[str]
    widths: Widths
    exploring: Exploring
    range: range
    summarise: bool
    sufficient: bool = False
    answer: str = ""
    summary: list[str] = field(default_factory=list)
    phase: str = "none"
    hops: int = 0
    entities: tuple[int, int] = (0, 0)
    names: dict[str, str] = field(default_factory=dict)
    texts: dict[str, float] = field(default_factory=dict)
    rows: dict[str, Record] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _preferences: dict[str, float] = field(default_factory=dict)

    def learn_names(self, nodes: Sequence[str]) -> None:
        """Read the names of nodes and relations; without an answer they are called by their IRIs."""
        new = [node for node in dict.fromkeys(nodes) if node not in self.names]
        try:
            self.names |= self.graph.names(new) if new else {}
        except SecateurError as error:
            self.names |= {node: node for node in new}
            self.notes.append(f"some names were not read: {error}")

    def verbalise(self, clusters: Sequence[Cluster]) -> list[str]:
        """Paths in words."""
        self.learn_names(_list_nodes(clusters))
        return [walks.verbalise(cluster.nodes, cluster.steps, self.names) for cluster in clusters]

    def names_on(self, clusters: Sequence[Cluster]) -> list[str]:
        """The names that paths show, of entities and relations."""
        return list(dict.fromkeys(self.names[node] for node in _list_nodes(clusters)))

    def pieces(self, branches: Sequence[Branch], paths: Sequence[Cluster], whole: bool = True) -> list[Piece]:
        """Branches of paths in words, or whole paths: with the entities of all paths that have them."""
        topics, blocks, pieces = self.question.topics, [path.blocks for path in paths], list[Piece]()
        for branch in map(tuple, branches):
            size, held = len(branch), list[tuple[tuple[str, ...], ...]]()
            first, last = (any(own[part] == branch for own in blocks) for part in (slice(size), slice(-size, None)))
            # Topics that are not joined are no ends of paths: one may begin at another than the first.
            begins = whole or (first and (branch[0] == topics[:1] or not last))
            ends = whole or not begins or (len(topics) > 1 and branch[-1] == topics[-1:])
            for path, own in zip(paths, blocks, strict=True):
                if begins and own[:size] == branch:
                    held.append(path.nodes[: size // 2 + 1])
                elif not begins and own[-size:] == branch:
                    held.append(path.nodes[-(size // 2 + 1) :])
            places = [tuple(sorted(set(itertools.chain(*place)))) for place in zip(*held, strict=True)]
            steps = branch[1::2]
            text = walks.verbalise(places, steps, self.names)
            pieces.append(Piece(text, tuple(self.names[step.relation] for step in steps), begins, ends))
        return pieces

    def note_bound(self, whole: bool) -> None:
        """Note once that there were more paths than are looked at, unless these are the `whole`."""
        note = f"there are more paths than the {self.widths.most} that are looked at in one round"
        self.notes += [note] if not whole and note not in self.notes else []

    def preferences(self) -> dict[str, float]:
        """Relation -> how like the question it is: what goes on where there are too many paths."""
        new = sorted(self.around.relations() - self._preferences.keys())
        if new:
            self.learn_names(new)
            phrases = list(dict.fromkeys(self.question.phrases)) or [self.question.indicator]
            alike = self.similarity.compare(phrases, [self.names[relation] for relation in new]).max(0)
            self._preferences |= dict(zip(new, map(float, alike), strict=True))
        return self._preferences

    def score(self, clusters: Sequence[Cluster]) -> np.ndarray:
        """[clusters]: how like the indicator they are."""
        texts = self.verbalise(clusters)
        # Of a place with many entities a few are read: what they have in common is what matters.
        short = [walks.verbalise(cluster.nodes, cluster.steps, self.names, listed=FEW) for cluster in clusters]
        new = {text: few for text, few in zip(texts, short, strict=True) if text not in self.texts}
        scores = self.similarity.rank(self.question.indicator, list(new.values()))
        self.texts |= dict(zip(new, map(float, scores), strict=True))
        return np.array([self.texts[text] for text in texts])

    def fits(self, paths: Sequence[Cluster], whole: bool, branches: Sequence[Branch]) -> bool:
        """Whether the judge can look at so many branches of paths, or whole paths."""
        return self.judge.fits(self.question, self.pieces(branches, paths, whole))

    def choose(self, paths: Sequence[Cluster], whole: bool, branches: Sequence[Branch]) -> list[int]:
        """What the judge chooses of them."""
        pieces = self.pieces(branches, paths, whole)
        count = self.counts.get("tokens", lambda texts: [len(text.split()) for text in texts])
        self.count("judged", 1)
        self.count("judged_tokens", sum(count([piece.text for piece in pieces])))
        return self.judge.choose(self.question, pieces)

    def count(self, figure: str, number: int) -> None:
        """Add to a figure of the record."""
        self.steps[figure] = self.steps.get(figure, 0) + number

    def trace(self, clusters: Sequence[Cluster]) -> None:
        """Put a row for each path into the trace."""
        for cluster, text in zip(clusters, self.verbalise(clusters), strict=True):
            way = [("> " if step.forward else "< ") + self.names[step.relation] for step in cluster.steps]
            self.rows[text] = {
                "path": " ".join(way), "text": text, "score": self.texts[text],
                "nodes": [list(nodes[: walks.LISTED]) for nodes in cluster.nodes],
                "steps": [list(step) for step in cluster.steps], "facts": _facts(cluster),
            }  # fmt: skip

    def decide(self, best: Sequence[Cluster], phase: str, hops: int) -> bool:
        """Whether the best paths suffice; sets `sufficient`, `answer` and `summary`."""
        if not best:
            return False
        self.phase, self.hops = phase, hops
        texts, names = self.verbalise(best), self.names_on(best)
        topics = set(self.question.topics)
        complete = [path for path in best if topics <= {node for nodes in path.nodes for node in nodes}]
        whole = self.pieces([path.blocks for path in complete], complete)
        if self.summarise:
            texts = self.judge.shorten(self.question, texts, names)
        self.summary = texts
        self.sufficient, answer = self.judge.decide(self.question, texts, whole)
        if self.sufficient and not answer:
            found = [complete[place] for place in self.judge.find_sufficient(self.question, whole)]
            answer = self._name_answer([*found, *best][0])
        self.answer = answer if self.sufficient else ""
        return self.sufficient

    def conclude(self, best: Sequence[Cluster], force: bool) -> None:
        """Where no phase sufficed there is no answer, or with `force` that which the best paths come nearest to."""
        if not self.sufficient and best and force:
            self.answer = self.judge.guess(self.question, self.verbalise(best)) or self._name_answer(best[0])

    def _name_answer(self, path: Cluster) -> str:
        """What stands where the answer should: at the end, or as far between two topics as their parts are long."""
        place, stops = len(path.nodes) - 1, path.members[0].stops
        if len(stops) > 1:
            there, back = (*self.question.lengths, 1, 1)[:2]
            place = min(max(1, round(stops[1] * there / (there + back))), max(1, stops[1] - 1))
        return ", ".join(self.names[node] for node in path.nodes[min(place, len(path.nodes) - 1)][: walks.LISTED])

    def record(self, best: Sequence[Cluster]) -> Record:
        """What a run keeps: the best paths and their facts, what was looked at, and the figures."""
        whole = Facts([Line(text, ()) for text in self.texts])
        rows = list(self.rows.values())
        costs = Facts([Line(row["text"], ()) for row in rows]).units(**self.counts)["facts"].cost
        rows = [{**row, **{name: float(column[i]) for name, column in costs.items()}} for i, row in enumerate(rows)]
        texts = zip(best, self.verbalise(best), strict=True)
        kept = [{"text": text, "facts": _facts(path)} for path, text in texts]
        judged = self.judge.record()
        figures = {
            "answer": self.answer, "summary": self.summary, "sufficient": self.sufficient, "phase": self.phase,
            "hops": self.hops, "steps": self.question.steps, "topics": list(self.question.topics),
            "names": list(self.question.names), "indicator": self.question.indicator,
            "facts_read": self.around.facts, "entities": self.entities[0], "entities_reduced": self.entities[1],
            "paths": len(self.texts),
            **{f"paths_{name}": self.steps.get(name, 0) for name in ("enumerated", "fuzzy", "branch", "precise")},
            **{name: self.steps.get(name, 0) for name in ("rounds", "judged", "judged_tokens")},
            **judged, "notes": [*self.notes, *self.around.notes, *judged["notes"]],
        }  # fmt: skip
        return {"best": kept, "rows": rows, "whole": whole.cost(self.counts), "told": figures}


def _list_nodes(clusters: Sequence[Cluster]) -> list[str]:
    """The nodes that texts of paths list, then their relations."""
    nodes = [node for cluster in clusters for nodes in cluster.nodes for node in nodes[: walks.LISTED]]
    return [*nodes, *(step.relation for cluster in clusters for step in cluster.steps)]


def _facts(path: Cluster) -> list[list[str | bool]]:
    """The facts that a text of it says: of the members whose every entity is listed."""
    listed = [set(nodes[: walks.LISTED]) for nodes in path.nodes]
    facts = dict[Fact, None]()
    for member in path.members:
        if all(node in names for node, names in zip(member.nodes, listed, strict=True)):
            facts |= dict.fromkeys(walks.facts_of(member))
    return [list(fact) for fact in facts]
