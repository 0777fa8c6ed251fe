"""What a language model that judges paths says, and how much of it is read; choices without one."""

from __future__ import annotations

import time

import pytest

from chat_server import Scripted
from secateur.clients import chat
from secateur.methods.path_judges import Judging, ModelJudge, Piece, SimilarityJudge, open_judge
from secateur.methods.path_questions import read_question
from secateur.methods.similarity import Similarity

QUESTION = "Which drug treats asthma and causes tremor?"


def judge(reply: str) -> ModelJudge:
    return open_judge(Judging(llm=Scripted(reply)), Similarity(None), 0.5, 0)


def test_without_a_language_model_paths_are_chosen_by_the_alignment_of_relations_and_phrases():
    alone = open_judge(Judging(), Similarity(None), 0.5, 0)
    assert type(alone) is SimilarityJudge
    question = read_question(QUESTION, ["a", "b"], ["asthma", "tremor"], "")
    assert question.phrases == ("treats", "causes")
    pieces = [Piece("", relations) for relations in (("causes", "treats"), ("treats", "causes"), ("treats",))]
    assert alone.choose(question, pieces)[0] == 1
    assert alone.decide(question, [], pieces[1:2]) == (True, "")
    assert alone.decide(question, [], pieces[2:]) == (False, "")
    assert alone.propose(question, [], ["x", "tremor", "y", "asthma"])[0][0] in ("asthma", "tremor")


def test_a_relation_that_names_what_is_asked_for_answers_and_a_longer_path_does_not():
    question = read_question("Which currency is used in Chad?", ["c"], ["Chad"], "")
    pieces = [Piece("", relations) for relations in (("borders", "currency"), ("borders",), ("currency",), ("used",))]
    alone = open_judge(Judging(), Similarity(None), 0.5, 0)
    assert alone.choose(question, pieces)[:2] == [2, 3]
    assert alone.find_sufficient(question, pieces) == [2, 3]
    assert alone.find_sufficient(read_question("What is used in Chad?", ["c"], ["Chad"], ""), pieces) == [3]


@pytest.mark.parametrize(
    ("asked", "best"),
    [
        ("When was Acme 3 founded?", 1),
        ("Which year was Acme 3 founded?", 1),
        ("Who founded Acme 3?", 0),
        ("Where was Acme 3 founded?", 0),
        ("What do we know when Acme 3 was founded?", 0),  # no time is asked for: the first of equals
    ],
)
def test_a_time_has_a_number_and_a_person_or_place_has_none(asked, best):
    question = read_question(asked, ["a"], ["Acme 3"], "")
    pieces = [Piece(f"Acme 3 -[was founded]-> {name}", ("was founded",)) for name in ("Ruth", "1961")]
    alone = open_judge(Judging(), Similarity(None), 0.5, 0)
    assert alone.choose(question, pieces)[0] == best
    assert alone.choose(question, pieces[::-1])[0] == (0 if asked.startswith("What do") else 1 - best)


@pytest.mark.parametrize(
    "nonsense",
    [
        ".\n" * 50_000,
        "answer: a" + " " * 100_000 + "b | c",
        "chain" + ":" * 100_000,
        "answer" + ":" * 100_000 + "|",
        "chain: a" + " " * 100_000 + "- b - c",
        "question 1" + ". " * 50_000,
    ],
)
def test_a_long_answer_is_read_in_time_that_grows_as_it_does(nonsense, monkeypatch):
    monkeypatch.setattr(chat, "LONGEST", 10**9)
    asked, began = judge(nonsense), time.process_time()
    asked.propose(asked.read(QUESTION, ["a", "b"], ["asthma", "tremor"], ""), [], [])
    assert time.process_time() - began < 5.0


def test_what_is_read_of_an_answer():
    def reads(said):
        asked = judge(said)
        question = asked.read(QUESTION, ["a", "b"], ["asthma", "tremor"], "")
        return question.indicator, question.parts, asked.propose(question, [], ["else"])

    chain = '"asthma" - is treated by - answer(drug) - causes - "tremor"'
    assert reads(f"- **Chain**:\n  {chain}  \n- Question 1: one\n* QUESTION 2 : two")[:2] == (chain, ("one", "two"))
    assert reads("> Answer: a b  | Chain: x - y - z\n**answer** :c")[2] == [("a b", "x - y - z"), ("c", "")]
    assert reads("Answer: a | b\nAnswer:  | Chain: x")[2] == [("else", "")]
    assert reads("." * chat.LONGEST + f"\nChain: {chain}\nAnswer: a")[::2] == (QUESTION, [("else", "")])


def test_an_answer_that_can_not_be_read_is_asked_for_with_other_seeds():
    """With the same one a server says the same again."""
    model = Scripted("purple")
    found = open_judge(Judging(llm=model), Similarity(None), 0.5, 5)
    question = read_question(QUESTION, ["a", "b"], ["asthma", "tremor"], "")
    found.choose(question, [Piece("", ("treats",)), Piece("", ("causes",))])
    assert [seed for *_, seed in model.asked] == [5, 6, 7]
