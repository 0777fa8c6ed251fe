"""The component in Haystack's own hands."""

from __future__ import annotations

import asyncio
import os

import networkx
import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

import fact_graph
import keeper
from secateur.errors import BudgetError, InputError
from secateur.integrations.haystack import SecateurGraphRetriever, SecateurPruner


def documents():
    return [
        Document(content="<h2>Rome</h2><p>Rome lies on the Tiber.</p><p>It is old.</p>", meta={"n": 1}),
        Document(content="Paris is on the Seine.", meta={"n": 2}),
        Document(content=None, meta={"n": 3}),
    ]


def test_documents_keep_their_metadata_and_those_without_text_stay():
    left = SecateurPruner("words=6", options={"block": 1}).run("On what does Rome lie?", documents())["documents"]
    assert [document.meta["n"] for document in left] == [1, 3]
    assert "Rome lies on the Tiber." in left[0].content
    assert left[1].content is None


def test_in_a_pipeline_that_was_written_down_and_read_again():
    store = InMemoryDocumentStore()
    store.write_documents([one for one in documents() if one.content])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    pipeline.add_component("pruner", SecateurPruner("words=5"))
    pipeline.connect("retriever.documents", "pruner.documents")
    question = "Is Paris on the Seine?"
    given = {"retriever": {"query": question}, "pruner": {"query": question}}
    (left,) = pipeline.run(given)["pruner"]["documents"]
    assert left.content == "Paris is on the Seine."
    note = left.meta.pop("secateur")
    assert (left.meta, note["kept"], note["of"], note["score"]) == ({"n": 2}, 1, 1, left.score)
    assert note["retrieval_score"] != left.score > 0
    alone = Pipeline()
    alone.add_component("pruner", SecateurPruner("words=5", options={"block": 2}))
    again = Pipeline.loads(alone.dumps())
    assert again.get_component("pruner").options == {"block": 2}


def test_what_can_not_be_is_refused_when_it_is_made():
    with pytest.raises(InputError, match="has no option 'blok'"):
        SecateurPruner("words=7", options={"blok": 1})
    with pytest.raises(BudgetError, match="say tokens=512"):
        SecateurPruner("512")
    pruner = SecateurPruner("words=7")
    pruner.options["blok"] = 1  # what is changed takes effect on the next run
    with pytest.raises(InputError, match="has no option 'blok'"):
        pruner.run("On what does Rome lie?", documents())


def test_models_are_read_when_a_pipeline_is_warmed_up():
    """They were read where the pipeline was made, to be drawn or written down perhaps."""
    pipeline, read = Pipeline(), []

    def embed(texts):
        read.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    pruner = SecateurPruner("words=5", options={"embedder": embed}, strict=True)
    pipeline.add_component("pruner", pruner)
    assert read == []
    pipeline.warm_up()
    many = len(read)
    assert many > 0
    pipeline.warm_up()
    assert len(read) == many
    wrong = SecateurPruner("words=5", options={"embedder": "no/such/encoder"})
    with pytest.raises(InputError, match="no folder here, nor found on the Hub"):
        wrong.warm_up()


@component
class Letters:
    """An embedder of Haystack: texts by how often each letter is in them."""

    def __init__(self, letters: str = "abcdefghijklmnopqrstuvwxyz", wrong: bool = False):
        self.letters, self.wrong, self.warm = letters, wrong, 0

    def warm_up(self):
        self.warm += 1

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]):
        for one in documents:
            one.embedding = [1.0 * one.content.lower().count(letter) + 0.01 for letter in self.letters]
        return {"documents": documents[: 0 if self.wrong else None]}


@component
class OfTexts:
    """An embedder of one text."""

    @component.output_types(embedding=list[float])
    def run(self, text: str):
        return {"embedding": [1.0 * text.lower().count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"]}


@pytest.mark.parametrize("kind", [Letters, OfTexts])
def test_embedders_of_haystack_rank(kind):
    given = [Document(content="Zzz zz zzzz."), Document(content="Aaa aa aaaa.")]
    pruner = SecateurPruner("words=3", options={"embedder": kind(), "block": 1}, strict=True)
    (left,) = pruner.run("zz z", given)["documents"]
    assert left.content == "Zzz zz zzzz."
    assert left.score > 0.9


def test_an_embedder_is_written_down_with_the_pipeline_and_one_that_is_none_is_refused(monkeypatch):
    pruner = SecateurPruner("words=3", options={"embedder": Letters("abc"), "block": 1})
    written = pruner.to_dict()["init_parameters"]["options"]["embedder"]
    assert written["init_parameters"] == {"letters": "abc", "wrong": False}
    monkeypatch.setattr("secateur.integrations.haystack.import_class_by_name", lambda name: Letters)
    monkeypatch.setattr(Letters, "from_dict", lambda data: Letters(**data["init_parameters"]), raising=False)
    again = SecateurPruner.from_dict(pruner.to_dict())
    assert again.options["embedder"].letters == "abc"
    with pytest.raises(InputError, match="embedder InMemoryBM25Retriever takes neither documents nor text"):
        SecateurPruner("words=3", options={"embedder": InMemoryBM25Retriever(InMemoryDocumentStore())})
    wrong = SecateurPruner("words=3", options={"embedder": Letters(wrong=True)})
    with pytest.raises(InputError, match="gives no vector of one length"):
        wrong.warm_up()


def test_a_run_without_waiting():
    pruner = SecateurPruner("words=6", options={"block": 1})
    given = "On what does Rome lie?", documents()
    assert asyncio.run(pruner.run_async(*given)) == pruner.run(*given)


def test_scores_of_the_retriever_count_where_they_are_asked_for_and_nan_ranks_last():
    given = [
        Document(content=f"Town {n} is old.", score=score) for n, score in enumerate([float("nan"), 0.1, 90, None])
    ]
    (left,) = SecateurPruner("words=4", prior="score", strict=True).run("Is a town old?", given)["documents"]
    assert (left.content, left.meta["secateur"]["retrieval_score"]) == ("Town 2 is old.", 90)
    with pytest.raises(InputError, match="provence reads no scores of a retriever"):
        SecateurPruner("words=4", "provence", {"model": keeper.lexical()}, prior="score")


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_retriever_of_a_graph_in_a_pipeline_that_was_written_down(recipe, tmp_path):
    (tmp_path / "graph.csv").write_text(fact_graph.CSV)
    pipeline = Pipeline()
    pipeline.add_component("facts", SecateurGraphRetriever(str(tmp_path / "graph.csv"), "words=12", recipe))
    pipeline = Pipeline.loads(pipeline.dumps())
    found = pipeline.run({"facts": {"query": "What treats asthma?"}})["facts"]["documents"]
    assert "salbutamol" in found[0].content
    assert len({one.id for one in found}) == len(found)
    assert found[0].meta["secateur"]["recipe"] == recipe
    alone = pipeline.get_component("facts")
    assert asyncio.run(alone.run_async("What treats asthma?"))["documents"] == found


def test_a_graph_in_memory_is_not_written_down(tmp_path):
    (tmp_path / "graph.csv").write_text(fact_graph.CSV)
    pipeline = Pipeline()
    pipeline.add_component("facts", SecateurGraphRetriever(networkx.DiGraph([("a", "b")]), "words=12"))
    with pytest.raises(InputError, match="graph is a DiGraph in memory, and can't be written down: give its file"):
        pipeline.dumps()
    written = SecateurGraphRetriever(tmp_path / "graph.csv", "words=12").to_dict()
    assert written["init_parameters"]["graph"] == str(tmp_path / "graph.csv")


def test_passages_in_the_order_of_their_scores_with_their_titles():
    given = [
        Document(content="Nothing here. Rome is old.", meta={"title": "Of Rome", "n": 1}),
        Document(content=None, meta={"n": 2}),
        Document(content="Cold rivers.", meta={"n": 3}),
        Document(content="Rome lies on the Tiber. So it is.", meta={"n": 4}),
    ]
    options = {"model": keeper.lexical(), "reorder": True, "tokenizer": lambda texts: [len(text) for text in texts]}
    how = {"budget": "words=100", "recipe": "provence", "options": options, "strict": True}
    left = SecateurPruner(**how).run("Rome on", given)["documents"]
    assert [(one.content, one.meta["n"]) for one in left] == [
        ("Rome lies on the Tiber.", 4), (None, 2), ("Rome is old.", 1),
    ]  # fmt: skip
    left = SecateurPruner(**how, titles="title").run("Rome of", given)["documents"]
    assert [one.content for one in left] == ["Of Rome Rome is old.", None, "Rome lies on the Tiber."]
    twice = SecateurPruner(**how).run("Rome on", [given[0], given[0]])["documents"]
    assert [one.content for one in twice] == ["Rome is old."] * 2


def test_titles_are_written_down_and_refused_where_nobody_reads_them():
    with pytest.raises(InputError, match="htmlrag reads no titles"):
        SecateurPruner("words=7", titles="title")
    pruner = SecateurPruner("words=7", "provence", {"model": keeper.lexical()}, titles="title")
    assert pruner.to_dict()["init_parameters"]["titles"] == "title"
