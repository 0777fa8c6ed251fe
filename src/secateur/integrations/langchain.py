"""LangChain: retrieved documents cut to a budget, in `ContextualCompressionRetriever` or any chain.

from secateur.integrations.langchain import SecateurCompressor

compressor = SecateurCompressor(recipe="htmlrag", budget="tokens=2048", options={"tokenizer": "path/to/reader"})
compressor.compress_documents(documents, "the question")
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import MissingExtraError
from secateur.integrations.pruner_settings import PrunerSettings
from secateur.runs.context import titles_of

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
except ImportError as error:
    raise MissingExtraError("this needs langchain-core: pip install 'secateur[langchain]'") from error

__all__ = ["SecateurCompressor"]


class SecateurCompressor(PrunerSettings, BaseDocumentCompressor):
    """Cuts documents to what answers the query; those of which nothing stays are left out, metadata stays.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made.
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        """The documents of which something stays, cut."""
        titles = titles_of((document.metadata for document in documents), self.titles)
        left = self._pruner([document.page_content for document in documents], query, titles)
        return [documents[number].model_copy(update={"page_content": text}) for number, text in left]
