"""Walks over small graphs beside brute force: what is read, what is left of it, and all paths there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.clients.stores import Embedded
from secateur.errors import ServerError
from secateur.subjects.graph import walks
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph
from secateur.subjects.graph.walks import Path, Step, Surroundings

pytest.importorskip("pyoxigraph")

X = "http://x/"


def graph(facts, **how) -> KnowledgeGraph:
    """A graph of (subject, relation, object), each the end of an IRI."""
    store = Embedded()
    if facts:
        said = " . ".join(" ".join(f"<{X}{part}>" for part in fact) for fact in facts)
        store.graph.update(f"INSERT DATA {{ {said} }}")
    return KnowledgeGraph(store, **how)


def short(path: Path) -> str:
    """a >r b <r c, by the ends of IRIs."""
    text = path.nodes[0].removeprefix(X)
    for step, node in zip(path.steps, path.nodes[1:], strict=True):
        text += f" {'>' if step.forward else '<'}{step.relation.removeprefix(X)} {node.removeprefix(X)}"
    return text


def ends(facts) -> dict[str, list[tuple[Step, str]]]:
    """Node -> (step, neighbour), by brute force."""
    found: dict[str, list[tuple[Step, str]]] = {}
    for s, p, o in facts:
        if s != o:
            found.setdefault(X + s, []).append((Step(X + p, True), X + o))
            found.setdefault(X + o, []).append((Step(X + p, False), X + s))
    return found


def simple(facts, start: str, longest: int) -> list[Path]:
    """All simple paths from a node, by brute force."""
    found, edge = [], [Path((X + start,), ())]
    near = ends(facts)
    for _ in range(longest):
        edge = [
            Path((*path.nodes, node), (*path.steps, step))
            for path in edge
            for step, node in near.get(path.nodes[-1], ())
            if node not in path.nodes
        ]
        found += edge
    return found


def reached(facts, start: str, hops: int) -> set[str]:
    return {X + start} | {path.nodes[-1] for path in simple(facts, start, hops)}


NODES = st.sampled_from("abcdefg")
FACTS = st.lists(st.tuples(NODES, st.sampled_from(["r", "s"]), NODES), max_size=14, unique=True)


@given(FACTS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_what_is_reached_and_where_topics_meet(facts, hops):
    around = Surroundings(graph(facts), [X + "a", X + "b"])
    around.reach(hops)
    assert around.within(0, hops) == reached(facts, "a", hops)
    assert around.within(1, hops) == reached(facts, "b", hops)
    assert around.meeting(hops) == reached(facts, "a", hops) & reached(facts, "b", hops)


@given(FACTS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_reduced_graph_holds_the_steps_of_walks_to_a_meeting_and_no_others(facts, hops):
    around = Surroundings(graph(facts), [X + "a", X + "b"])
    around.reach(hops)
    meeting, near = around.meeting(hops), ends(facts)
    wanted = set()
    for topic in "ab":
        edge = [(X + topic, ())]
        for _ in range(hops):  # walks, which may come back
            edge = [(node, (*way, (at, step, node))) for at, way in edge for step, node in near.get(at, ())]
            wanted |= {part for node, way in edge if node in meeting for part in way}
    found = {
        (near, step, far) for near, beside in around.reduce(hops).items() for far in beside for step in beside[far]
    }
    both_ways = {(far, Step(step.relation, not step.forward), near) for near, step, far in wanted}
    assert found == wanted | both_ways


@given(FACTS, st.integers(1, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_all_paths_between_two_topics_are_found_once_in_the_reduced_graph_and_in_all_of_it(facts, hops, reduce):
    around = Surroundings(graph(facts), [X + "a", X + "b"])
    around.reach(hops)
    beside = around.reduce(hops) if reduce else around.beside
    found = walks.find_paths(beside, X + "a", X + "b", hops, meeting=around.meeting(hops))
    wanted = [
        path for path in simple(facts, "a", 2 * hops) if path.nodes[-1] == X + "b" and X + "b" not in path.nodes[:-1]
    ]
    assert found.whole
    assert sorted(map(short, found.paths)) == sorted(map(short, wanted))
    assert [len(path.steps) for path in found.paths] == sorted(len(path.steps) for path in found.paths)
    assert all(path.stops == (0, len(path.steps)) for path in found.paths)


@given(FACTS, st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_paths_through_three_topics_are_walks_of_the_graph_in_order(facts, hops):
    around = Surroundings(graph(facts), [X + "a", X + "b", X + "c"])
    around.reach(hops)
    meeting, beside = around.meeting(hops), around.reduce(hops)
    parts = [walks.find_paths(beside, X + one, X + two, hops, meeting=meeting).paths for one, two in ("ab", "bc")]
    found = walks.chain_paths(parts)
    assert found.whole
    assert len(found.paths) == len(parts[0]) * len(parts[1]) == len(set(found.paths))
    for path in found.paths:
        assert [path.nodes[stop] for stop in path.stops] == [X + "a", X + "b", X + "c"]
        assert {tuple(part.removeprefix(X) for part in fact[:3]) for fact in walks.facts_of(path)} <= set(facts)
        for first, last in itertools.pairwise(path.stops):
            segment = path.nodes[first : last + 1]
            assert len(set(segment)) == len(segment)
            # A half of at most `hops` from each end, joined where all topics meet.
            places = range(max(0, len(segment) - 1 - hops), min(hops, len(segment) - 1) + 1)
            assert any(segment[place] in meeting for place in places)
    for one, two, part in (("a", "b", parts[0]), ("b", "c", parts[1])):
        wanted = [
            path for path in simple(facts, one, 2 * hops)
            if X + two not in path.nodes[:-1] and path.nodes[-1] == X + two and joins(path, hops, meeting)
        ]  # fmt: skip
        assert sorted(map(short, part)) == sorted(map(short, wanted))


def joins(path: Path, hops: int, meeting: set[str]) -> bool:
    """Whether halves of at most `hops` join at a meeting node."""
    length = len(path.steps)
    return any(path.nodes[i] in meeting for i in range(length + 1) if i <= hops and length - i <= hops)


@given(FACTS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_paths_from_one_topic_grow_hop_by_hop_to_all_simple_ones(facts, hops):
    around, edge, found = Surroundings(graph(facts), [X + "a"]), [Path((X + "a",), ())], []
    for _ in range(hops):
        around.read(path.nodes[-1] for path in edge)
        edge = list(walks.grow_paths(around.beside, edge).paths)
        found += edge
    assert sorted(map(short, found)) == sorted(map(short, simple(facts, "a", hops)))


@given(FACTS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_clusters_lose_nothing(facts, hops):
    paths = simple(facts, "a", hops)
    found = walks.cluster_paths(paths)
    assert sorted(path for one in found for path in one.members) == sorted(paths)
    assert len({one.steps for one in found}) == len(found)
    for one in found:
        assert {path.nodes for path in one.members} <= set(itertools.product(*one.nodes))


def test_paths_that_stop_at_other_places_are_not_one():
    one, two = (
        Path(("a", "b", "c"), (Step("r", True),) * 2, (0, 1, 2)),
        Path(("a", "d", "c"), (Step("r", True),) * 2, (0, 2)),
    )
    assert len(walks.cluster_paths([one, two])) == 2


# ------------------------------------------------------------------------------------------------------------ bounds


def wheel(spokes=30):
    """A hub beside each of many nodes, and a way around it."""
    return [("hub", "r", f"n{i:02}") for i in range(spokes)] + [
        (f"n{i:02}", "s", f"n{i + 1:02}") for i in range(spokes - 1)
    ]


def test_a_hub_is_read_in_part_and_told():
    around = Surroundings(graph(wheel(), most=10), [X + "n00", X + "n29"], hub=5)
    around.reach(2)
    assert len(around.beside[X + "hub"]) <= 7
    assert "1 nodes have more facts than are read of one, such as http://x/hub" in around.notes


def test_reading_ends_at_a_bound_and_is_told():
    around = Surroundings(graph(wheel(400)), [X + "hub"], most=50)
    around.reach(3)
    assert around.notes == ["more than 50 facts stand around the topics: the rest was not read"]
    assert around.facts == 400  # what one query gave


@pytest.mark.parametrize("most", [300, 10**6])
def test_threads_change_nothing(most):
    facts = [(f"n{i}", "r", f"n{(7 * i + j) % 900}") for i in range(900) for j in (1, 5, 11)]
    found = []
    for threads in (1, 4):
        around = Surroundings(graph(facts), [X + "n0", X + "n450"], most=most, threads=threads)
        around.reach(3)
        paths = walks.find_paths(around.reduce(3), X + "n0", X + "n450", 3)
        found.append((around.beside, around.notes, around.facts, paths))
    assert found[0] == found[1]


def test_paths_end_at_a_bound_with_the_shortest_and_of_those_the_liked_most():
    facts = [
        ("a", "r", "b"),
        *[("a", f"r{i % 3}", f"m{i}") for i in range(30)],
        *[(f"m{i}", "s", "b") for i in range(30)],
    ]
    around = Surroundings(graph(facts), [X + "a", X + "b"])
    around.reach(1)
    found = walks.find_paths(around.beside, X + "a", X + "b", 1, most=11, liking={X + "r1": 1.0})
    assert not found.whole
    assert short(found.paths[0]) == "a >r b"
    assert {path.steps[0].relation for path in found.paths[1:]} == {X + "r1"}
    assert len(found.paths) == 11


def test_one_relation_is_the_liked_one():
    facts = [("a", "r", "m"), ("a", "s", "m"), ("m", "r", "b"), ("b", "s", "m")]
    around = Surroundings(graph(facts), [X + "a", X + "b"])
    around.reach(1)
    all_of_them = walks.find_paths(around.beside, X + "a", X + "b", 1)
    assert len(all_of_them.paths) == 4
    (only,) = walks.find_paths(around.beside, X + "a", X + "b", 1, one=True, liking={X + "s": 1.0}).paths
    assert short(only) == "a >s m <s b"


def test_a_chain_of_too_many_keeps_the_shortest():
    step = (Step("r", True),)
    first = [Path(("a", "b"), step, (0, 1)), Path(("a", "x", "b"), step * 2, (0, 2))]
    second = [Path(("b", "c"), step, (0, 1)), Path(("b", "y", "c"), step * 2, (0, 2))]
    found = walks.chain_paths([first, second], most=1)
    assert (found.paths, found.whole) == ((Path(("a", "b", "c"), step * 2, (0, 1, 2)),), False)


def test_no_node_stands_twice_between_two_ends_whatever_else_is_led_through():
    steps = (Step("r", True),) * 4
    there_and_back = Path(("a", "x", "a", "y", "b"), steps, (0, 1, 4))
    assert not walks.is_simple_between(there_and_back, ["a", "b"])
    assert walks.is_simple_between(there_and_back._replace(nodes=("a", "x", "z", "y", "b")), ["a", "b"])
    # What three topics have in common stands between the first two and between the last.
    assert walks.is_simple_between(Path(("a", "x", "b", "x", "c"), steps, (0, 2, 4)), ["a", "b", "c"])


def test_topics_that_do_not_meet_stand_in_groups():
    around = Surroundings(graph([("a", "r", "b"), ("c", "r", "d")]), [X + part for part in "abcd"])
    around.reach(1)
    assert around.together(1) == [[0, 1], [2, 3]]
    assert around.meeting(1) == set()
    assert around.reduce(1) == {X + part: {} for part in "abcd"}


def test_a_meeting_of_too_many_is_that_of_one_hop_less(monkeypatch):
    around = Surroundings(graph([("a", "r", "b"), ("b", "r", "c"), ("a", "r", "d")]), [X + "a", X + "b"])
    around.reach(2)
    assert len(around.meeting(2)) == 4
    monkeypatch.setattr(walks, "MEETING", 3)
    assert around.meeting(2) == around.meeting(1) == {X + "a", X + "b"}


class Failing(KnowledgeGraph):
    """A graph whose server goes down after some queries."""

    left = 1

    def around(self, *args, **how):
        if not self.left:
            raise ServerError("down")
        self.left -= 1
        return super().around(*args, **how)


def test_a_graph_that_stops_answering_is_what_was_read_of_it():
    store = graph([("a", "r", "b"), ("b", "r", "c")]).store
    failing = Failing(store)
    around = Surroundings(failing, [X + "a"])
    around.reach(3)
    assert around.within(0, 3) == {X + "a", X + "b"}
    assert around.notes == ["the graph was read in part: down"]
    failing.left = 0
    with pytest.raises(ServerError):
        Surroundings(failing, [X + "a"]).reach(1)


def test_loops_and_words_are_no_steps():
    store = graph([("a", "r", "a"), ("a", "r", "b")]).store
    store.graph.update(f'INSERT DATA {{ <{X}a> <{X}says> "hello" }}')
    around = Surroundings(KnowledgeGraph(store), [X + "a"])
    around.reach(1)
    assert around.beside == {X + "a": {X + "b": [Step(X + "r", True)]}, X + "b": {X + "a": [Step(X + "r", False)]}}


# ------------------------------------------------------------------------------------------------------------- words


def test_directions_and_sets_stand_in_words():
    names = {"a": "Ann", "b": "Bob", "c": "Cid", "k": "knows"}
    steps = [Step("k", True), Step("k", False)]
    assert walks.verbalise([["a"], ["b", "c"], ["a"]], steps, names) == "Ann -[knows]-> {Bob, Cid} <-[knows]- Ann"


def test_twenty_names_of_ten_words_are_listed():
    many = [f"n{i}" for i in range(25)]
    names = dict.fromkeys(many, " ".join("abcdefghijklm"))
    text = walks.verbalise([many], [], names)
    assert text.count("a b c d e f g h i j") == 20
    assert "k" not in text
    assert text.endswith(" and 5 more}")
