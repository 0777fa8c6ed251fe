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


def test_a_few_facts_that_tell_homonyms_apart_make_no_node_crowded():
    here = graph(
        *(("mercury1", "named", f"thing{number}") for number in range(40)), ("mercury2", "melts_at", "cold"),
        names=[("mercury1", "Mercury"), ("mercury2", "Mercury")],
    )  # fmt: skip
    assert link_question(here, "Mercury melts at what?", None, NodeLinking())[0][0] == "urn:x:mercury2"
    assert not here.crowded


@pytest.mark.parametrize("embed", [None, by_letters])
@pytest.mark.parametrize(("question", "found"), [
    ("Clinic issue in what?", ["clinic"]),
    ("What does the clinc issue?", ["clinic"]),
    ("Clinic of the tissuue?", ["clinic", "tissue"]),
    ("What is the issue?", ["tissue"]),
])  # fmt: skip
def test_what_a_fact_of_a_named_thing_says_is_no_name_that_is_spelt_wrong(question, found, embed):
    here = graph(("clinic", "issues_in", "occupation"), ("tissue", "part_of", "organ"))
    nodes, record = link_question(here, question, embed, NodeLinking(least=0.8, fallback=0))
    assert nodes == [f"urn:x:{name}" for name in found]
    assert not any("'issue'" in note for note in record["notes"]) or found == ["tissue"]


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


def test_of_things_of_one_name_that_comes_first_of_which_the_question_speaks():
    here = graph(
        ("mercury1", "orbits", "sun"), ("mercury2", "melts_at", "234 K"), ("thermometer", "contains", "mercury2"),
        names=[("mercury1", "Mercury"), ("mercury2", "Mercury")],
    )  # fmt: skip
    for question, node in (
        ("What does Mercury orbit?", "urn:x:mercury1"), ("When melts Mercury?", "urn:x:mercury2"),
        ("Does a thermometer contain Mercury?", "urn:x:mercury2"),
    ):  # fmt: skip
        nodes, _ = link_question(here, question, None, NodeLinking())
        assert node in nodes
        assert len({"urn:x:mercury1", "urn:x:mercury2"} & set(nodes)) == 1
        assert link_topics(here, ["mercury"], None, Linking(), question=question)[0] == {"mercury": [node]}


def test_words_that_say_nothing_name_nothing():
    here = graph(("During", "is", "a_film"), ("The Who", "play", "rock"), ("die", "is", "a_cube"))
    assert link_question(here, "What plays during the show, and who?", None, NodeLinking())[0] == []
    assert link_question(here, "What do The Who play?", None, NodeLinking())[0] == ["urn:x:The_Who"]
    here.language = "de"
    assert link_question(here, "Was ist die Frage?", None, NodeLinking())[0] == []


def test_a_thing_without_a_name_is_called_by_its_iri():
    here = graph()
    here.store.graph.update("INSERT DATA { <urn:x:HeartAttack> <urn:r:treatedBy> <urn:x:acetyl_acid> }")
    assert link_question(here, "What helps at a heart attack?", None, NodeLinking())[0] == ["urn:x:HeartAttack"]
    mixed = graph(("flu", "causes", "cough"))
    mixed.store.graph.update("INSERT DATA { <urn:x:flu> <urn:r:causes> <urn:x:high_fever> }")
    assert link_question(mixed, "Is a high fever like flu?", None, NodeLinking())[0] == [
        "urn:x:high_fever",
        "urn:x:flu",
    ]


NEAR = {
    "Euro": (1, 0, 0, 0), "currency": (0.8, 0.6, 0, 0), "English": (0, 1, 0, 0), "languages": (0.1, 0.7, 0.7, 0),
    "Laos": (0, 0, 1, 0.1), "Peru": (0, 0, 1, -0.1), "country": (0, 0, 1, 0),
    "currency of the country": (0.8, 0, 0.6, 0), "tongue": (0, 0.8, 0.6, 0), "hypertension": (0, 0, 0, 1),
    "high blood pressure": (0, 0, 0.3, 0.9), "the common": (0.9, 0, 0, 0.1), "high": (0, 0.5, 0.5, 0),
    "blood": (0, 0.5, 0.5, 0), "pressure": (0, 0.5, 0.5, 0),
}  # fmt: skip


def by_meaning(texts):
    return [NEAR.get(text, (0, 0, 0, 0)) for text in texts]


@pytest.mark.parametrize(("question", "found"), [
    ("Chad has a currency?", ["Chad"]),  # Euro is one, says a fact of it
    ("Chad speaks languages?", ["Chad"]),  # as Chad has
    ("Chad lies in a country?", ["Chad"]),  # as near to Laos as to Peru
    ("Chad pays in the currency of the country?", ["Chad"]),  # made of both
    ("Which tongue is spoken in Chad?", ["Chad"]),  # what is asked for
    ("What is the common of Chad?", ["Chad"]),  # no name starts so
    ("Has Chad a tongue?", ["Chad", "English"]),
    ("Is high blood pressure common in Chad?", ["hypertension", "Chad"]),
    ("A country?", ["Laos"]),  # nothing else is named
])  # fmt: skip
def test_words_for_kinds_and_relations_name_nothing_that_they_are_near_to(question, found):
    here = graph(
        ("Togo", "currency", "Euro"), ("Chad", "languages", "French"), ("Togo", "speaks", "English"),
        ("Laos", "borders", "Peru"), ("hypertension", "affects", "heart"),
    )  # fmt: skip
    nodes, _ = link_question(here, question, by_meaning, NodeLinking(least=0.6))
    assert nodes == [f"urn:x:{name}" for name in found]
