"""Encoders: BERT, RoBERTa, DistilBERT, and sentence-transformers folders built on them."""

from __future__ import annotations

from secateur.subjects.transformer.subject import Transformer

__all__ = ["Encoder"]


class Encoder(Transformer):
    """A bidirectional transformer; nothing is cached."""

    kind = "encoder"
