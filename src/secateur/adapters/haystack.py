"""Haystack: retrieved documents cut to a budget, as a component between retriever and prompt.

from secateur.adapters.haystack import SecateurPruner

pipeline.add_component("pruner", SecateurPruner(budget="tokens=2048", options={"tokenizer": "path/to/reader"}))
pipeline.connect("retriever.documents", "pruner.documents")
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.errors import MissingExtraError
from secateur.running.context import Pruner

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingExtraError("this needs haystack-ai: pip install 'secateur[haystack]'") from error

__all__ = ["SecateurPruner"]


@component
class SecateurPruner:
    """Cuts documents to what answers the query; those of which nothing stays are left out, metadata and scores stay.

    Args:
        budget: all documents together, such as tokens=2048.
        recipe: a recipe of the family context.
        options: the recipe's own.
        strict: raise what goes wrong with a call; otherwise documents come back as they were, with a warning.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made.
    """

    def __init__(
        self, budget: str, recipe: str = "htmlrag", options: dict[str, Any] | None = None, strict: bool = False
    ) -> None:
        self.budget, self.recipe, self.options, self.strict = budget, recipe, dict(options or {}), strict
        self._pruner = Pruner(recipe, budget, strict=strict, **self.options)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document]) -> dict[str, Any]:
        """The documents of which something stays, cut; those without text stay as they are."""
        texts = [document for document in documents if document.content is not None]
        left = dict(self._pruner([document.content or "" for document in texts], query))
        kept = {id(texts[number]): text for number, text in left.items()}
        return {
            "documents": [
                document if document.content is None else replace(document, content=kept[id(document)])
                for document in documents
                if document.content is None or id(document) in kept
            ]
        }

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline that is written down."""
        return dict(
            default_to_dict(self, budget=self.budget, recipe=self.recipe, options=self.options, strict=self.strict)
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SecateurPruner:
        """From a pipeline that was written down."""
        made: SecateurPruner = default_from_dict(cls, data)
        return made
