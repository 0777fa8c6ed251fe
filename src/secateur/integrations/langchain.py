"""LangChain: retrieved documents cut to a budget, in `ContextualCompressionRetriever` or any chain.

from secateur.integrations.langchain import SecateurCompressor

compressor = SecateurCompressor(recipe="htmlrag", budget="tokens=2048", options={"tokenizer": "path/to/reader"})
compressor.compress_documents(documents, "the question")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, PrivateAttr

from secateur.errors import MissingExtraError
from secateur.runs.context import Pruner, titles_of

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
except ImportError as error:
    raise MissingExtraError("this needs langchain-core: pip install 'secateur[langchain]'") from error

__all__ = ["SecateurCompressor"]


class SecateurCompressor(BaseDocumentCompressor):
    """Cuts documents to what answers the query; those of which nothing stays are left out, metadata stays.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made.
    """

    recipe: str = "htmlrag"
    budget: str
    """All documents together, such as tokens=2048."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The recipe's own."""
    strict: bool = False
    """Raise what goes wrong with a call; otherwise documents come back as they were, with a warning."""
    titles: str = ""
    """Field of the metadata that holds a document's title, such as title; for recipes on passages."""
    _pruner: Pruner = PrivateAttr()

    def model_post_init(self, context: object) -> None:
        """Check recipe, budget and options."""
        self._pruner = Pruner(self.recipe, self.budget, strict=self.strict, titled=bool(self.titles), **self.options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        """The documents of which something stays, cut."""
        titles = titles_of((document.metadata for document in documents), self.titles)
        left = self._pruner([document.page_content for document in documents], query, titles)
        return [documents[number].model_copy(update={"page_content": text}) for number, text in left]
