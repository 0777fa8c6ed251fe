"""Sequences that a model is looked at on before it is cut."""

from __future__ import annotations

from functools import partial

from secateur.data import texts
from secateur.data.texts import Batches, Corpus
from secateur.errors import DataError
from secateur.subjects import Transformer

__all__ = ["make_feed"]

_SEQUENCES, _TOKENS = 16, 4096
"""Sequences of a batch at most, and tokens that they may have together: long ones go one by one."""


def make_feed(subject: Transformer, corpus: Corpus, *, length: int, seed: int) -> Batches:
    """Sequences of at most `length` tokens, as `subject` reads texts, in batches of 16, or of 1 where there are fewer.

    Of more than 256 tokens fewer stand in a batch, as many as have 4096 together, and 1 at least.

    `sequences(count)` of it gives as many as asked for. Raises `DataError` where the texts give none.
    """
    make = partial(texts.batches, corpus, subject.tokenizer, packed=subject.joins_texts, length=length, seed=seed)
    try:
        return make(batch=min(_SEQUENCES, max(1, _TOKENS // max(1, length))))
    except DataError:
        return make(batch=1)
