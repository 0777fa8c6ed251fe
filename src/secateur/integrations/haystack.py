"""Haystack: retrieved documents cut to a budget, as a component between retriever and prompt.

from secateur.integrations.haystack import SecateurPruner

pipeline.add_component("pruner", SecateurPruner(budget="tokens=2048", options={"tokenizer": "path/to/reader"}))
pipeline.connect("retriever.documents", "pruner.documents")
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.errors import MissingExtraError
from secateur.runs.context import Pruner, titles_of

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
        titles: field of the metadata that holds a document's title, such as title; for recipes on passages.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made.
    """

    def __init__(
        self,
        budget: str,
        recipe: str = "htmlrag",
        options: dict[str, Any] | None = None,
        strict: bool = False,
        titles: str = "",
    ) -> None:
        self.budget, self.recipe, self.options = budget, recipe, dict(options or {})
        self.strict, self.titles = strict, titles
        self._pruner = Pruner(recipe, budget, strict=strict, titled=bool(titles), **self.options)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document]) -> dict[str, Any]:
        """The documents of which something stays, cut and in the recipe's order; those without text stay in place."""
        texts = [number for number, document in enumerate(documents) if document.content is not None]
        titles = titles_of((documents[number].meta for number in texts), self.titles)
        left = self._pruner([documents[number].content or "" for number in texts], query, titles)
        kept = {texts[number] for number, _ in left}
        cut = (replace(documents[texts[number]], content=text) for number, text in left)
        return {
            "documents": [
                next(cut) if number in kept else document
                for number, document in enumerate(documents)
                if number in kept or document.content is None
            ]
        }

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline that is written down."""
        given = {"options": self.options, "strict": self.strict, "titles": self.titles}
        return dict(default_to_dict(self, budget=self.budget, recipe=self.recipe, **given))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SecateurPruner:
        """From a pipeline that was written down."""
        made: SecateurPruner = default_from_dict(cls, data)
        return made
