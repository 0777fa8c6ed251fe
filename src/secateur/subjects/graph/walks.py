"""Walks over a knowledge graph: what stands around topics, what lies between them, and the paths that lead through.

A graph is read hop by hop into memory, within bounds; all else here works on what was read. A walk takes a fact in
either direction, and each step says in which. Nothing here knows a question: what is to be preferred where there is too
much of it comes as numbers, relation -> how much it is liked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from secateur.errors import ServerError
from secateur.subjects.graph.knowledge_graph import Fact, KnowledgeGraph

__all__ = [
    "LISTED",
    "Beside",
    "Cluster",
    "Found",
    "Path",
    "Step",
    "Surroundings",
    "chain_paths",
    "cluster_paths",
    "facts_of",
    "find_paths",
    "grow_paths",
    "is_simple_between",
    "join_paths",
    "verbalise",
]

_AT_ONCE = 64
"""Nodes that one query asks about: few, so that reading ends near its bound."""
MEETING = 100_000
"""Nodes that all topics reach; where there are more, walks end one hop earlier."""
LISTED, WORDS = 20, 10
"""Names that a text lists of one place of a path, and words of each."""


class Step(NamedTuple):
    """One step of a walk: the relation, and whether it is taken as the fact says or against it."""

    relation: str
    forward: bool


class Path(NamedTuple):
    """A walk: n + 1 nodes, n steps, and the places of the nodes that it was to lead through, in order.

    No node stands twice between two of these places.
    """

    nodes: tuple[str, ...]
    steps: tuple[Step, ...]
    stops: tuple[int, ...] = (0,)


class Cluster(NamedTuple):
    """Paths with the same steps as one: at each place of it the nodes that they have there, sorted."""

    nodes: tuple[tuple[str, ...], ...]
    steps: tuple[Step, ...]
    members: tuple[Path, ...]

    @property
    def blocks(self) -> tuple[object, ...]:
        """Places and steps in turn: what a branch of it is a piece of.

        At places that it was to lead through stand their nodes; at others nothing, so that paths with the same steps up
        to there have the same branch, whatever they lead to.
        """
        stops, found = self.members[0].stops, list[object]()
        for number, place in enumerate(self.nodes):
            found += [*self.steps[number - 1 : number], place if number in stops else None]
        return tuple(found)


Beside = Mapping[str, Mapping[str, Sequence[Step]]]
"""Node -> neighbour -> the steps that lead there."""


@dataclass(frozen=True, slots=True)
class Found:
    """Paths, the shortest first, and whether these are all there are."""

    paths: tuple[Path, ...]
    whole: bool = True


def facts_of(path: Path) -> tuple[Fact, ...]:
    """The facts that a path is made of."""
    return tuple(
        Fact(near, step.relation, far) if step.forward else Fact(far, step.relation, near)
        for near, step, far in zip(path.nodes, path.steps, path.nodes[1:], strict=False)
    )


# ------------------------------------------------------------------------------------------------------ what is read


@dataclass(eq=False)
class Surroundings:
    """What stands around topics, read from the graph as far as it is asked for.

    Args:
        graph: where facts stand.
        topics: the nodes to start from.
        most: facts that are read at most, give or take one query; then it ends there, and `notes` say so.
        hub: facts that are read of one node in one direction; of topics as many as the graph allows.
        threads: queries at once, which helps where the graph is a server's. What is found is the same.

    A server that fails once something was read ends the reading, too.
    """

    graph: KnowledgeGraph
    topics: Sequence[str]
    most: int = 20_000
    hub: int = 300
    threads: int = 1
    beside: dict[str, dict[str, list[Step]]] = field(default_factory=dict)
    facts: int = 0
    _told: dict[str, str] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)
    _steps: dict[Step, Step] = field(default_factory=dict)
    _hops: list[dict[str, int]] = field(default_factory=list)
    _depth: int = 0

    def __post_init__(self) -> None:
        self._hops = [{topic: 0} for topic in self.topics]
        for topic in self.topics:
            self.beside.setdefault(topic, {})

    def reach(self, hops: int) -> None:
        """Read so far that all walks of `hops` from each topic are known."""
        while self._depth < hops:
            depth = self._depth
            edges = [[node for node, far in known.items() if far == depth] for known in self._hops]
            self.read([node for edge in edges for node in edge])
            self._depth += 1
            for known, edge in zip(self._hops, edges, strict=True):
                for node in edge:
                    for other in self.beside[node]:
                        known.setdefault(other, depth + 1)

    @property
    def notes(self) -> list[str]:
        """Where the reading ended before all was read, and why."""
        return list(self._told.values())

    def read(self, nodes: Iterable[str]) -> None:
        """Read the facts of nodes that were not read yet, in their order by name."""
        new = sorted(set(nodes) - self._read)
        topics, others = (
            [node for node in new if node in self.topics],
            [node for node in new if node not in self.topics],
        )
        parts = [(part, self.graph.most) for part in _parts(topics)]
        parts += [(part, min(self.hub, self.graph.most)) for part in _parts(others)]
        for start in range(0, len(parts), max(1, self.threads)):
            wave = parts[start : start + max(1, self.threads)]
            for (part, _), answer in zip(wave, self._ask(wave), strict=True):
                if self.facts >= self.most:
                    self._told["most"] = f"more than {self.most} facts stand around the topics: the rest was not read"
                if "most" in self._told or "server" in self._told:
                    return  # however many are asked at once, it ends at the same part
                try:
                    self._take(part, answer())
                except ServerError as error:
                    if not self._read:
                        raise
                    self._told["server"] = f"the graph was read in part: {error}"
        crowded = sorted(self._read & self.graph.crowded)
        if crowded:
            self._told["crowded"] = f"{len(crowded)} nodes have more facts than are read of one, such as {crowded[0]}"

    def _ask(self, wave: Sequence[tuple[Sequence[str], int]]) -> list[Callable[[], list[Fact]]]:
        """What gives the answer to each: asked at once where there are several."""
        if "most" in self._told or "server" in self._told or self.facts >= self.most:
            return [list] * len(wave)
        ask = [partial(self.graph.around, part, most=most) for part, most in wave]
        if self.threads <= 1:
            return list(ask)
        with ThreadPoolExecutor(self.threads) as pool:
            return [future.result for future in [pool.submit(one) for one in ask]]

    def _take(self, part: Sequence[str], found: Sequence[Fact]) -> None:
        self._read |= set(part)
        for fact in found:
            if fact.literal or fact.subject == fact.object:
                continue
            near, far = self.beside.setdefault(fact.subject, {}), self.beside.setdefault(fact.object, {})
            there, back = self._step(fact.predicate, True), self._step(fact.predicate, False)
            steps = near.setdefault(fact.object, [])
            if there not in steps:
                steps.append(there)
                far.setdefault(fact.subject, []).append(back)
                self.facts += 1

    def _step(self, relation: str, forward: bool) -> Step:
        step = Step(relation, forward)
        return self._steps.setdefault(step, step)

    # --------------------------------------------------------------------------------------- what lies between topics

    def relations(self) -> set[str]:
        """The relations of the facts that were read."""
        return {step.relation for step in self._steps}

    def far(self) -> dict[str, list[int]]:
        """Node -> hops from each topic that reaches it."""
        found: dict[str, list[int]] = {}
        for known in self._hops:
            for node, hops in known.items():
                found.setdefault(node, []).append(hops)
        return found

    def within(self, topic: int, hops: int) -> set[str]:
        """The nodes that topic number `topic` reaches in at most so many hops."""
        return {node for node, far in self._hops[topic].items() if far <= hops}

    def meeting(self, hops: int, topics: Sequence[int] | None = None) -> set[str]:
        """The nodes that all topics (or those of these numbers) reach; one hop less where these are too many."""
        chosen = range(len(self.topics)) if topics is None else topics
        found = set[str].intersection(*(self.within(topic, hops) for topic in chosen))
        return found if len(found) <= MEETING or hops <= 1 else self.meeting(hops - 1, topics)

    def together(self, hops: int) -> list[list[int]]:
        """The numbers of topics in groups that have a meeting: each joins the first group that it meets with."""
        groups = list[list[int]]()
        for topic in range(len(self.topics)):
            group = next((group for group in groups if self.meeting(hops, [*group, topic])), None)
            if group is None:
                groups.append([topic])
            else:
                group.append(topic)
        return groups

    def reduce(self, hops: int, topics: Sequence[int] | None = None) -> dict[str, dict[str, Sequence[Step]]]:
        """The part that lies on walks of at most `hops` from some topic to a node that all reach.

        A step from u to v is such where d(topic, u) + 1 + d(v, meeting) <= hops for one of the topics.
        """
        chosen = list(range(len(self.topics))) if topics is None else list(topics)
        meeting = self.meeting(hops, chosen)
        left = distances(self.beside, meeting, hops)
        found: dict[str, dict[str, Sequence[Step]]] = {}
        for topic in chosen:
            for near, far in self._hops[topic].items():
                if far >= hops:
                    continue
                for other, steps in self.beside[near].items():
                    if far + 1 + left.get(other, hops) <= hops:
                        found.setdefault(near, {})[other] = steps
                        found.setdefault(other, {})[near] = self.beside[other][near]
        for topic in chosen:
            found.setdefault(self.topics[topic], {})
        return found


def distances(beside: Beside, starts: Iterable[str], most: int) -> dict[str, int]:
    """Node -> hops from the nearest start, up to `most`."""
    found = dict.fromkeys(sorted(starts), 0)
    edge = list(found)
    for hops in range(1, most + 1):
        following = list[str]()
        for node in edge:
            for other in beside.get(node, ()):
                if other not in found:
                    found[other] = hops
                    following.append(other)
        edge = following
    return found


def _parts(nodes: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(nodes), _AT_ONCE):
        yield nodes[start : start + _AT_ONCE]


# ------------------------------------------------------------------------------------------------------------- paths


def find_paths(
    beside: Beside,
    start: str,
    end: str,
    hops: int,
    *,
    meeting: set[str] | None = None,
    most: int = 2000,
    liking: Mapping[str, float] | None = None,
    one: bool = False,
) -> Found:
    """The simple paths from `start` to `end` of at most 2 hops, whose halves of at most `hops` join at a meeting node.

    A path is a walk from the start and one from the end, turned round, that end in the same node of `meeting` (any if
    None); it stands here once, at however many nodes they could have met.

    Args:
        beside: the graph.
        start, end: nodes.
        hops: of each half.
        meeting: where the halves may join.
        most: paths at most, and beginnings of paths that go on at each hop: those whose relations are liked most, on
            average; of equals the first by name.
        liking: relation -> how much it is liked; all are alike if None.
        one: of several steps between two nodes take the one that is liked most, not each in turn.
    """
    if start == end:
        return Found(())
    left, longest = distances(beside, [end], 2 * hops), 2 * hops
    begun, found, whole = [Path((start,), ())], list[Path](), True
    for length in range(1, longest + 1):
        following, all_of_them = _further(beside, begun, left, longest - length, most, liking, one)
        whole = whole and all_of_them
        complete = [path for path in following if path.nodes[-1] == end and _meets(path, hops, meeting)]
        begun, dropped = _best([path for path in following if path.nodes[-1] != end], most, liking)
        complete, more = _best(complete, most - len(found), liking)
        found += complete
        whole = whole and not dropped and not more
        if len(found) >= most:
            # What is left is longer than all of these.
            return Found(_set_stops(found), whole and not begun)
    return Found(_set_stops(found), whole)


def grow_paths(
    beside: Beside,
    paths: Sequence[Path],
    *,
    most: int = 2000,
    liking: Mapping[str, float] | None = None,
    one: bool = False,
) -> Found:
    """Each path one hop longer in every way that leads to a node it does not hold; bounded as `find_paths`."""
    following, whole = _further(beside, paths, None, 0, most, liking, one)
    best, dropped = _best(following, most, liking)
    return Found(tuple(best), whole and not dropped)


def chain_paths(
    parts: Sequence[Sequence[Path]], *, most: int = 2000, liking: Mapping[str, float] | None = None
) -> Found:
    """Each choice of one path per part, one after the other: part i ends where part i + 1 begins.

    Shorter ones first where there are more than `most`, then as `find_paths`.
    """
    found, whole = list(parts[0]) if parts else [], True
    for part in parts[1:]:
        both = list[Path]()
        # The shortest of each first, so that what is not looked at is longer than what is.
        for first in sorted(found, key=lambda path: len(path.steps)):
            both += [join_paths(first, second) for second in part[: max(1, 8 * most // max(1, len(found)))]]
        whole = whole and len(both) == len(found) * len(part)
        both.sort(key=lambda path: (len(path.steps), *_rank(path, liking)))
        whole, found = whole and len(both) <= most, both[:most]
    return Found(tuple(found), whole)


def is_simple_between(path: Path, ends: Collection[str]) -> bool:
    """Whether no node stands twice between two of these ends, through whatever else the path was to lead."""
    places = [stop for stop in path.stops if path.nodes[stop] in ends]
    parts = (path.nodes[near : far + 1] for near, far in pairwise(places))
    return all(len(set(part)) == len(part) for part in parts)


def join_paths(first: Path, second: Path) -> Path:
    """One path after the other; the second begins where the first ends."""
    stops = (*first.stops, *(len(first.steps) + stop for stop in second.stops if stop))
    return Path(first.nodes + second.nodes[1:], first.steps + second.steps, stops)


def _further(
    beside: Beside,
    paths: Sequence[Path],
    left: Mapping[str, int] | None,
    rest: int,
    most: int,
    liking: Mapping[str, float] | None,
    one: bool,
) -> tuple[list[Path], bool]:
    """Paths one hop longer, and whether these are all; `left`: hops from each node to the end, of which `rest` are."""
    found, bound = list[Path](), 20 * most
    for path in paths:
        held = set(path.nodes)
        for node, steps in beside.get(path.nodes[-1], {}).items():
            if node in held or (left is not None and left.get(node, rest + 1) > rest):
                continue
            chosen = steps
            if one and len(steps) > 1:
                chosen = [min(steps, key=lambda step: (-(liking or {}).get(step.relation, 0.0), step))]
            found += [Path((*path.nodes, node), (*path.steps, step)) for step in chosen]
            if len(found) > bound:
                return found, False
    return found, True


def _best(paths: list[Path], most: int, liking: Mapping[str, float] | None) -> tuple[list[Path], bool]:
    """At most `most` paths, the liked most first, and whether some were dropped."""
    paths = sorted(paths, key=lambda path: _rank(path, liking))
    return paths[: max(0, most)], len(paths) > max(0, most)


def _rank(path: Path, liking: Mapping[str, float] | None) -> tuple[float, tuple[str, ...], tuple[Step, ...]]:
    liked = sum(liking.get(step.relation, 0.0) for step in path.steps) / max(1, len(path.steps)) if liking else 0.0
    return -liked, path.nodes, path.steps


def _meets(path: Path, hops: int, meeting: set[str] | None) -> bool:
    length = len(path.steps)
    places = range(max(0, length - hops), min(hops, length) + 1)
    return meeting is None or any(path.nodes[place] in meeting for place in places)


def _set_stops(paths: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(path._replace(stops=(0, len(path.steps))) for path in paths)


# ---------------------------------------------------------------------------------------------------------- clusters


def cluster_paths(paths: Iterable[Path]) -> list[Cluster]:
    """Paths with the same steps, and that lead through the same nodes at the same places, as one; in their order."""
    alike: dict[tuple[object, ...], list[Path]] = {}
    for path in paths:
        key = (path.steps, path.stops, tuple(path.nodes[stop] for stop in path.stops))
        alike.setdefault(key, []).append(path)
    return [
        Cluster(
            tuple(tuple(sorted(set(place))) for place in zip(*(path.nodes for path in members), strict=True)),
            members[0].steps,
            tuple(members),
        )
        for members in alike.values()
    ]


def verbalise(
    nodes: Sequence[Sequence[str]], steps: Sequence[Step], names: Mapping[str, str], *, listed: int = LISTED
) -> str:
    """A path, or a piece of one, in words: A -[treats]-> {B, C} <-[causes]- D.

    The arrow says who does it to whom. At most `listed` names stand at one place, of ten words each, and how many more
    there are.
    """
    text = _place(nodes[0], names, listed)
    for step, place in zip(steps, nodes[1:], strict=False):
        relation = names.get(step.relation, step.relation)
        text += f" -[{relation}]-> " if step.forward else f" <-[{relation}]- "
        text += _place(place, names, listed)
    return text


def _place(nodes: Sequence[str], names: Mapping[str, str], listed: int) -> str:
    said = [" ".join(names.get(node, node).split()[:WORDS]) for node in nodes[:listed]]
    if len(nodes) == 1:
        return said[0]
    more = f" and {len(nodes) - listed} more" if len(nodes) > listed else ""
    return "{" + ", ".join(said) + more + "}"
