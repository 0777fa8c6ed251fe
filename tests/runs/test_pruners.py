"""Recipes in pipelines: checked once, for many questions, with what stays of each document and why."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

import fact_graph
import keeper
import tiny
from runs.pages import ASKED, PARTS
from secateur.errors import InputError
from secateur.runs.context import prune_context
from secateur.runs.pruners import GraphPruner, Pruner, share_embedder, titles_of

TOWNS = [f"<p>Town{n} is old. Its mayor is person{n}.</p><p>Nothing else.</p>" for n in range(3)]


def out_of_memory(texts):
    if any("memory" in text for text in texts):
        raise RuntimeError("out of\n  memory")
    return np.ones((len(texts), 2))


def test_a_pipeline_gets_back_what_it_gave_and_is_told_why():
    prune = Pruner("htmlrag", "words=2", embedder=out_of_memory)
    with pytest.warns(UserWarning, match="left the documents as they were: unexpected RuntimeError: out of memory"):
        assert prune(["much memory", "a"], "b") == [(0, "much memory"), (1, "a")]
    with pytest.warns(UserWarning, match="documents are a list of texts, and here is NoneType"):
        assert prune(["a", None], "b") == [(0, "a"), (1, None)]
    with pytest.warns(UserWarning, match="documents are a list of texts, and here is None"):
        assert prune(None, "b") == []
    with pytest.warns(UserWarning, match="there is no question"):
        assert prune(["a"], None) == [(0, "a")]
    strict = Pruner("htmlrag", "words=2", embedder=out_of_memory, strict=True)
    with pytest.raises(RuntimeError, match=r"out of\s+memory"):
        strict(["memory"], "b")
    for documents, question in ([None], "b"), (None, "b"), (["a"], None):
        with pytest.raises(InputError):
            strict(documents, question)


def test_one_text_is_no_list_of_texts():
    one_list = r"are a list, and here is one text, .*: put it into brackets"
    for strict in (True, False):
        prune = Pruner("htmlrag", "words=2", strict=strict)
        for arguments in ("One long text of more letters.", "b"), (b"a", "b"), (["a", "b"], "b", "ab"):
            with pytest.raises(InputError, match=one_list):
                prune.prune(*arguments)
            with pytest.raises(InputError, match=one_list):
                asyncio.run(prune.aprune(*arguments))
            with pytest.raises(InputError, match=one_list):
                prune.prune_many([arguments])
        with pytest.raises(InputError, match=one_list):
            prune("a", "b")
        with pytest.raises(InputError, match=one_list):
            prune.prune_many("ab")


def test_a_pruner_of_passages_for_pipelines(pruner):
    prune = Pruner("provence", "tokens=100%", model=pruner)
    assert prune(["\n\n".join(PARTS), PARTS[0], f"<p>{PARTS[1]}</p>"], ASKED) == [(0, PARTS[1]), (2, PARTS[1])]


def test_what_stays_has_a_score_and_reasons():
    prune = Pruner("htmlrag", "words=12", block=4, strict=True)
    (kept,) = (each for each in prune.prune(TOWNS, "Who is the mayor of town1, person1?") if each.number == 1)
    assert kept.reasons["of"] == 2
    assert kept.score == max(piece["score"] for piece in kept.reasons["pieces"]) > 0
    hidden = [f'{TOWNS[0]}<p hidden="">Not for you.</p>']
    assert "3 words that the page hides" in prune.prune(hidden, "town0")[0].reasons["notes"][0]
    with pytest.warns(UserWarning, match="no question"):
        (kept,) = Pruner("htmlrag", "words=12").prune(TOWNS[:1], " ")
    assert (kept.uncut, kept.score, kept.text) == (True, None, TOWNS[0])


def test_documents_have_the_score_of_the_reranker_where_the_model_ranks():
    model = keeper.lexical()
    texts = ["Nothing here. Rome is old.", "Rome lies on the Tiber. So it is."]
    count = {"tokenizer": lambda texts: [len(text) for text in texts]}
    kept = Pruner("provence", "words=100", model=model, reorder=True, **count).prune(texts, "Rome on")
    assert [(each.number, each.score) for each in kept] == [(1, 2.0), (0, 1.0)]
    model.settings = dataclasses.replace(model.settings, ranks=False)
    kept = Pruner("provence", "words=100", model=model, **count).prune(texts, "Rome on")
    assert [each.score for each in kept] == [1.0, 1.0]  # of the sentences that stay


def test_many_calls_at_once_and_without_waiting_are_encoded_together():
    calls = []

    def embed(texts):
        calls.append(list(texts))
        return np.array(
            [[text.lower().count(letter) + 0.1 for letter in "abcdefghijklmnop1234567890"] for text in texts]
        )

    prune = Pruner("htmlrag", "words=4", block=4, embedder=embed, strict=True)
    asked = [([f"Town{n} is old.", f"Person{n} is young."], f"Is town{n} old?") for n in range(8)]
    alone = [prune.prune(*call) for call in asked]
    assert prune.prune_many(asked) == alone
    assert asyncio.run(prune.aprune(*asked[3])) == alone[3]
    read = [text for call in calls for text in call]
    assert len(read) == len(set(read))  # each text once, for all calls
    with pytest.raises(InputError, match="workers=0"):
        prune.prune_many(asked, workers=0)


def test_scores_of_a_retriever_rank_whatever_their_scale_and_nan_is_last():
    texts = [f"Town {n} is old." for n in range(3)]
    prune = Pruner("htmlrag", "words=4", ranked=True, strict=True)
    for prior, best in (([0.1, 0.2, float("nan")], 1), ([-900, None, -1e300], 0), ([1, 2, 1e308], 2)):
        assert [each.number for each in prune.prune(texts, "Is a town old?", prior=prior)] == [best]
    with pytest.raises(InputError, match="prior has 2 scores, and there are 3 documents"):
        prune.prune(texts, "Is a town old?", prior=[1, 2])
    with pytest.raises(InputError, match="provence reads no scores of a retriever: leave prior out"):
        Pruner("provence", "words=4", model=keeper.lexical(), ranked=True)


def test_models_may_wait_for_the_first_call():
    prune = Pruner("htmlrag", "words=4", embedder="no/such/encoder", warm=False, strict=True)
    with pytest.raises(InputError, match="nor found on the Hub"):
        prune.prune(["a"], "b")
    with pytest.raises(InputError, match="has no option"):
        Pruner("htmlrag", "words=4", warm=False, blok=1)
    assert share_embedder({"embedder": "", "block": 1}) == {"embedder": "", "block": 1}


@pytest.mark.parametrize("recipe", ["htmlrag", "kg_rag", "paths_over_graph"])
def test_a_precision_is_that_of_the_embedder_which_all_threads_share(recipe, graph, tmp_path):
    tiny.folder("bert", tmp_path / "bert", sentence=True)
    options = {"embedder": str(tmp_path / "bert"), "precision": "bfloat16"}
    question, documents = "What treats asthma?", ["salbutamol treats asthma"]
    if recipe == "htmlrag":
        prune = Pruner(recipe, "words=4", strict=True, **options)
        assert prune.prune(documents, question)
    else:
        prune = GraphPruner(recipe, str(graph), "words=12", strict=True, **options)
        prune.prune(question)
    shared = prune._job.options["embedder"].inner.args[0].args[0]
    assert next(shared.parameters()).dtype == torch.bfloat16
    read = documents if recipe == "htmlrag" else str(graph)
    assert prune_context(recipe, read, question, "words=12", **options).after
    with pytest.raises(InputError, match=f"option precision='fp8' of {recipe}: input should be '', 'float32' or"):
        prune_context(recipe, read, question, "words=12", embedder=str(tmp_path / "bert"), precision="fp8")
    with pytest.raises(InputError, match="precision=bfloat16: there is no embedder"):
        prune_context(recipe, read, question, "words=12", precision="bfloat16")


@pytest.mark.parametrize("strict", [True, False])
def test_where_nothing_of_a_graph_stays_a_warning_says_why(tmp_path, strict):
    (tmp_path / "graph.csv").write_text(fact_graph.CSV)
    ask = GraphPruner("kg_rag", str(tmp_path / "graph.csv"), "words=1", strict=strict)
    with pytest.warns(UserWarning, match="kg_rag kept nothing for the question: .* longer than the whole budget"):
        assert ask.prune("What treats asthma?") == []
    with pytest.warns(UserWarning, match="kg_rag kept nothing for the question: nothing in the graph was found"):
        assert ask.prune("Who wrote it?") == []


def test_titles_are_texts_of_the_metadata():
    assert titles_of([{"t": "A"}, {"t": 3}, None, {"t": " "}], "t") == ["A", None, None, None]
    assert titles_of([{"t": "A"}], "") is None


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_graph_in_pipelines(recipe, graph):
    ask = GraphPruner(recipe, str(graph), "words=12", strict=True)
    first, *_ = found = ask.prune("What treats asthma?")
    assert "salbutamol" in first.text
    assert first.score is not None
    assert first.reasons["facts"][0][1].endswith("treats")
    assert [each.number for each in found] == list(range(len(found)))
    assert sum(len(each.text.split()) for each in found) <= 12
    assert ask.prune_many(["What treats asthma?"] * 3) == [found] * 3
    assert asyncio.run(ask.aprune("What treats asthma?")) == found
    with pytest.raises(InputError, match="there is no question"):
        ask.prune(" ")
    with pytest.raises(InputError, match=r"questions are a list, and here is one text, 'What treats asthma\?'"):
        ask.prune_many("What treats asthma?")
    with pytest.warns(UserWarning, match=f"{recipe} found nothing: there is no question"):
        assert GraphPruner(recipe, graph, "words=12").prune("") == []
    with pytest.raises(InputError, match=r"reads a graph and no documents, which .*: take htmlrag or provence, or a"):
        Pruner(recipe, "words=3")
    with pytest.raises(InputError, match="reads documents and no graph"):
        GraphPruner("htmlrag", graph, "words=3")
    with pytest.raises(InputError, match="give its file, folder or address"):
        GraphPruner(recipe, "", "words=3")
