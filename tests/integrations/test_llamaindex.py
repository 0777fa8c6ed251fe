"""The post-processor in LlamaIndex's own hands."""

from __future__ import annotations

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode

import keeper
from secateur.errors import InputError
from secateur.integrations.llamaindex import SecateurPostprocessor


def test_nodes_keep_metadata_scores_and_names():
    nodes = [
        NodeWithScore(node=TextNode(text="<p>Town one is big.</p><p>Town two is small.</p>", id_="x"), score=0.5),
        NodeWithScore(node=TextNode(text="Nothing at all.", metadata={"k": 1}), score=0.4),
        NodeWithScore(node=ImageNode(text="A picture of town nine."), score=0.3),
    ]
    pruner = SecateurPostprocessor(budget="words=4", options={"block": 1})
    (left,) = pruner.postprocess_nodes(nodes, query_bundle=QueryBundle("town two small"))
    assert (left.node.get_content(), left.score, left.node.node_id) == ("<p>Town two is small.", 0.5, "x")
    assert "Town one" in nodes[0].node.get_content()
    (left,) = SecateurPostprocessor(budget="words=5").postprocess_nodes(nodes, query_str="picture nine")
    assert left.node.get_content() == "A picture of town nine."


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
        ("Rome lies on the Tiber.", 2),
        ("Rome is old.", 0),
    ]
    left = SecateurPostprocessor(**how, titles="title").postprocess_nodes(given, query_str="Rome of")
    assert [one.node.get_content() for one in left] == ["Of Rome Rome is old.", "Rome lies on the Tiber."]
    with pytest.raises(InputError, match="htmlrag reads no titles"):
        SecateurPostprocessor(budget="words=7", titles="title")
