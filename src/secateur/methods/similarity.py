"""Similarity of texts: of vectors of an encoder, or of their words without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from secateur.retrieval.encoders import Embed
from secateur.score import naming, relevance
from secateur.subjects.text import markup

__all__ = ["Similarity"]


class Similarity:
    """How alike texts are.

    Args:
        embed: texts -> vectors [texts, d]; without it terms are compared.
        terms: text -> what is compared of it without an encoder.
        digits: values are rounded to as many, since the last ones depend on what a text was read together with.
    """

    def __init__(
        self, embed: Embed | None, terms: Callable[[str], list[str]] = markup.terms, digits: int | None = None
    ) -> None:
        self.embed, self.terms, self.digits = embed, terms, digits

    def compare(self, questions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """[questions, texts]: cosine of vectors, or of terms weighted by their rarity."""
        if not questions or not texts:
            return np.zeros((len(questions), len(texts)))
        if self.embed is None:
            values = naming.tfidf([self.terms(text) for text in questions], [self.terms(text) for text in texts])
        else:
            vectors = self.embed([*questions, *texts])
            of_texts = vectors[len(questions) :]
            values = np.stack([relevance.cosine(vector, of_texts) for vector in vectors[: len(questions)]])
        return self._round(values)

    def rank(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """[texts]: cosine of vectors, or BM25."""
        if self.embed is not None:
            return np.asarray(self.compare([question], texts)[0])
        return self._round(relevance.bm25(self.terms(question), [self.terms(text) for text in texts]))

    def _round(self, values: np.ndarray) -> np.ndarray:
        return values if self.digits is None else np.round(values, self.digits)
