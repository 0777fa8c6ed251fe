"""From names in a question to nodes of a graph."""

from __future__ import annotations

import pytest

pytest.importorskip("pyoxigraph")

from bag_encoder import by_letters
from fact_graph import graph
from secateur.methods.linking import NOTHING, Linking, NodeLinking, link_names, link_question, link_topics

HERE = graph(("druga", "treats", "asthma"), ("cold sore", "is", "a1"), ("cold sores", "is", "a2"), ("flu", "is", "ill"))


def test_names_stand_in_the_question_in_its_order():
    nodes, record = link_question(HERE, "Is FLU worse than Asthma?", None, NodeLinking())
    assert nodes == ["urn:x:flu", "urn:x:asthma"]
    assert record == {"entities": ["FLU", "Asthma"], "fallback": False, "notes": []}


def test_a_name_that_is_spelt_wrong_is_found_by_its_neighbours():
    question = "What treats asthmma and flu?"
    nodes, record = link_question(HERE, question, by_letters, NodeLinking(least=0.6))
    assert (record["entities"], nodes) == (["asthmma", "flu"], ["urn:x:asthma", "urn:x:flu"])
    assert link_question(HERE, question, by_letters, NodeLinking(least=0.99))[0] == ["urn:x:flu"]


@pytest.mark.parametrize("many", [1, 2])
def test_more_than_one_node_for_a_name(many):
    linking = NodeLinking(least=0.5, nearest=many)
    assert len(link_question(HERE, "cold soar", by_letters, linking)[0]) == many
    assert len(link_names(HERE, "?", ["cold soar"], by_letters, linking)[0]) == many


def test_what_names_nothing_is_stood_in_for_by_what_is_near():
    nodes, record = link_question(HERE, "Who knows?", by_letters, NodeLinking(fallback=2))
    assert len(nodes) == 2
    assert record["fallback"] is True
    for embed, fallback in ((by_letters, 0), (None, 2)):
        nodes, record = link_question(HERE, "Who knows?", embed, NodeLinking(fallback=fallback))
        assert (nodes, record["notes"]) == ([], [NOTHING])


def test_listed_names_and_topics_are_found_by_their_letters_without_an_encoder():
    nodes, record = link_names(HERE, "?", ["Flu", "zzz"], None, NodeLinking())
    assert (nodes, record["notes"]) == (["urn:x:flu"], ["no name in the graph is near 'zzz'"])
    linked, notes = link_topics(HERE, ["Flu", "urn:x:any", "asthmaa", "fluu"], None, Linking())
    assert linked == {"Flu": ["urn:x:flu"], "urn:x:any": ["urn:x:any"], "asthmaa": ["urn:x:asthma"], "fluu": []}
    assert notes == [
        "nothing in the graph is called 'asthmaa': 'asthma' is taken for it", "nothing in the graph is called 'fluu'"
    ]  # fmt: skip
    assert link_topics(HERE, ["asthmaa"], None, Linking(least=0.9))[0] == {"asthmaa": []}
    linked, notes = link_topics(HERE, ["asthmaa"], by_letters, Linking(least=0.9))
    assert (linked, notes) == ({"asthmaa": ["urn:x:asthma"]}, [])
