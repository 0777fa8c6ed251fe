"""The post-processor in LlamaIndex's own hands."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)

import fact_graph
import keeper
from secateur.errors import InputError
from secateur.integrations.llamaindex import SecateurGraphRetriever, SecateurPostprocessor


def test_nodes_keep_metadata_and_names_and_have_a_score_of_their_own():
    nodes = [
        NodeWithScore(node=TextNode(text="<p>Town one is big.</p><p>Town two is small.</p>", id_="x"), score=0.5),
        NodeWithScore(node=TextNode(text="Nothing at all.", metadata={"k": 1}), score=0.4),
        NodeWithScore(node=ImageNode(text="A picture of town nine."), score=0.3),
    ]
    pruner = SecateurPostprocessor(budget="words=4", options={"block": 1})
    (left,) = pruner.postprocess_nodes(nodes, query_bundle=QueryBundle("town two small"))
    assert (left.node.get_content(), left.node.node_id) == ("<p>Town two is small.", "x")
    note = left.node.metadata["secateur"]
    assert (note["score"], note["retrieval_score"], note["kept"], note["of"]) == (left.score, 0.5, 1, 2)
    assert "secateur" not in left.node.get_content(MetadataMode.LLM) + left.node.get_content(MetadataMode.EMBED)
    assert "Town one" in nodes[0].node.get_content()
    (left,) = SecateurPostprocessor(budget="words=5").postprocess_nodes(nodes, query_str="picture nine")
    assert left.node.get_content() == "A picture of town nine."


@pytest.mark.parametrize("kind", [Document, ImageDocument, Node, TextNode, ImageNode, IndexNode])
def test_a_node_of_each_class_is_cut_and_stays_of_its_class(kind):
    text = "<p>Town one is big.</p><p>Town two is small.</p>"
    own = {"text_resource": MediaResource(text=text)} if kind is Node else {"text": text}
    node = kind(**own, **({"index_id": "i"} if kind is IndexNode else {}), id_="x", metadata={"k": 1})
    pruner = SecateurPostprocessor(budget="words=4", options={"block": 1}, strict=True)
    (left,) = pruner.postprocess_nodes([NodeWithScore(node=node, score=0.5)], query_str="town two small")
    assert (type(left.node), left.node.node_id) == (kind, "x")
    assert left.node.get_content(metadata_mode=MetadataMode.NONE) == "<p>Town two is small."
    assert (left.node.metadata["k"], left.node.metadata["secateur"]["kept"]) == (1, 1)
    assert node.get_content(metadata_mode=MetadataMode.NONE) == text


def test_in_a_query_engine():
    index = SummaryIndex.from_documents([Document(text="Rome lies on the Tiber."), Document(text="Paris is far away.")])
    pruner = SecateurPostprocessor(budget="words=5")
    answer = index.as_query_engine(llm=MockLLM(), node_postprocessors=[pruner]).query("Which river does Rome lie on?")
    assert [one.node.get_content() for one in answer.source_nodes] == ["Rome lies on the Tiber."]
    assert "Tiber" in str(answer)
    assert "Paris" not in str(answer)


def test_what_can_not_be_is_refused_when_it_is_made():
    with pytest.raises(InputError, match="has no option 'blok'"):
        SecateurPostprocessor(budget="words=7", options={"blok": 1})
    assert SecateurPostprocessor.class_name() == "SecateurPostprocessor"
    assert SecateurPostprocessor(budget="words=7").to_dict()["budget"] == "words=7"


def test_passages_in_the_order_of_their_scores_with_their_titles():
    texts = ["Nothing here. Rome is old.", "Cold rivers.", "Rome lies on the Tiber. So it is."]
    given = [NodeWithScore(node=TextNode(text=text, metadata={"n": n} | ({} if n else {"title": "Of Rome"})), score=n)
             for n, text in enumerate(texts)]  # fmt: skip
    options = {"model": keeper.lexical(), "reorder": True, "tokenizer": lambda texts: [len(text) for text in texts]}
    how = {"budget": "words=100", "recipe": "provence", "options": options, "strict": True}
    left = SecateurPostprocessor(**how).postprocess_nodes(given, query_str="Rome on")
    assert [(one.node.get_content(), one.score) for one in left] == [
        ("Rome lies on the Tiber.", 2.0),  # what is judged of them now, not the retriever's scores
        ("Rome is old.", 1.0),
    ]
    left = SecateurPostprocessor(**how, titles="title").postprocess_nodes(given, query_str="Rome of")
    assert [one.node.get_content() for one in left] == ["Of Rome Rome is old.", "Rome lies on the Tiber."]
    with pytest.raises(InputError, match="htmlrag reads no titles"):
        SecateurPostprocessor(budget="words=7", titles="title")


def test_without_waiting_with_changes_and_scores_of_the_retriever():
    nodes = [NodeWithScore(node=TextNode(text=f"Town {n} is old."), score=score) for n, score in enumerate([0.1, 90.0])]
    pruner = SecateurPostprocessor(budget="words=4", prior="score")
    (left,) = asyncio.run(pruner.apostprocess_nodes(nodes, query_str="Is a town old?"))
    assert left.node.get_content() == "Town 1 is old."
    pruner.budget = "words=9"
    assert len(pruner.postprocess_nodes(nodes, query_str="Is a town old?")) == 2
    with pytest.raises(InputError, match="has no field 'top_n'"):
        SecateurPostprocessor(budget="words=4", top_n=3)
    again = SecateurPostprocessor.from_dict(pruner.to_dict())
    assert (again.budget, again.prior) == ("words=9", "score")
    pruner.prior = "scroe"
    with pytest.warns(UserWarning, match="prior='scroe': no document has a number there: did you mean 'score'"):
        assert len(pruner.postprocess_nodes(nodes, query_str="Is a town old?")) == 2
    pruner.strict = True
    with pytest.raises(InputError, match="prior='scroe'"):
        pruner.postprocess_nodes(nodes, query_str="Is a town old?")


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_retriever_of_a_graph(recipe, tmp_path):
    (tmp_path / "graph.csv").write_text(fact_graph.CSV)
    retriever = SecateurGraphRetriever(str(tmp_path / "graph.csv"), "words=12", recipe)
    first, *_ = found = retriever.retrieve("What treats asthma?")
    assert "salbutamol" in first.node.get_content()
    assert first.node.metadata["secateur"]["facts"][0][0].endswith("salbutamol")
    assert "secateur" not in first.node.get_content(MetadataMode.LLM)
    later = asyncio.run(retriever.aretrieve("What treats asthma?"))
    assert [one.node.get_content() for one in later] == [one.node.get_content() for one in found]
