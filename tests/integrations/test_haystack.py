"""The component in Haystack's own hands."""

from __future__ import annotations

import os

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

import keeper
from secateur.errors import InputError
from secateur.integrations.haystack import SecateurPruner


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
    assert left.meta == {"n": 2}
    alone = Pipeline()
    alone.add_component("pruner", SecateurPruner("words=5", options={"block": 2}))
    again = Pipeline.loads(alone.dumps())
    assert again.get_component("pruner").options == {"block": 2}


def test_what_can_not_be_is_refused_when_it_is_made():
    with pytest.raises(InputError, match="has no option 'blok'"):
        SecateurPruner("words=7", options={"blok": 1})


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
