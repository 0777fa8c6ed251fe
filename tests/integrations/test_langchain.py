"""The compressor in LangChain's own hands."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

import fact_graph
import keeper
from secateur.errors import BudgetError, InputError, NumericalError
from secateur.integrations.langchain import SecateurCompressor, SecateurGraphRetriever

HTML = "<h1>Towns</h1><p>Town one lies in the north.</p><p>Town two lies in the south.</p>"
TEXT = "Of rivers: 1 < 2 holds.\n\nRiver two is long and cold.\n\nNothing else."


class Letters(Embeddings):
    """Texts by how often each letter is in them."""

    def embed_query(self, text):
        return [float(text.lower().count(letter)) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def documents():
    return [Document(HTML, metadata={"source": "a"}), Document(TEXT, metadata={"source": "b"}), Document("Other.")]


def test_documents_keep_their_metadata_and_kind():
    compressor = SecateurCompressor(budget="words=7", options={"block": 1})
    (left,) = compressor.compress_documents(documents(), "Where does town two lie, in the south?")
    assert left.page_content == "<h1>Towns</h1><p>Town two lies in the south."
    assert left.metadata["source"] == "a"
    (left,) = compressor.compress_documents(documents(), "Is river two long?")
    assert (left.page_content, left.metadata["source"]) == ("River two is long and cold.", "b")
    note, score = left.metadata["secateur"], left.metadata["relevance_score"]
    assert (note["recipe"], note["kept"], note["of"], note["score"]) == ("htmlrag", 1, 3, score)
    assert [piece["score"] for piece in note["pieces"]] == [score]
    assert score > 0
    assert documents()[0].page_content == HTML


def test_plain_documents_are_cut_by_their_own_structure_and_stay_what_they_are():
    markdown = "# Towns\n\nOf them:\n\n- Town one lies north.\n- Town two lies south."
    markdown += "\n\n| hue | size |\n|---|---|\n| red | 7 |"
    given = [
        Document(markdown),
        Document("A long text. River two is cold there. Nothing else is said."),
        Document("word"),
    ]
    compressor = SecateurCompressor(
        budget="words=17", options={"tokenizer": lambda texts: [len(text) for text in texts]}
    )
    (left,) = compressor.compress_documents(given, "Where does town two lie, in the south?")
    assert left.page_content == "# Towns\n\nOf them:\n\n- Town one lies north.\n- Town two lies south."
    small = SecateurCompressor(budget="words=5")
    assert [one.page_content for one in small.compress_documents(given, "Is river two cold?")] == [
        "River two is cold there."
    ]
    assert [one.page_content for one in small.compress_documents(given, "What word?")][-1] == "word"


def test_what_is_changed_takes_effect_or_is_refused():
    """Fields could be set, and nothing followed; unknown ones were taken without a word."""
    compressor, question = SecateurCompressor(budget="words=7", options={"block": 1}), "Is river two long?"
    assert len(compressor.compress_documents(documents(), question)) == 1
    compressor.budget = "words=2"
    assert compressor.compress_documents(documents(), question)[0].page_content == "River two"
    with pytest.raises(BudgetError, match=r"budget '512' was not understood: say tokens=512, words=400"):
        compressor.budget = "512"
    assert compressor.budget == "words=2"
    with pytest.raises(InputError, match="wanda does not prune what a model reads"):
        compressor.recipe = "wanda"
    compressor.options["blok"] = 1
    with pytest.raises(InputError, match="has no option 'blok'"):
        compressor.compress_documents(documents(), question)
    with pytest.raises(InputError, match="SecateurCompressor has no field 'budgett': did you mean 'budget'"):
        SecateurCompressor(budgett="words=7")
    with pytest.raises(InputError, match=r"no field 'embedder': a recipe's own options go into options="):
        SecateurCompressor(budget="words=7", embedder="x")
    with pytest.raises(InputError, match="needs a budget"):
        SecateurCompressor()
    with pytest.raises(BudgetError, match="say tokens=512"):
        SecateurCompressor(budget=512)
    with pytest.raises(ValueError, match="no field"):
        compressor.colour = "red"


def test_embeddings_of_langchain_rank_and_those_that_give_nan_are_refused():
    compressor = SecateurCompressor(budget="words=6", options={"embedder": Letters(), "block": 1}, strict=True)
    (left,) = compressor.compress_documents([Document("Zzz zz zzzz."), Document("Aaa aa aaaa.")], "zz z")[:1]
    assert left.page_content == "Zzz zz zzzz."
    assert left.metadata["relevance_score"] > 0.9

    class Broken(Letters):
        def embed_documents(self, texts):
            return [[float("nan")] * 26 for _ in texts]

    with pytest.raises(NumericalError, match="the encoder gives NaN"):
        SecateurCompressor(budget="words=6", options={"embedder": Broken()})


def test_without_waiting_and_a_thousand_documents_in_one_call():
    compressor = SecateurCompressor(budget="words=6", strict=True)
    many = [Document(f"This is about town{n}. It is old.", metadata={"n": n}) for n in range(1000)]
    (left,) = asyncio.run(compressor.acompress_documents(many, "What of town777?"))[:1]
    assert (left.metadata["n"], left.page_content) == (777, "This is about town777.")


def test_scores_of_the_retriever_count_where_they_are_asked_for():
    given = [
        Document(f"Town {n} is old.", metadata={"score": score}) for n, score in enumerate([float("nan"), 900, "x"])
    ]
    (left,) = SecateurCompressor(budget="words=4", prior="score").compress_documents(given, "Is a town old?")
    assert (left.page_content, left.metadata["secateur"]["retrieval_score"]) == ("Town 1 is old.", 900)


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_retriever_of_a_graph_alone_and_in_batches(recipe, tmp_path):
    (tmp_path / "graph.csv").write_text(fact_graph.CSV)
    retriever = SecateurGraphRetriever(graph=str(tmp_path / "graph.csv"), recipe=recipe, budget="words=12")
    first, *_ = found = retriever.invoke("What treats asthma?")
    assert "salbutamol" in first.page_content
    assert first.metadata["secateur"]["facts"][0][0].endswith("salbutamol")
    assert retriever.batch(["What treats asthma?"] * 2) == [found, found]
    assert asyncio.run(retriever.ainvoke("What treats asthma?")) == found
    with pytest.raises(InputError, match="htmlrag reads documents and no graph"):
        retriever.recipe = "htmlrag"
    with pytest.raises(InputError, match="no field 'grap': did you mean 'graph'"):
        SecateurGraphRetriever(grap="x", budget="words=7")
    with pytest.warns(UserWarning, match=f"{recipe} found nothing: there is no question"):
        assert retriever.invoke(" ") == []


def test_in_a_chain_behind_a_retriever():
    store = InMemoryVectorStore.from_documents(documents(), Letters())
    compressor = SecateurCompressor(budget="words=8")
    chain = RunnablePassthrough.assign(documents=lambda given: store.as_retriever().invoke(given["question"])) | (
        RunnableLambda(lambda given: compressor.compress_documents(given["documents"], given["question"]))
    )
    left = chain.invoke({"question": "Where does town one lie?"})
    assert any("Town one lies in the north" in document.page_content for document in left)
    assert sum(len(document.page_content.split()) for document in left) <= 8


def test_what_can_not_be_is_refused_when_it_is_made_and_what_fails_later_is_told():
    with pytest.raises(InputError, match="has no option 'blok'"):
        SecateurCompressor(budget="words=7", options={"blok": 1})
    with pytest.warns(UserWarning, match="left the documents as they were: there is no question"):
        assert SecateurCompressor(budget="words=7").compress_documents(documents(), " ") == documents()
    with pytest.raises(InputError, match="there is no question"):
        SecateurCompressor(budget="words=7", strict=True).compress_documents(documents(), " ")
    assert SecateurCompressor(budget="words=7").compress_documents([], "a") == []


def test_passages_in_the_order_of_their_scores_with_their_titles():
    given = [
        Document("Nothing here. Rome is old.", metadata={"title": "Of Rome", "n": 1}),
        Document("Cold rivers.", metadata={"n": 2}),
        Document("Rome lies on the Tiber. So it is.", metadata={"title": 3, "n": 3}),
    ]
    options = {"model": keeper.lexical(), "reorder": True, "tokenizer": lambda texts: [len(text) for text in texts]}
    how = {"budget": "words=100", "recipe": "provence", "options": options, "strict": True}
    left = SecateurCompressor(**how).compress_documents(given, "Rome on")
    assert [(one.page_content, one.metadata["n"]) for one in left] == [
        ("Rome lies on the Tiber.", 3), ("Rome is old.", 1),
    ]  # fmt: skip
    left = SecateurCompressor(**how, titles="title").compress_documents(given, "Rome of")
    assert [one.page_content for one in left] == ["Of Rome Rome is old.", "Rome lies on the Tiber."]
    with pytest.raises(InputError, match="htmlrag reads no titles"):
        SecateurCompressor(budget="words=7", titles="title")
