"""LlamaIndex: retrieved nodes cut to a budget in any query engine, and a retriever of a graph's facts or paths.

```python
from secateur.integrations.llamaindex import SecateurGraphRetriever, SecateurPostprocessor

pruner = SecateurPostprocessor(recipe="htmlrag", budget="tokens=2048", options={"tokenizer": "path/to/reader"})
index.as_query_engine(node_postprocessors=[pruner])
SecateurGraphRetriever("graph.csv", "words=400", recipe="kg_rag").retrieve("the question")
```
"""

from __future__ import annotations

import asyncio

from secateur.errors import MissingExtraError
from secateur.integrations.pruner_settings import NOTE, Options, PrunerSettings, Setting, describe, priors_of
from secateur.runs.pruners import GraphPruner, Kept, titles_of

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingExtraError("this needs llama-index-core: pip install 'secateur[llamaindex]'") from error

__all__ = ["SecateurGraphRetriever", "SecateurPostprocessor"]

_OWN_SCORE = "score"
"""What `prior` calls the score that stands beside a node, not in its metadata."""


class SecateurPostprocessor(PrunerSettings, BaseNodePostprocessor):
    """Cuts nodes to what answers the query; those of which nothing stays are left out, metadata stays.

    A node's score is that of this recipe. Its metadata gets `secateur`: how many pieces stay of how many, their scores,
    and the retriever's score; neither the language model nor an embedder is shown it. `prior="score"` is that score.
    `apostprocess_nodes` does the same in a thread. Errors of `secateur.prune_context` for a recipe, budget or option
    that is none are raised when it is made, or changed.
    """

    @classmethod
    def class_name(cls) -> str:
        """What the library calls it when it is written down."""
        return "SecateurPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = [one.node.get_content(metadata_mode=MetadataMode.NONE) for one in nodes]
        metadata = [one.node.metadata for one in nodes]
        scored = [{**one.node.metadata, _OWN_SCORE: one.score} for one in nodes]
        query = "" if query_bundle is None else query_bundle.query_str
        priors = priors_of(scored, self.prior, strict=self.strict)
        kept = self._refresh().prune(texts, query, titles_of(metadata, self.titles), priors)
        found = list[NodeWithScore]()
        for each in kept:
            before = nodes[each.number]
            now = before if each.uncut else NodeWithScore(node=_with_text(before.node, each, before.score))
            now.score = before.score if each.score is None else each.score
            found.append(now)
        return found


class SecateurGraphRetriever(BaseRetriever):
    """The facts or paths of a graph that answer a query, one node each, by kg_rag or paths_over_graph.

    Metadata has `secateur`, with `facts`, [subject, predicate, object, literal] as they stand in the graph; neither the
    language model nor an embedder is shown it.

    Args:
        graph: a file, a folder, the address of a SPARQL endpoint, or a graph, as `secateur.open_graph` takes it.
        budget: all facts or paths together, such as tokens=512.
        recipe: a recipe of the family context, on graphs.
        options: the recipe's own.
        strict: raise what goes wrong with a query; otherwise it is warned of, and nothing is found.
        library: what the library's own retrievers take, such as callback_manager.
    """

    def __init__(
        self,
        graph: object,
        budget: str,
        recipe: str = "kg_rag",
        options: Options | None = None,
        strict: bool = False,
        **library: Setting,
    ) -> None:
        super().__init__(**library)
        self._pruner = GraphPruner(recipe, graph, budget, strict=strict, **(options or {}))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        kept = self._pruner.prune(query_bundle.query_str)
        return [NodeWithScore(node=_with_text(TextNode(), each), score=each.score) for each in kept]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _with_text(node: BaseNode, kept: Kept, scored: float | None = None) -> object:
    """A copy of a node that says what stays, and why, which no model is to read.

    A node of any class stays of its class; only where `set_content` does not do what it should do, it becomes a text
    node with the same metadata. A Document's `text` can't be set, even by `model_copy`: its text is in a resource.
    """
    metadata = {**node.metadata, NOTE: describe(kept, scored)}
    hidden = {
        name: [*getattr(node, name), NOTE] for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    }
    copy = node.model_copy(update={"metadata": metadata, **hidden})
    copy.set_content(kept.text)
    if copy.get_content(metadata_mode=MetadataMode.NONE) == kept.text:
        return copy
    return TextNode(text=kept.text, metadata=metadata, id_=node.node_id, **hidden)
