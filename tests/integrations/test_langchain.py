"""The compressor in LangChain's own hands."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

import keeper
from secateur.errors import InputError
from secateur.integrations.langchain import SecateurCompressor

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
    assert left.metadata == {"source": "a"}
    (left,) = compressor.compress_documents(documents(), "Is river two long?")
    assert (left.page_content, left.metadata) == ("River two is long and cold.", {"source": "b"})
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
