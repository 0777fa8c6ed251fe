"""What a search for paths records: names without an answer, texts of branches, and where the answer stands."""

from __future__ import annotations

import pytest

pytest.importorskip("pyoxigraph")

from fact_graph import graph, iri
from secateur.errors import ServerError
from secateur.methods.path_judges import Judging, open_judge
from secateur.methods.path_search import Exploring, PathSearch, Widths
from secateur.methods.similarity import Similarity
from secateur.subjects.graph import walks
from secateur.subjects.graph.walks import Path, Step, Surroundings
from secateur.subjects.text import markup

FACTS = [("d1", "treats", "asthma"), ("d2", "treats", "asthma"), ("d1", "causes", "tremor"), ("d2", "causes", "rash")]


def search() -> PathSearch:
    here, similarity = graph(*FACTS), Similarity(None, markup.stems, 6)
    judge = open_judge(Judging(), similarity, 0.5, 0)
    question = judge.read(
        "What treats asthma and causes tremor?", [iri("asthma"), iri("tremor")], ["asthma", "tremor"], ""
    )
    around = Surroundings(here, question.topics)
    return PathSearch(here, question, judge, similarity, around, {}, [], Widths(), Exploring(), range(1, 4), True)


def path(*nodes: str) -> Path:
    steps = (Step("urn:r:treats", False), Step("urn:r:causes", True))
    return Path(tuple(map(iri, nodes)), steps, (0, 2))


def test_the_best_path_answers_with_what_stands_between_the_topics():
    made = search()
    best = walks.cluster_paths([path("asthma", "d1", "tremor")])
    assert made.verbalise(best) == ["asthma <-[treats]- d1 -[causes]-> tremor"]
    assert made.decide(best, "topics", 1)
    assert (made.sufficient, made.answer, made.phase, made.hops) == (True, "d1", "topics", 1)
    assert not made.decide([], "expand", 2)
    assert made.phase == "topics"
    record = made.record(best)
    assert record["best"] == [
        {
            "text": made.summary[0],
            "facts": [
                [iri("d1"), "urn:r:treats", iri("asthma"), False],
                [iri("d1"), "urn:r:causes", iri("tremor"), False],
            ],
        }
    ]
    assert record["told"]["names"] == ["asthma", "tremor"]


def test_of_the_best_paths_one_that_suffices_answers():
    facts = [("Rosetta", "launched_on", "Ariane 5"), ("Rosetta", "orbited", "Eros"), ("Rosetta", "launched_in", "2004")]
    here, similarity = graph(*facts), Similarity(None)
    judge = open_judge(Judging(), similarity, 0.5, 0)
    paths = [Path((iri(near), iri(far)), (Step(f"urn:r:{relation}", True),)) for near, relation, far in facts]
    for asked, answer in (
        ("When was Rosetta launched?", "2004"), ("What was Rosetta launched on?", "Ariane 5"),
        ("What has Rosetta orbited?", "Eros"), ("Who sold Rosetta?", ""),
    ):  # fmt: skip
        question = judge.read(asked, [iri("Rosetta")], ["Rosetta"], "")
        around = Surroundings(here, question.topics)
        made = PathSearch(here, question, judge, similarity, around, {}, [], Widths(), Exploring(), range(1, 4), True)
        made.decide(walks.cluster_paths(paths), "topics", 1)
        assert (made.sufficient, made.answer) == (bool(answer), answer)


def test_a_branch_is_told_with_the_entities_of_all_paths_that_have_it():
    made = search()
    paths = [
        *walks.cluster_paths([path("asthma", "d1", "tremor")]),
        *walks.cluster_paths([path("asthma", "d2", "rash")]),
    ]
    made.verbalise(paths)
    (piece,) = made.pieces([paths[0].blocks[:3]], paths, whole=False)
    assert (piece.text, piece.relations) == ("asthma <-[treats]- {d1, d2}", ("treats",))
    assert (piece.begins, piece.ends) == (True, False)
    (piece,) = made.pieces([paths[0].blocks[-3:]], paths, whole=False)
    assert (piece.text, piece.begins, piece.ends) == ("d1 -[causes]-> tremor", False, True)


def test_scores_and_preferences_are_those_of_words():
    made = search()
    made.around.reach(1)
    liked = made.preferences()
    assert liked["urn:r:treats"] > 0
    scores = made.score(walks.cluster_paths([path("asthma", "d1", "tremor"), path("asthma", "d2", "rash")]))
    assert scores[0] > scores[1]
    assert set(made.texts.values()) == set(scores.tolist())


def test_nodes_whose_names_are_not_answered_are_called_by_their_iris():
    made = search()

    def fail(nodes):
        raise ServerError("down")

    made.graph.names = fail
    made.learn_names(["urn:x:d1"])
    assert made.names == {"urn:x:d1": "urn:x:d1"}
    assert made.notes == ["some names were not read: down"]
    for _ in range(2):
        made.note_bound(False)
    assert len(made.notes) == 2
