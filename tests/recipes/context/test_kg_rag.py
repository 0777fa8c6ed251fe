"""KG-RAG: facts as sentences with their sources, both thresholds and the volume, budgets that hold, and bad input."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparql
import tiny
import toys
from bag_encoder import bag, by_letters
from chat_server import Scripted, say, served
from claims._lab import fifty_facts
from fact_graph import NAME, graph
from secateur._utils.rundir import Run, Transient
from secateur.clients.chat import Local, Meter
from secateur.clients.stores import Embedded, Endpoint
from secateur.errors import InfeasibleError, InputError, NumericalError, ServerError
from secateur.recipes.context import kg_rag as module
from secateur.recipes.context.kg_rag import kg_rag
from secateur.retrieval.words import Words
from secateur.runs import keywords
from secateur.score import relevance
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph
from secateur.vocabulary import Budget

pytest.importorskip("pyoxigraph")

QUESTION = "What treats asthma?"


def run(subject, question, *budgets, into=None, **options):
    return list(
        keywords.call(kg_rag, subject, question, list(map(Budget.parse, budgets)), into or Transient(), **options)
    )


def one(subject, question, budget="words=10000", **options):
    """The result for one budget, its trace, and what is told."""
    memory = Transient()
    (result,) = run(subject, question, budget, into=memory, **options)
    return result, memory.values[f"trace-{budget}"], memory.values[f"told-{budget}"]


def kept(trace):
    return {site: {row["text"] for row in rows if row["kept"]} for site, rows in trace.items()}


def bag_of(_, texts, **__):
    return bag(texts)


def sizes(texts):
    return list(map(len, texts))


DRUGS = [("drug" + letter, "treats" if letter in "ahl" else "worsens", "asthma") for letter in "abcdefghijkl"]


def medicine():
    return graph(*DRUGS, ("asthma", "shows_in", "lung"), ("flu", "shows_in", "lung"), ("drugz", "treats", "flu"))


# ----------------------------------------------------------------------------------------------------- what is kept


def test_what_stays_is_above_both_thresholds_and_the_best_comes_first():
    result, trace, told = one(medicine(), QUESTION, embedder=bag, floor=0.2, fill=False)
    rows = trace["facts.asthma"]
    values = np.array([row["score"] for row in rows])
    stays = np.array([row["kept"] for row in rows])
    assert len(rows) == 14 - 1  # what is around asthma, each once
    assert stays.any()
    assert (values[stays] > max(np.percentile(values, 75), 0.2)).all()
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert (np.diff(values) <= 0).all()
    written = result.subject.to_text().split("\n")
    assert written == [row["text"] for row in rows if row["kept"]]
    assert all("treats" in line for line in written)
    assert told["facts_after"] == len(written)
    assert told["facts_before"] == len(rows)
    facts = [row["fact"] for row in rows if row["kept"]]
    assert facts == [list(line.facts[0]) for line in result.subject.lines]
    assert {row["node"] for row in rows} == {"urn:x:asthma"}
    assert all("urn:x:asthma" in (subject, object) for subject, _, object, _ in facts)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_lower_thresholds_and_a_larger_volume_lose_nothing(one_p, other_p, one_f, other_f, one_v, other_v):
    here, question = medicine(), "Does druga treat asthma or flu?"
    few = one(here, question, embedder=bag, percentile=max(one_p, other_p), floor=max(one_f, other_f),
              volume=min(one_v, other_v))  # fmt: skip
    many = one(here, question, embedder=bag, percentile=min(one_p, other_p), floor=min(one_f, other_f),
               volume=max(one_v, other_v))  # fmt: skip
    for result, trace, _ in (few, many):
        assert len(trace) == 3
        assert all(len(texts) <= max(one_v, other_v) // 3 for texts in kept(trace).values())
        assert len(result.subject.lines) <= max(one_v, other_v)
    assert set(few[0].subject.lines) <= set(many[0].subject.lines)


def test_each_node_has_its_share_of_the_volume():
    for volume, each in ((6, 3), (5, 2), (1, 0)):
        _, trace, told = one(medicine(), "drugz, asthma", embedder=bag, percentile=0, floor=-1, volume=volume)
        assert list(trace) == ["facts.drugz", "facts.asthma"]
        assert all(len(texts) <= each for texts in kept(trace).values())
        assert len(kept(trace)["facts.asthma"]) == each
    assert "asthma keeps nothing: its share of the volume is less than one fact" in told["notes"]


def test_even_percentile_0_leaves_out_the_least():
    _, trace, _ = one(medicine(), QUESTION, embedder=bag, percentile=0, floor=-1, volume=1000, fill=False)
    rows = trace["facts.asthma"]
    least = min(row["score"] for row in rows)
    assert {row["text"] for row in rows if row["score"] > least} == kept(trace)["facts.asthma"]


def test_room_that_is_left_is_filled_behind_what_passes_the_percentile():
    """Those of flu that its percentile takes are more alike than those of gout that stay, and come behind them."""
    here = graph(
        *((f"a{i}", "treats_and_cures" if i < 2 else "treats", "flu") for i in range(8)),
        *((f"b{i}", "helps" if i < 2 else "worsens", "gout") for i in range(8)),
    )
    question, how = "What treats and cures and helps flu?", {"topics": ["flu", "gout"], "terms": 0.0}
    how |= {"embedder": bag, "floor": -1, "few": 0}
    strict, filled = (one(here, question, **how, fill=fill)[1] for fill in (False, True))
    rated = {row["text"]: row["score"] for rows in filled.values() for row in rows}
    passing, every = (set().union(*kept(trace).values()) for trace in (strict, filled))
    assert all(kept(strict)[site] < kept(filled)[site] for site in filled)
    assert max(rated[text] for text in every - passing) > min(rated[text] for text in passing)
    words = sum(len(text.split()) for text in passing)
    for more in (0, 3, 6):
        result, _, _ = one(here, question, f"words={words + more}", **how, fill=True)
        left = {line.text for line in result.subject.lines}
        assert passing <= left <= every
        assert result.cut.after["words"] <= words + more
        assert (len(left) > len(passing)) == bool(more)


@pytest.mark.parametrize("limit", [4, 8, 15, 30, 60])
def test_filling_a_budget_that_is_full_alters_nothing(limit):
    question, how = "drugz worsens asthma treats", {"embedder": bag, "floor": 0.0, "few": 0}
    strict, filled = (run(medicine(), question, f"words={limit}", **how, fill=fill)[0] for fill in (False, True))
    assert set(strict.subject.lines) <= set(filled.subject.lines)
    assert filled.cut.after["words"] <= limit
    _, trace, _ = one(medicine(), question, **how, fill=True, volume=4)
    assert all(len(texts) <= 2 for texts in kept(trace).values())
    assert all(row["score"] > 0 for rows in trace.values() for row in rows if row["kept"])


def test_a_fact_that_joins_two_nodes_comes_before_those_as_alike():
    """It is told once, whichever of the two it stands at; one thing's fact about itself joins nothing."""
    here = graph(*((f"a{i}", "treats", "flu") for i in range(8)), ("gout", "treats", "flu"), ("flu", "treats", "flu"))
    how = {"embedder": bag, "topics": ["flu", "gout"], "floor": -1, "few": 100, "percentile": 0, "terms": 0.0}
    plain, raised = (one(here, "a1 a2 treats", **how, joins=joins)[1] for joins in (0.0, 0.6))
    before, after = ({row["text"]: row["score"] for row in rows["facts.flu"]} for rows in (plain, raised))
    (text,) = (text for text in before if text.startswith("gout"))
    assert after == {**before, text: round(before[text] + 0.6 * (1 - before[text]), 6)}
    assert before[text] < max(before.values()) < after[text] <= 1
    assert raised["facts.flu"][0]["text"] == text
    assert [row["rank"] for row in raised["facts.flu"]] == list(range(1, len(before) + 1))
    result, _, _ = one(here, "a1 a2 treats", f"words={len(text.split())}", **how, joins=0.6)
    assert [line.text for line in result.subject.lines] == [text]


def test_of_few_facts_none_goes_by_percentile():
    here = graph(("a1", "has", "b1"), ("a1", "has", "b2"))
    assert len(one(here, "a1", embedder=bag, floor=0)[0].subject.lines) == 2
    assert len(one(here, "a1 has b1", embedder=bag, floor=0, few=0, percentile=0, fill=False)[0].subject.lines) == 1
    assert len(one(here, "a1 has b1", embedder=bag, floor=0, few=0, fill=False)[0].subject.lines) == 1


def test_of_facts_that_are_equally_the_most_alike_none_goes():
    """A strict percentile would leave none of four in ten."""
    here = graph(*((f"drug{i}", "treats" if i < 4 else "worsens", "asthma") for i in range(10)))
    assert len(one(here, QUESTION, embedder=bag, fill=False)[0].subject.lines) == 4


def test_a_question_that_is_a_fact_is_as_like_it_as_can_be():
    _, trace, _ = one(medicine(), "druga treats asthma", embedder=bag)
    assert trace["facts.asthma"][0]["score"] == 1.0
    assert trace["facts.asthma"][0]["text"] == "druga treats asthma"


def test_a_share_of_bm25_tells_names_of_one_sort_apart():
    here, alike = graph(*((f"drug{i}", "treats", "asthma") for i in range(12))), {}
    for terms in (0.0, 0.3):
        embedder = {"embedder": lambda texts: np.ones((len(texts), 3), dtype=np.float32), "namer": bag}
        rows = one(here, "asthma and drug7?", terms=terms, **embedder)[1]["facts.asthma"]
        alike[terms] = {row["text"]: row["score"] for row in rows}
    assert set(alike[0.0].values()) == {1.0}
    assert alike[0.3].pop("drug7 treats asthma") == 1.0 > max(alike[0.3].values())


def test_a_fact_of_two_nodes_is_told_once():
    result, trace, _ = one(medicine(), "druga treats asthma", embedder=bag, floor=0)
    assert result.subject.to_text().split("\n").count("druga treats asthma") == 1
    assert "druga treats asthma" in kept(trace)["facts.druga"]
    assert "druga treats asthma" not in kept(trace)["facts.asthma"]


def test_without_an_embedder_facts_are_ranked_by_bm25():
    result, _, told = one(medicine(), QUESTION)
    assert set(result.subject.to_text().split("\n")) <= {f"drug{letter} treats asthma" for letter in "ahl"}
    assert result.subject.lines
    assert told["entities"] == ["asthma"]


def test_no_fact_above_the_floor_is_told():
    result, trace, told = one(medicine(), QUESTION, embedder=bag, floor=0.99)
    assert (result.subject.to_text(), result.cut.after) == ("", {"words": 0.0})
    assert not kept(trace)["facts.asthma"]
    assert told["notes"] == ["no fact of asthma is above the floor 0.99: the best has 0.500"]
    assert result.cut.notes == tuple(told["notes"])


def test_a_floor_is_found_for_an_encoder_that_finds_all_alike():
    """Each of its vectors has a large part in common: whatever is compared with it is above 0.3."""

    def alike(texts):
        own = bag(texts)
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-9)
        return np.concatenate([own, np.full((len(texts), 1), 2.0, np.float32)], axis=1)

    facts = [(f"drug{i}", verb, f"illness{i}") for i in range(24) for verb in ("treats", "soldfor")]
    here = graph(*facts, ("asthma", "is", "illness"), ("drug7", "treats", "asthma"), kinds=[("asthma", "Disease")])
    how = {"terms": 0.0, "percentile": 0.0, "few": 100, "topics": ["asthma"], "identifier": False}
    floors, stays = [], []
    for embed in (bag, alike):
        _, trace, told = one(here, QUESTION, embedder=embed, calibrate=95, **how)
        floors.append(told["floor"])
        stays.append(kept(trace))
        assert told["floor"] == module.calibrate_floor(here, embed, 95)
        assert module.calibrate_floor(here, embed, 20) <= floors[-1]
    assert floors[0] < 0.6 < 0.8 <= floors[1] == pytest.approx((floors[0] + 4) / 5, abs=1e-3)
    assert stays[0] == stays[1] == {"facts.asthma": {"drug7 treats Disease asthma"}}
    assert len(kept(one(here, QUESTION, embedder=alike, **how)[1])["facts.asthma"]) == 2
    questions, texts, ends = module.sample_questions(here, 128)
    assert {"What treats illness3?", "What soldfor illness3?"} & set(questions)
    assert len(questions) == len(texts) == len(ends) == 25


def test_a_floor_is_found_by_facts_that_share_no_thing():
    """Twelve facts without a word in common: what is alike are a fact and its own question, and these do not count."""
    here = graph(*((f"left{i}", f"verb{i}", f"right{i}") for i in range(12)))
    assert module.calibrate_floor(here, bag, 90) == 0.0
    questions, texts, _ = module.sample_questions(here, 128)
    vectors = bag([*questions, *texts])
    assert (vectors[:12] * vectors[12:]).sum(1).min() >= 2


def test_a_graph_of_few_facts_has_no_floor_of_its_own():
    assert one(medicine(), QUESTION, embedder=bag, calibrate=95)[2]["floor"] == 0.0
    assert "floor" not in one(medicine(), QUESTION, embedder=bag)[2]
    for wrong in ({"floor": 0.2}, {"embedder": ""}):
        with pytest.raises(InputError, match="calibrate=95: give an embedder, and no floor"):
            run(medicine(), QUESTION, "words=9", **{"embedder": bag, "calibrate": 95, **wrong})


# --------------------------------------------------------------------------------------------------------- budgets


def test_no_budget_is_exceeded_and_a_larger_one_keeps_a_superset():
    before = []
    for limit in (4, 7, 20, 40, 90, 200):
        how = {"embedder": bag, "tokenizer": lambda texts: list(map(len, texts)), "percentile": 0, "floor": -1}
        (result,) = run(medicine(), QUESTION, f"tokens={limit}", **how)
        assert len(result.subject.to_text()) == result.cut.after["tokens"] <= limit
        assert set(before) <= set(result.subject.lines)
        before = result.subject.lines
    assert len(before) > 5


def test_the_least_alike_leave_first():
    (large, small) = run(medicine(), QUESTION, "words=12", "words=6", embedder=bag, percentile=0, floor=-1)
    assert [line.text for line in small.subject.lines] == [line.text for line in large.subject.lines][:2]


def test_a_share_is_one_of_all_facts_of_the_nodes():
    result, _, told = one(medicine(), QUESTION, "words=20%", embedder=bag, percentile=0, floor=-1)
    assert told["words_before"] == result.cut.before["words"] == 40
    assert 0 < result.cut.after["words"] <= 0.2 * 40
    assert result.cut.removed["facts.asthma"] == (11, 13)


def test_a_budget_smaller_than_one_fact_gives_nothing_and_says_so():
    result, _, told = one(medicine(), QUESTION, "words=2", embedder=bag, fill=False)
    assert result.subject.to_text() == ""
    assert told["notes"] == ["3 of 3 facts are longer than the whole budget: nothing is left"]


def test_a_fact_longer_than_the_budget_leaves_room_for_others():
    here = graph(
        ("asthma", "needs", "x " * 30 + "treats"), ("inhaler", "treats", "asthma"), ("steroid", "treats", "asthma")
    )
    result, _, told = one(here, QUESTION, "words=6", embedder=bag, floor=0)
    assert result.subject.to_text() == "inhaler treats asthma\nsteroid treats asthma"
    assert told["notes"] == ["1 of 3 facts are longer than the whole budget"]


# -------------------------------------------------------------------------------------------------- what facts say


def test_sentences_name_kinds_and_sources():
    here = graph(
        ("ibuprofen", "TREATS_CtD", "headache", {"source": "DrugBank"}),
        kinds=[("ibuprofen", "Compound"), ("headache", "Disease")],
    )
    result, trace, _ = one(here, "ibuprofen TREATS headache", embedder=bag, floor=0)
    assert result.subject.to_text() == "Compound ibuprofen treats Disease headache, according to DrugBank"
    (line,) = result.subject.lines
    assert line.sources == ("DrugBank",)
    assert [fact.predicate for fact in line.facts] == ["urn:r:TREATS_CtD"]
    (row,) = trace["facts.ibuprofen"]
    wanted = {"predicate": "treats", "target": "headache", "provenance": ["DrugBank"], "path": "ibuprofen > treats"}
    assert wanted.items() <= row.items()


def test_names_with_full_stops_stay_whole():
    here = graph(("Mt. Sinai. Annex", "treats", "St. John. B"), ("St. John. B", "is_in", "No. 5. Lane"))
    result, _, _ = one(here, "What is St. John. B in?", embedder=bag, floor=0)
    assert set(result.subject.to_text().split("\n")) == {
        "Mt. Sinai. Annex treats St. John. B", "St. John. B is in No. 5. Lane"
    }  # fmt: skip


def test_words_and_numbers_that_are_said_of_a_thing_are_facts():
    here = graph(("Heat", "is_by", "Mann"))
    here.store.graph.update('INSERT DATA { <urn:x:Heat> <urn:r:release_year> "1995" }')
    result, _, _ = one(here, "Heat release year", embedder=bag, floor=0)
    assert result.subject.to_text().split("\n")[0] == "Heat release year 1995"
    assert "1995" not in one(here, "Heat release year", embedder=bag, floor=0, literals=False)[0].subject.to_text()


def test_what_identifies_a_node_is_one_more_fact():
    here = graph(("DOID_2841", "has", "cough"), names=[("DOID_2841", "asthma")])
    here.store.graph.update(f'DELETE DATA {{ <urn:x:DOID_2841> {NAME} "DOID_2841" }}')
    _, trace, _ = one(here, QUESTION, embedder=bag, floor=0)
    assert {row["text"] for row in trace["facts.asthma"]} == {"asthma has cough", "asthma has the identifier DOID_2841"}
    assert {row["node"] for row in trace["facts.asthma"] if row["fact"] is None} == {"urn:x:DOID_2841"}
    _, trace, _ = one(here, QUESTION, embedder=bag, floor=0, identifier=False)
    assert {row["text"] for row in trace["facts.asthma"]} == {"asthma has cough"}


def test_facts_are_filtered_by_what_is_known_of_them():
    here = graph(("drug a", "treats", "flu", {"phase": 1}), ("drug b", "treats", "flu", {"phase": 4}))
    _, trace, _ = one(here, "flu", embedder=bag, filters=["phase>=3"])
    assert [row["target"] for row in trace["facts.flu"]] == ["drug b"]
    with pytest.raises(InputError, match="filter"):
        run(here, QUESTION, "words=5", filters=["phase"])


def test_evidence_is_told_but_not_selected_by():
    here = graph(
        ("x1", "has", "y1", {"phase": 4, "p_value": "0.05", "note": ["a", "b"], "code": "007"}), ("x1", "has", "y2")
    )
    plainly, trace, _ = one(here, "x1 has y1", embedder=bag, floor=0)
    told, traced, _ = one(here, "x1 has y1", embedder=bag, floor=0, evidence=True)
    text, _, evidence = told.subject.to_text().split("\n")[0].partition(" {")
    assert text == plainly.subject.to_text().split("\n")[0] == "x1 has y1"
    assert json.loads("{" + evidence) == {"code": "007", "note": ["a", "b"], "p_value": 0.05, "phase": 4}
    assert [row["score"] for row in trace["facts.x1"]] == [row["score"] for row in traced["facts.x1"]]


# --------------------------------------------------------------------------------------- what the question speaks of


def test_where_nothing_is_named_five_nodes_stand_in():
    _, trace, told = one(medicine(), "Who knows?", embedder=bag, namer=by_letters, percentile=0, floor=-1, volume=14)
    assert told["fallback"] is True
    assert len(trace) == len(told["nodes"]) == 5
    assert all(len(texts) <= 14 // 5 for texts in kept(trace).values())
    assert "the question names nothing that is known: the nodes nearest to all of it stand in" in told["notes"]
    _, trace, told = one(medicine(), "Who knows?", embedder=bag, namer=by_letters, fallback=0)
    assert (trace, told["nodes"]) == ({}, [])
    assert told["notes"] == ["nothing in the graph was found for the question"]


def test_things_of_some_kinds_alone_are_looked_for():
    here = graph(("flu", "causes", "cough"), kinds=[("flu", "Disease"), ("cough", "Symptom")])
    assert one(here, "flu and cough", embedder=bag, kinds=["Disease"])[2]["nodes"] == ["urn:x:flu"]
    model = Scripted('{"entities": ["flu"]}')
    one(here, "flu and cough", embedder=bag, kinds=["Disease", "Symptom"], llm=model)
    assert "Which Disease, Symptom does the question name?" in model.asked[0][0]
    with pytest.raises(InputError, match="no kind of things called 'Planet'"):
        one(here, "flu", embedder=bag, kinds=["Planet"])


def test_what_else_a_thing_is_called_leads_to_it():
    here = graph(("flu", "causes", "cough"))
    here.store.graph.update('INSERT DATA { <urn:x:flu> <http://www.w3.org/2004/02/skos/core#altLabel> "influenza" }')
    assert one(here, "What does influenza cause?", embedder=bag)[2]["nodes"] == ["urn:x:flu"]


class Nameless(KnowledgeGraph):
    """A graph too large to read all its names."""

    def things(self, kinds=(), *, aliases=False):
        raise AssertionError("all names were read")


def test_topics_are_what_the_question_is_about():
    here, model = medicine(), Scripted('{"entities": ["flu"]}', "druga")
    for topics in (["asthma"], ["urn:x:asthma"], [" Asthma ", "urn:x:asthma", ""]):
        _, trace, told = one(here, "What about flu?", embedder=bag, topics=topics, llm=model, answer=True)
        assert list(trace) == ["facts.asthma"]
        assert (told["nodes"], told["fallback"], told["llm_calls"]) == (["urn:x:asthma"], False, 1)
    assert all("Which things" not in str(question) for question, *_ in model.asked)
    _, trace, told = one(here, QUESTION, embedder=bag, topics=["asthmaa", "zzzz qqqq"], namer=by_letters, least=0.9)
    assert (told["nodes"], told["entities"]) == (["urn:x:asthma"], ["asthmaa", "zzzz qqqq"])
    assert told["notes"][0] == "nothing in the graph is called 'zzzz qqqq'"
    result, trace, told = one(here, QUESTION, embedder=bag, topics=["zzzz"])
    assert (result.subject.to_text(), trace, told["fallback"]) == ("", {}, False)
    assert "nothing in the graph was found for the question" in told["notes"]


def test_a_topic_with_a_colon_is_what_is_called_so_before_it_is_an_iri():
    """DOID:2841 was taken for an IRI, of which no table has facts."""
    here = graph(("DB:1", "treats", "DOID:2841"))
    for topic, nodes in (("DOID:2841", ["urn:x:DOID:2841"]), ("x:other", ["x:other"])):
        _, trace, told = one(here, "What treats it?", embedder=bag, topics=[topic])
        assert told["nodes"] == nodes
        assert len(trace) == 1


def test_of_topics_by_iri_no_names_of_the_graph_are_read():
    here = Nameless(medicine().store)
    result, trace, _ = one(here, QUESTION, embedder=bag, topics=["urn:x:asthma", "urn:x:flu"], floor=0)
    assert list(trace) == ["facts.asthma", "facts.flu"]
    assert "druga treats asthma" in result.subject.to_text()
    _, _, told = one(here, QUESTION, embedder=bag, topics=["urn:x:nowhere"])
    assert any("has no facts" in note for note in told["notes"])
    with pytest.raises(AssertionError, match="all names"):
        run(here, QUESTION, "words=9", embedder=bag)


def test_of_an_endpoint_no_names_are_read_but_those_that_the_question_may_hold():
    everything, asked = medicine(), list[str]()
    with sparql.served(everything.store, asked=asked) as url:
        here = Nameless(Endpoint(url))
        for question, how in (
            (QUESTION, {}), ("and Flu?", {"embedder": ""}), ("q", {"topics": ["Asthma", "nothing"]}), ("Who?", {}),
        ):  # fmt: skip
            how = {"embedder": bag, "fallback": 0, **how}
            _, trace, told = one(here, question, lookup="query", **how)
            _, known, wanted = one(everything, question, **how)
            assert trace == known
            assert told["nodes"] == wanted["nodes"]
            assert told["notes"] == wanted["notes"]
        _, _, told = one(here, "of asthma", lookup="query", llm=Scripted('{"entities": ["Flu"]}'))
        assert told["nodes"] == ["urn:x:flu"]
        assert "urn:x:asthma" in one(here, "what of asthm", embedder=by_letters, lookup="query", least=0.5)[2]["nodes"]


@pytest.mark.parametrize("question", ["何ですか", "?!", "\x00", "что это", "x" * 100_000, "asthma " * 3000, "مرحبا"])
@pytest.mark.parametrize("embedder", [bag, ""])
def test_a_question_in_any_script_has_an_answer(question, embedder):
    result, _, told = one(medicine(), question, "words=30", embedder=embedder)
    assert result.cut.after["words"] <= 30
    assert result.subject.lines or told["notes"]


def test_an_empty_graph_and_things_without_facts_give_nothing_and_say_so():
    for embedder in (bag, ""):
        result, trace, told = one(graph(), QUESTION, "words=20%", embedder=embedder)
        assert (result.subject.to_text(), trace, told["facts_before"]) == ("", {}, 0)
        assert told["notes"][-1] == "nothing in the graph was found for the question"
    alone = graph(names=[("asthma", "asthma")])
    result, trace, told = one(alone, QUESTION, embedder=bag)
    assert (result.subject.to_text(), trace) == ("", {"facts.asthma": []})
    assert told["notes"] == ["asthma has no facts"]


def test_two_nodes_of_one_name_are_kept_apart():
    here = graph(("a1", "has", "b1"), ("a2", "has", "b2"), names=[("a1", "same"), ("a2", "same")])
    for number in (1, 2):
        here.store.graph.update(f'DELETE DATA {{ <urn:x:a{number}> {NAME} "a{number}" }}')
    _, trace, _ = one(here, "not named", embedder=bag, fallback=5, floor=-1)
    assert {"facts.same", "facts.same (urn:x:a2)"} <= set(trace)


@pytest.mark.slow
def test_a_hub_is_read_in_part_and_in_time():
    store = Embedded()
    rows = [f"<urn:x:n{i}> <urn:r:in> <urn:x:hub> ." for i in range(100_000)]
    store.graph.update(f'INSERT DATA {{ <urn:x:hub> {NAME} "hub" . {" ".join(rows)} }}')
    here, began = KnowledgeGraph(store, most=2000), time.monotonic()
    result, trace, told = one(here, "What is in the hub?", "words=60", embedder=bag)
    assert time.monotonic() - began < 60
    assert len(trace["facts.hub"]) == 2000
    assert 0 < result.cut.after["words"] <= 60
    assert "hub has more facts than are read" in told["notes"]


def test_an_encoder_that_gives_no_numbers_is_refused():
    with pytest.raises((InputError, NumericalError), match="finite"):
        run(medicine(), QUESTION, "words=9", embedder=lambda texts: np.full((len(texts), 3), np.nan))


# ---------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize(
    "reply",
    [
        '{"entities": ["flu"]}',
        'Sure! ```json\n{"entities": ["flu", "flu", " "]}\n```',
        'As {asked}: {"note": 1, "Diseases": ["flu"]} and {"entities": ["asthma"]}',
    ],
)
def test_a_language_model_says_what_the_question_names(reply):
    model = Scripted(reply)
    told = one(medicine(), "What about influenza?", embedder=bag, llm=model)[2]
    assert (told["entities"], told["nodes"], told["fallback"]) == (["flu"], ["urn:x:flu"], False)
    assert (told["llm_calls"], told["llm_tokens"]) == (1, model.meter.tokens)
    ((asked, most, temperature, _),) = model.asked
    assert "Which things does the question name?" in asked
    assert "influenza" in asked
    assert (most, temperature) == (256, 0.0)


@pytest.mark.parametrize(
    "reply",
    ["", "I think flu.", '{"entities": "flu"}', '{"entities": [1]}', "[" * 5000, "{" * 50_000, "{}", "[]",
     ServerError("down")],
)  # fmt: skip
@pytest.mark.parametrize("embed", ["", bag])
def test_where_a_language_model_gives_no_names_they_are_found_without_it(reply, embed):
    model = Scripted(reply)
    _, _, told = one(medicine(), QUESTION, embedder=embed, llm=model)
    assert (told["entities"], told["nodes"], told["fallback"]) == (["asthma"], ["urn:x:asthma"], False)
    assert "names were found without the language model" in told["notes"][0]
    assert told["llm_calls"] == len(model.asked) == (1 if isinstance(reply, ServerError) else 3)
    assert [temperature for _, _, temperature, _ in model.asked[:2]] == [0.0, 0.4][: len(model.asked)]


def test_a_language_model_that_gives_no_names_is_asked_anew():
    told = one(medicine(), "What about flu?", llm=Scripted("Well, flu.", '{"entities": ["asthma"]}'))[2]
    assert (told["entities"], told["llm_calls"]) == (["asthma"], 2)
    assert not any("without the language model" in note for note in told["notes"])


@pytest.mark.parametrize("reply", ['{"entities": []}', json.dumps({"entities": ["zzzz qqqq"] * 3})])
def test_a_list_that_names_nothing_counts_as_nothing_found(reply):
    result, trace, told = one(medicine(), QUESTION, "words=50", embedder=bag, llm=Scripted(reply))
    assert told["fallback"] is True
    assert len(trace) == 5
    assert told["notes"]
    assert result.cut.after["words"] <= 50


def test_where_a_limit_is_reached_names_are_found_without_the_language_model():
    for meter in (Meter(most_calls=0), Meter(most_tokens=0)):
        model = Scripted('{"entities": ["flu"]}')
        model.meter = meter
        _, _, told = one(medicine(), QUESTION, embedder=bag, llm=model, answer=True)
        assert (told["entities"], told["nodes"], told["fallback"]) == (["asthma"], ["urn:x:asthma"], False)
        assert "names were found without the language model" in told["notes"][0]
        assert "gave no answer" in told["notes"][-1]


def test_calls_and_tokens_are_bounded_question_by_question():
    for limit in ({"calls": 1}, {"llm_tokens": 10}):
        model = Scripted('{"entities": ["flu"]}')
        for _ in range(2):
            told = one(medicine(), QUESTION, embedder=bag, llm=model, answer=True, **limit)[2]
            assert (told["entities"], told["llm_calls"]) == (["flu"], 1)
            assert "answer" not in told
        assert model.meter.calls == 2


def test_an_answer_is_asked_for_with_what_is_kept():
    model = Scripted('{"entities": ["asthma"]}', "druga, says nobody.")
    result, _, told = one(medicine(), QUESTION, embedder=bag, llm=model, answer=True, seed=3)
    assert told["answer"] == "druga, says nobody."
    assert (told["llm_calls"], told["llm_tokens"]) == (2, model.meter.tokens)
    messages, most, temperature, seed = model.asked[1]
    assert messages == module.write_prompt(QUESTION, result.subject.to_text())
    assert (most, temperature, seed) == (512, 0.0, 3)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == f"Context:\n{result.subject.to_text()}\n\nQuestion: {QUESTION}"
    assert told["prompt"].endswith(messages[1]["content"])


def test_one_of_several_choices():
    model = Scripted('{"entities": ["asthma"]}', "It is false.")
    told = one(medicine(), QUESTION, embedder=bag, llm=model, answer=True, choices=["true", "false"])[2]
    assert told["choice"] == "false"
    assert '{"answer": "..."}, and give one of these: true, false.' in told["prompt"]


def test_what_a_language_model_is_told_before_all_else():
    model = Scripted('{"entities": ["asthma"]}', "druga")
    one(medicine(), QUESTION, embedder=bag, llm=model, answer=True, system="Answer in one word.")
    assert model.asked[1][0][0] == {"role": "system", "content": "Answer in one word."}


def test_who_gives_choices_wants_one_of_them():
    model = Scripted('{"entities": ["asthma"]}', '{"answer": "true"}')
    told = one(medicine(), QUESTION, embedder=bag, llm=model, choices=["true", "false"])[2]
    assert (told["choice"], told["llm_calls"]) == ("true", 2)


def test_a_language_model_that_fails_to_answer_is_told():
    model = Scripted('{"entities": ["asthma"]}', ServerError("it is down"))
    result, _, told = one(medicine(), QUESTION, embedder=bag, llm=model, answer=True)
    assert result.subject.lines
    assert "answer" not in told
    assert told["notes"] == ["the language model gave no answer: it is down"]


def test_a_server_is_asked_by_its_address():
    pytest.importorskip("httpx2")
    asked = []

    def answer(body, headers):
        asked.append(body)
        text = '{"entities": ["asthma"]}' if len(asked) == 1 else "druga"
        return say({"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})

    with served(answer) as url:
        told = one(medicine(), QUESTION, embedder=bag, llm=url, llm_name="small", answer=True)[2]
    assert (told["entities"], told["answer"], told["llm_calls"], told["llm_tokens"]) == (["asthma"], "druga", 2, 18)
    assert [(body["model"], body["temperature"], body["max_tokens"]) for body in asked] == [
        ("small", 0.0, 256), ("small", 0.0, 512)
    ]  # fmt: skip


def test_a_real_language_model_that_knows_nothing_is_no_harm():
    model = Local(tiny.model("llama"), tiny.tokenizer())
    result, _, told = one(medicine(), QUESTION, "words=40", embedder=bag, llm=model, answer=True)
    assert (told["entities"], told["fallback"]) == (["asthma"], False)
    assert result.cut.after["words"] <= 40


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_run_that_is_resumed_asks_nobody_again(tmp_path):
    model, outputs = Scripted('{"entities": ["asthma"]}', "druga"), []
    for _ in range(2):
        with Run.open(tmp_path / "run", {}) as into:
            (result,) = run(medicine(), QUESTION, "words=9", into=into, embedder=bag, llm=model, answer=True)
        outputs.append((result.subject.lines, result.cut))
    assert outputs[0] == outputs[1]
    assert model.meter.calls == 2


def test_what_can_not_be_done_is_refused_in_one_line():
    here = medicine()
    with pytest.raises(InputError, match="a context is cut to tokens or words"):
        run(here, QUESTION, "params=50%", embedder=bag)
    with pytest.raises(InputError, match="needs the reader's tokenizer"):
        run(here, QUESTION, "tokens=50", embedder=bag)
    with pytest.raises(InfeasibleError, match="give at least 1"):
        run(here, QUESTION, "words=0.01%", embedder=bag)
    for wrong in (
        {"volume": -1}, {"few": -1}, {"calls": -1}, {"nearest": 0}, {"fallback": -1}, {"percentile": 101},
        {"terms": 1.5}, {"calibrate": 100}, {"joins": -0.1}, {"joins": float("nan")}, {"lookup": "none"},
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"option {next(iter(wrong))}="):
            run(here, QUESTION, "words=5", embedder=bag, **wrong)
    with pytest.raises(InputError, match="an answer needs a language model"):
        run(here, QUESTION, "words=5", answer=True)


def test_the_graph_stays_as_it_is():
    here = medicine()
    before = len(here.store.graph)
    run(here, QUESTION, "words=5", embedder=bag)
    assert len(here.store.graph) == before


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    label = "<http://www.w3.org/2000/01/rdf-schema#label>"
    triples = [
        f"<urn:x:{word}> {label} {word!r} ; <urn:r:is_turned_to> <urn:x:{word[::-1]}> ."
        for word in ("alpha", "gamma", "delta", "omega", "sigma", "kappa")
    ]
    triples += [f"<urn:x:gamma> <urn:r:stands_in_row> <urn:x:row{i}> ." for i in range(12)]
    lines = ["gamma is turned to ammag", *(f"gamma stands in row row{i}" for i in range(12))]
    return toys.graph("kg_rag", triples, lines, "What is gamma turned to?", "ammag")


def test_a_floor_is_one_for_the_best_fact_by_its_words_too():
    """With a share of 0.3 for words and a floor of 0.3 it passed whenever its cosine was positive."""

    def faint(texts):
        return np.array([[1.0, 0.0] if "?" in text else [0.1, 1.0] for text in texts], dtype=np.float32)

    result, trace, _ = one(medicine(), QUESTION, embedder=faint, namer=by_letters)
    (best, *_) = trace["facts.asthma"]
    assert best["score"] > 0.3 > best["cosine"] > 0
    assert not result.subject.lines


def test_scores_of_two_nodes_are_of_one_scale():
    """The best of each node had all of BM25's share, however little it had to do with the question."""
    here = graph(
        *((f"drug{letter}", "treats", "asthma") for letter in "abc"), ("flu", "shows_in", "lung"), ("gout", "is", "flu")
    )
    for how in ({}, {"embedder": bag, "floor": -1}):
        _, trace, _ = one(here, "Which drug treats asthma but not flu?", **how)
        asthma, flu = (max(row["score"] for row in trace[f"facts.{name}"]) for name in ("asthma", "flu"))
        assert asthma > 2 * flu
        same = one(here, "asthma?", topics=["asthma"], **how)[1]["facts.asthma"]
        assert all(row["score"] > 0 for row in same)  # where nothing else is asked, names count


def test_the_papers_own_choice_is_an_option():
    how = {"embedder": bag, "percentile": 50}
    _, trace, _ = one(medicine(), QUESTION, paper=True, **how)
    rows = trace["facts.asthma"]
    asked, *texts = bag([QUESTION, *(row["text"] for row in rows)])
    cosines = [round(float(asked @ text / np.linalg.norm(asked) / np.linalg.norm(text)), 6) for text in texts]
    assert [row["score"] for row in rows] == pytest.approx(cosines)
    stays = [value > max(0.5, np.percentile(cosines, 50)) for value in cosines]
    assert [row["kept"] for row in rows] == stays
    with pytest.raises(InputError, match="paper: the paper compares by an embedder alone"):
        run(medicine(), QUESTION, "words=9", paper=True)


COMPANY = [("cordia", "founded_by", "ines"), ("cordia", "makes", "pills"), ("ines", "born_in", "porto"),
           ("ines", "likes", "tea"), ("pills", "cost", "ten"), ("porto", "born_of", "rome")]  # fmt: skip


@pytest.mark.parametrize("embedder", ["", bag])
def test_a_word_that_no_fact_has_is_looked_for_one_hop_further(embedder):
    here, question = graph(*COMPANY), "Where was he born by whom Cordia is founded, founded?"
    how = {"embedder": embedder, "floor": 0.0 if embedder else None}
    _, trace, told = one(here, question, **how)
    assert list(trace) == ["facts.cordia", "facts.ines"]
    assert kept(trace)["facts.ines"] == {"ines born in porto"}  # the one with the word, none of porto
    assert told["facts_before"] == 3
    _, near, _ = one(here, question, follow=0, **how)
    for row, alone in zip(trace["facts.cordia"], near["facts.cordia"], strict=True):
        others = {"score", *(() if embedder else ("cosine",))}  # BM25 knows more facts by which words are rare
        assert {name: row[name] for name in row.keys() - others} == {name: alone[name] for name in row.keys() - others}
    rows = [row for site in trace.values() for row in site]
    words = Words("en")
    read = [words(row["text"]) for row in rows]
    asked = [[word for word in words(question) if word != row["node"].removeprefix("urn:x:")] for row in rows]
    shares = np.array([relevance.bm25(terms, read)[place] for place, terms in enumerate(asked)])
    shares /= shares.max()
    wanted = 0.3 * shares + 0.7 * np.array([row["cosine"] for row in rows]) if embedder else shares
    assert [row["score"] for row in rows] == pytest.approx(wanted, abs=2e-6)  # one scale for what is followed, too
    assert list(near) == ["facts.cordia"] == list(one(here, "Who founded Cordia?", **how)[1])
    _, filled, _ = one(here, question, volume=2, **how)
    assert [len(texts) for texts in kept(filled).values()] == [1, 1]  # what is followed has the share of one node


@pytest.mark.parametrize("question", ["Where was the person behind Cordia born?", "Was Cordia's head born in a town?"])
def test_a_fact_that_leads_to_the_answer_stays_where_the_question_has_only_its_name(question):
    here = graph(*COMPANY[:3])
    _, trace, _ = one(here, question)
    assert kept(trace) == {"facts.cordia": {"cordia founded by ines"}, "facts.ines": {"ines born in porto"}}
    _, tight, _ = one(here, question, "words=4")
    assert kept(tight) == {"facts.cordia": set(), "facts.ines": {"ines born in porto"}}  # the answer leaves last


@pytest.mark.parametrize(("namer", "times"), [(None, 1), ("other", 2)])
def test_a_namer_that_is_the_embedder_has_its_precision(namer, times, tmp_path, monkeypatch):
    folder, calls = tmp_path / "some", []
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        module.encoders, "_open_checkpoint", lambda *given: calls.append(given) or type("Bag", (), {"encode": bag_of})()
    )
    one(medicine(), QUESTION, embedder=str(folder), namer=namer or str(folder), tokenizer=sizes, precision="bfloat16")
    assert len({(name, precision) for name, _, precision in calls}) == times
    assert (str(folder), "cpu", "bfloat16") in calls


@pytest.mark.parametrize("embedder", ["", bag])
def test_what_is_followed_is_told_apart_from_a_thing_of_the_same_name(embedder):
    """A record that is called as its band: the trace has the facts of both."""
    here = graph(("band", "founded_by", "lars"), ("band", "made", "record"), ("record", "mixed_in", "denmark"))
    for one_of_them in ("band", "record"):
        here.store.graph.update(f'DELETE DATA {{ <urn:x:{one_of_them}> {NAME} "{one_of_them}" }}')
        here.store.graph.update(f'INSERT DATA {{ <urn:x:{one_of_them}> {NAME} "same" }}')
    how = {"embedder": embedder, "floor": -1.0 if embedder else None, "topics": ["urn:x:band"]}
    result, trace, told = one(here, "Where was mixed what same made?", **how)
    assert list(trace) == ["facts.same", "facts.same (urn:x:record)"]
    assert told["facts_before"] == len(trace["facts.same"]) + 1
    assert sum(map(len, kept(trace).values())) == told["facts_after"] == len(result.subject.lines)


def test_nothing_is_followed_from_facts_below_the_floor_nor_from_what_stands_in():
    here = graph(*COMPANY)
    assert list(one(here, "Was he born by whom Cordia is founded?", embedder=bag, floor=0.999)[1]) == ["facts.cordia"]
    _, trace, told = one(here, "Was born?", embedder=bag, floor=-1, least=1.0, fallback=1)
    assert told["fallback"]
    assert len(trace) == 1


def test_questions_on_fifty_facts_are_answered_or_rightly_not(tmp_path):
    rows = list(fifty_facts.judge("kg_rag", fifty_facts.write_graph(tmp_path)))
    kinds = {kind: [fine for question, _, fine in rows if question.kind == kind] for kind in ("one", "misspelt", "two")}
    assert {kind: sum(fine) for kind, fine in kinds.items()} == {"one": 12, "misspelt": 4, "two": 4}
    assert sum(fine for *_, fine in rows) >= 22
