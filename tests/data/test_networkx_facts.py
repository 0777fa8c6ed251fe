"""Graphs of networkx as facts: names, kinds, what is known, and what is no graph of facts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.clients.stores import Embedded, entity, relation
from secateur.data import networkx_facts
from secateur.errors import DataError, InputError
from secateur.methods.graphs import open_graph
from secateur.subjects.graph.knowledge_graph import Fact, KnowledgeGraph

pytest.importorskip("pyoxigraph")
networkx = pytest.importorskip("networkx")


def loaded(network, **how):
    store = Embedded()
    assert networkx_facts.load(network, store, **how) >= len(store.graph) > 0
    return KnowledgeGraph(store)


def fact(start, verb, end):
    return Fact(entity(start), relation(verb), entity(end))


def test_edges_are_facts_and_the_key_of_one_may_say_its_relation():
    network = networkx.MultiDiGraph()
    network.add_edge("salbutamol", "asthma", relation="treats")
    network.add_edge("salbutamol", "asthma", key="eases")
    network.add_edge("asthma", "lung", key="not this", relation="affects")
    found = loaded(network).around([entity("asthma")])
    assert found == sorted(
        [fact("salbutamol", "treats", "asthma"), fact("salbutamol", "eases", "asthma"),
         fact("asthma", "affects", "lung")]
    )  # fmt: skip


def test_nodes_have_names_and_kinds_and_edges_what_is_known():
    network = networkx.DiGraph()
    network.add_node(1, name="salbutamol", kind="Compound", weight=239.3)
    network.add_node(2, label="asthma", type="Disease")
    network.add_edge(1, 2, verb="treats", source=["DrugBank", "PubMed"], phase=4, since=None)
    network.add_edge(2, "heart_attack", verb="resembles", score=0.25)
    graph = loaded(network, relation="verb")
    one, two, three = entity("1"), entity("2"), entity("heart_attack")
    assert graph.names([one, two, three]) == {one: "salbutamol", two: "asthma", three: "heart attack"}
    assert graph.kinds([one, two, three]) == {one: "Compound", two: "Disease", three: ""}
    treats, resembles = fact("1", "treats", "2"), fact("2", "resembles", "heart_attack")
    assert graph.annotations([treats, resembles]) == {
        treats: {"phase": ("4",), "source": ("DrugBank", "PubMed")}, resembles: {"score": ("0.25",)}
    }  # fmt: skip


def test_web_addresses_stay_and_attributes_may_be_called_as_columns_are():
    network = networkx.DiGraph()
    network.add_edge("http://x/a", "urn:x:b", relation="http://x/r", subject="s", head="h", **{"a:b": "c"})
    expected = Fact("http://x/a", "http://x/r", "urn:x:b")
    graph = loaded(network)
    assert graph.around(["urn:x:b"]) == [expected]
    assert graph.annotations([expected])[expected] == {"a:b": ("c",), "head": ("h",), "subject": ("s",)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networkx.Graph([("a", "b", {"relation": "r"})]), "no directions.*give a DiGraph"),
        (lambda: networkx.MultiGraph([("a", "b", "r")]), "no directions"),
        (lambda: networkx.DiGraph(), "no edges"),
        (lambda: networkx.DiGraph([("a", "b")]), "from 'a' to 'b' has no 'relation': say by relation="),
        (lambda: networkx.MultiDiGraph([("a", "b")]), "from 'a' to 'b' has no 'relation'"),
        (lambda: networkx.DiGraph([("a", "b", {"relation": " "})]), "has no 'relation'"),
        (lambda: networkx.DiGraph([(1, "1", {"relation": "r"})]), "1 and '1' are written alike"),
        (lambda: networkx.DiGraph([("a", " ", {"relation": "r"})]), "' ' is written as nothing"),
    ],
)
def test_what_holds_no_facts_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        networkx_facts.load(make(), Embedded())


def test_a_name_without_end_is_refused():
    with pytest.raises(DataError, match=r"the graph, line 1: its subject has 9,999 letters"):
        networkx_facts.load(networkx.DiGraph([("a" * 9_999, "b", {"relation": "r"})]), Embedded())


def test_a_graph_is_opened_as_it_is_now():
    network = networkx.DiGraph([("a", "b", {"verb": "r"})])
    graph = open_graph(network, relation="verb", most=7, language="de")
    network.add_edge("b", "c", verb="r")
    assert (graph.most, graph.language) == (7, "de")
    assert graph.around([entity("b")]) == [fact("a", "r", "b")]
    assert len(open_graph(network, relation="verb").around([entity("b")])) == 2


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES.filter(bool), NAMES.filter(bool), NAMES.filter(bool)), min_size=1, max_size=8))
def test_all_edges_come_back_whatever_they_are_called(edges):
    network = networkx.MultiDiGraph()
    for start, verb, end in edges:
        network.add_edge(start, end, relation=verb)
    graph = loaded(network)
    assert graph.around([entity(name) for start, _, end in edges for name in (start, end)]) == sorted(
        {fact(*edge) for edge in edges}
    )
