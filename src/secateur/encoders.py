"""WHO READS: sentence encoders and tokenizers that a recipe on texts is given by name or as they are; loaded once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from secateur.errors import InputError, MissingExtraError, opening

__all__ = ["Count", "Embed", "Encoder", "counter", "encoder", "tokenizer"]

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts -> vectors [texts, d]."""

Count: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> how many tokens each has."""


class Encoder(Protocol):
    """What sentence-transformers' models have and we use: texts -> vectors [texts, d]."""

    def encode(self, sentences: list[str], **options: Any) -> Any:
        """The vectors of `sentences`."""
        ...


def encoder(source: str | Encoder | Embed) -> Embed:
    """From texts to vectors [texts, d], float32, by a bi-encoder.

    Args:
        source: a folder or Hub id that sentence-transformers opens, a model of its kind, or a function as wanted.

    Raises `MissingExtraError` without sentence-transformers, `InputError` for what it can't open. Weights are read from
    safetensors alone and no code of a checkpoint is run.
    """
    if isinstance(source, str):
        source = _opened(source)
    if hasattr(source, "encode"):
        return functools.partial(_encoded, source)
    if not callable(source):
        raise InputError(f"an embedder is a folder, a Hub id, a model or a function, not {type(source).__name__}")
    return source


def _encoded(model: Any, texts: Sequence[str]) -> np.ndarray:
    if not len(texts):
        return np.zeros((0, 1), dtype=np.float32)
    found = model.encode(list(texts), batch_size=32, convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


@functools.lru_cache(maxsize=2)
def _opened(name: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("an embedder needs sentence-transformers: pip install 'secateur[embed]'") from error
    with opening("embedder", name):
        found: Encoder = SentenceTransformer(
            name, device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    return found


def tokenizer(source: Any) -> Any:
    """A tokenizer of transformers, from a folder or a Hub id; anything else is taken as one."""
    return _tokenizer(source) if isinstance(source, str) else source


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    with opening("tokenizer", name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def counter(source: Any) -> Count:
    """From texts to how many tokens each has for a reader, without those that begin and end a sequence.

    source: a folder or Hub id of a tokenizer of transformers, such a tokenizer, or a function as wanted.
    """
    found = tokenizer(source)
    return functools.partial(_counted, found) if hasattr(found, "tokenize") else found


def _counted(found: Any, texts: Sequence[str]) -> list[int]:
    if not len(texts):
        return []
    # Longer than the model reads is no news here: it is to be made shorter.
    return [len(ids) for ids in found(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
