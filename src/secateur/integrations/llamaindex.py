"""LlamaIndex: retrieved nodes cut to a budget, as a node post-processor of any query engine.

from secateur.integrations.llamaindex import SecateurPostprocessor

pruner = SecateurPostprocessor(recipe="htmlrag", budget="tokens=2048", options={"tokenizer": "path/to/reader"})
index.as_query_engine(node_postprocessors=[pruner])
"""

from __future__ import annotations

from typing import Any

from secateur.errors import MissingExtraError
from secateur.integrations.pruner_settings import PrunerSettings
from secateur.runs.context import titles_of

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingExtraError("this needs llama-index-core: pip install 'secateur[llamaindex]'") from error

__all__ = ["SecateurPostprocessor"]


class SecateurPostprocessor(PrunerSettings, BaseNodePostprocessor):
    """Cuts nodes to what answers the query; those of which nothing stays are left out, metadata and scores stay.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made.
    """

    @classmethod
    def class_name(cls) -> str:
        """What the library calls it when it is written down."""
        return "SecateurPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = [one.node.get_content(metadata_mode=MetadataMode.NONE) for one in nodes]
        titles = titles_of((one.node.metadata for one in nodes), self.titles)
        left = self._pruner(texts, "" if query_bundle is None else query_bundle.query_str, titles)
        return [NodeWithScore(node=_with_text(nodes[number].node, text), score=nodes[number].score)
                for number, text in left]  # fmt: skip


def _with_text(node: Any, text: str) -> object:
    """A copy of a node that says something else; what can't be told to becomes a text node with the same metadata."""
    if hasattr(node, "text"):
        return node.model_copy(update={"text": text})
    return TextNode(text=text, metadata=node.metadata, id_=node.node_id)
