"""Settings of the post-processors for LangChain and LlamaIndex: a recipe, its budget and options, checked when made."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from secateur.runs.context import Pruner

__all__ = ["PrunerSettings"]


class PrunerSettings(BaseModel):
    """The fields of a post-processor that cuts what was retrieved to what answers the query."""

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
        super().model_post_init(context)
        self._pruner = Pruner(self.recipe, self.budget, strict=self.strict, titled=bool(self.titles), **self.options)
