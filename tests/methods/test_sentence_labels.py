"""Labels of sentences: given, cited by a language model, or by the answers they say; passages from a corpus."""

from __future__ import annotations

import threading

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from chat_server import Scripted, say, served
from keeper import WORDS, sentence, taught
from secateur._utils.rundir import Run, Transient
from secateur.clients import chat
from secateur.clients.chat import Local, Meter
from secateur.errors import DataError, RunError, ServerError
from secateur.methods import sentence_labels as module
from secateur.methods.sentence_labels import find_passages, join_labels, label_pairs

ask_labels = module._ask_labels


def test_labels_are_the_sentences_that_a_language_model_cites():
    rows = [{"question": "q", "documents": ["One. Two. Three."]} for _ in range(5)]
    model = Scripted("It is [1].", "No answer", "nothing cited", "[0]", "See [0, 2] and [1].")
    pairs, lost = label_pairs(rows, Transient(), model, "answer", "en")
    assert [pair["kept"] for pair in pairs] == [[1], [], [0], [0, 1, 2]]
    assert lost == 1
    assert model.asked[0][0].endswith("Question: q\n\nSentences:\n[0] One.\n[1] Two.\n[2] Three.\n")
    prompts = {
        task: ask_labels(Scripted("[1]"), "q", [(False, ["a"])], text) and text for task, text in module.ORACLES.items()
    }
    assert len(set(prompts.values())) == 3


def test_a_first_sentence_is_dropped_only_where_it_is_a_title():
    documents = ["Alone and right.", "Right. Not this.", "Named below. Not this."]
    row = {"question": "q", "documents": documents, "titles": [None, "", "A title"]}
    pairs, lost = label_pairs([row], Transient(), Scripted("[0]", "[0]", "[0]"), "answer", "en")
    assert [(pair["sentences"][0], pair["kept"]) for pair in pairs] == [("Alone and right.", [0]), ("Right.", [0])]
    assert lost == 1
    untitled = {"question": "q", "documents": documents[:1]}
    assert label_pairs([untitled], Transient(), Scripted("[0]"), "answer", "en")[0][0]["kept"] == [0]


def test_labels_over_http_are_those_that_are_cited():
    told = ["It is so [0].", "So [0, 1].", "No answer"]
    together = threading.Barrier(3, timeout=30)  # all of them are asked at once

    def answer(body, headers):
        together.wait()
        (number,) = (n for n in range(3) if f"Question: q{n}" in body["messages"][0]["content"])
        return say({"choices": [{"message": {"content": told[number]}}]})

    with served(answer) as url:
        rows = [{"question": f"q{n}", "documents": ["One. Two."]} for n in range(3)]
        pairs, lost = label_pairs(rows, Transient(), chat.open_model(url, "x"), "answer", "en")
    assert [pair["kept"] for pair in pairs] == [[0], [0, 1], []]
    assert lost == 0


def test_labels_outlive_a_stop(tmp_path):
    rows = [{"question": f"q{i}", "documents": ["One. Two."]} for i in range(3)]
    model = Scripted("[1]")
    model.meter = Meter(most_calls=2)
    with pytest.raises(RunError, match="2 rows have their labels"), Run.open(tmp_path / "run", {}) as into:
        label_pairs(rows, into, model, "answer", "en")
    with Run.open(tmp_path / "run", {}) as into:
        again = Scripted("[1]")
        pairs, _ = label_pairs(rows, into, again, "answer", "en")
    assert len(again.asked) == 1
    assert len(pairs) == 3


def test_a_long_passage_is_shown_as_far_as_is_read():
    model = Scripted("[1]", "[1]")
    ask_labels(model, "q", [(False, ["word " * 1500] * 9), (False, ["字" * 800] * 9)], "task")
    assert [asked.count("\n[") for asked, *_ in model.asked] == [1, 3]
    assert ask_labels(model, "q", [(False, ["word " * 3000]), (False, [])], "task") == [
        None,
        None,
    ]  # nothing to ask about


def test_a_local_model_is_shown_as_many_tokens_as_it_reads():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=260, max_position_embeddings=600, **shape)).eval()
    local, asked = Local(model, tiny.letters()), []
    local.ask = lambda question, **how: asked.append(question) or Local.ask(local, question, **how)
    assert ask_labels(local, "q", [(False, ["字" * 30] * 9), (False, ["字" * 300])], "task") == [None, None]
    assert local.meter.calls == 1
    many = asked[0].count("\n[")
    assert 0 < many < 9
    assert 0 <= 600 - module.SAID - len(local.prompt(asked[0])) < len(local.prompt("[0] " + "字" * 30))


def test_a_passage_that_can_not_be_read_loses_its_label_alone():
    def answer(body, headers):
        question = body["messages"][0]["content"]
        return say("too long", 400) if "Long" in question else say({"choices": [{"message": {"content": "So [1]."}}]})

    documents = [["One. Two.", "One. Long."], ["One. Two. Three."]]
    rows = [{"question": "q", "documents": each} for each in documents]
    with served(answer) as url:
        pairs, lost = label_pairs(rows, Transient(), chat.open_model(url, "x"), "answer", "en")
    assert [len(pair["sentences"]) for pair in pairs] == [2, 3]
    assert lost == 1
    with served(lambda body, headers: say("no such thing", 400)) as url, pytest.raises(ServerError, match="HTTP 400"):
        label_pairs(rows, Transient(), chat.open_model(url, "x"), "answer", "en")


def test_labels_from_answers():
    rows = [{"question": "q", "documents": ["The Ox is red.\nBlue, is the ox!"], "answers": ["blue is"]}]
    pairs, _ = label_pairs(rows, Transient(), None, "answer", "en")
    assert [pair["kept"] for pair in pairs] == [[1]]
    assert label_pairs([{**rows[0], "answers": None}], Transient(), None, "answer", "en") == ([], 1)


def test_labels_that_are_given_sentence_by_sentence():
    rows = [
        {"question": "q", "sentences": ["One.", " ", "Two. And three."], "labels": [0, 1, 1]},
        {"question": "q", "sentences": [["One."], ["Two.", "Three."]], "labels": [[True], [0, 0]], "documents": []},
        {"question": "q", "documents": ["One."], "kept": [[0]]},
    ]
    pairs, lost = label_pairs(join_labels(rows), Transient(), None, "answer", "en")
    assert [(pair["sentences"], pair["kept"]) for pair in pairs] == [
        (["One.", "Two. And three."], [1]),
        (["One."], [0]),
        (["Two.", "Three."], []),
        (["One."], [0]),
    ]
    assert lost == 0
    for sentences, labels in (
        (["a", "b"], [1]), (["a"], None), (["a"], [2]), (["a"], ["1"]), ("a", [1]), ([["a"]], [1]), (["a", 3], [0, 1]),
        (["ab"], 1), ([["a"], ["b"]], [[1]]), (["a", ["b"]], [[0], [1]]),
    ):  # fmt: skip
        with pytest.raises(DataError, match="row 2: give sentences, a list of texts, and labels"):
            join_labels([rows[0], {"question": "q", "sentences": sentences, "labels": labels}])
    with pytest.raises(DataError, match="row 1 has sentences beside passages"):
        join_labels([{**rows[0], "documents": ["One."]}])


def test_scores_that_a_row_brings_are_those_it_is_held_to():
    row = {"question": sentence(1), "documents": [sentence(2)], "kept": [[]], "scores": [3.0]}
    pairs, _ = label_pairs([row], Transient(), None, "answer", "en")
    assert pairs[0]["score"] == 3.0


def test_passages_are_found_for_questions_without():
    corpus = [f"Title {i}. " + " ".join(f"The {WORDS[i]} number {j} stands here." for j in range(12)) for i in range(6)]
    rows = [{"question": f"Where is {WORDS[4]}?"}, {"question": "x", "documents": ["own"]}]
    found = find_passages(rows, corpus, Transient(), taught(), "en", 0)
    assert len(found[0]["documents"]) == 5
    assert found[0]["titles"][0] == "Title 4."
    assert all(1 <= text.count("stands here.") <= 10 for text in found[0]["documents"])
    assert found[1] == rows[1]
    again = find_passages(rows, corpus, Transient(), taught(), "en", 0)
    assert found == again
    with pytest.raises(DataError, match="holds no passage"):
        find_passages(rows, ["", "Alone."], Transient(), taught(), "en", 0)


def test_what_is_taught_of_sentences_is_one_probability_for_each():
    row = {"question": "a", "documents": [["One is.", "Two is."], ["No."]], "kept": [[0], []]}
    pairs, _ = label_pairs([{**row, "targets": [[0.75, 0.25], None]}], Transient(), None, "answer", "en")
    assert [pair.get("targets") for pair in pairs] == [[0.75, 0.25], None]
    for wrong in ([[0.5], None], [[0.5, 1.5], None], [[0.5, 0.5]]):
        with pytest.raises(DataError, match=r"row 1: give targets, for each passage a number from 0 to 1"):
            label_pairs([{**row, "targets": wrong}], Transient(), None, "answer", "en")
