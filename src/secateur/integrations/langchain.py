"""LangChain: retrieved documents cut to a budget, in any chain, and a retriever of a graph's facts or paths.

```python
from secateur.integrations.langchain import SecateurCompressor, SecateurGraphRetriever

compressor = SecateurCompressor(recipe="htmlrag", budget="tokens=2048", options={"tokenizer": "path/to/reader"})
compressor.compress_documents(documents, "the question")
SecateurGraphRetriever(graph="graph.csv", recipe="kg_rag", budget="words=400").invoke("the question")
```
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import MissingExtraError
from secateur.integrations.pruner_settings import NOTE, GraphSettings, PrunerSettings, describe, priors_of
from secateur.runs.pruners import titles_of

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError("this needs langchain-core: pip install 'secateur[langchain]'") from error

__all__ = ["SecateurCompressor", "SecateurGraphRetriever"]

_SCORE = "relevance_score"
"""Where rerankers for LangChain put a document's score."""


class SecateurCompressor(PrunerSettings, BaseDocumentCompressor):
    """Cuts documents to what answers the query; those of which nothing stays are left out, metadata stays.

    Metadata gets `relevance_score`, of this recipe, and `secateur`: how many pieces stay of how many, and their scores.
    `acompress_documents` does the same in a thread. Errors of `secateur.prune_context` for a recipe, budget or option
    that is none are raised when it is made, or changed.
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        """The documents of which something stays, cut."""
        metadata = [document.metadata for document in documents]
        priors = priors_of(metadata, self.prior, strict=self.strict)
        kept = self._refresh().prune(
            [document.page_content for document in documents], query, titles_of(metadata, self.titles), priors
        )
        found = list[Document]()
        for each in kept:
            document = documents[each.number]
            if each.uncut:
                found.append(document)
                continue
            score = {} if each.score is None else {_SCORE: each.score}
            note = describe(each, priors[each.number] if priors else document.metadata.get(_SCORE))
            metadata_now = {**document.metadata, **score, NOTE: note}
            found.append(document.model_copy(update={"page_content": each.text, "metadata": metadata_now}))
        return found


class SecateurGraphRetriever(GraphSettings, BaseRetriever):
    """The facts or paths of a graph that answer a query, one document each, by kg_rag or paths_over_graph.

    Metadata has `relevance_score` and `secateur`, with `facts`, [subject, predicate, object, literal] as they stand in
    the graph. `ainvoke`, `batch` and `abatch` are those of any retriever.
    """

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = list[Document]()
        for each in self._refresh().prune(query):
            score = {} if each.score is None else {_SCORE: each.score}
            found.append(Document(each.text, metadata={**score, NOTE: describe(each)}))
        return found
