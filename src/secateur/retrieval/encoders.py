"""Sentence encoders and tokenizers of transformers, by name or given; each is loaded once."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from secateur._utils import http
from secateur._utils.tokenizers import Tokenizer
from secateur.clients import embeddings
from secateur.errors import InputError, MissingExtraError, opening

__all__ = [
    "Count",
    "Embed",
    "Encoder",
    "Encoding",
    "checkpoint_of",
    "counter",
    "encoder",
    "open_remembering",
    "tokenizer",
]

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts -> vectors [texts, d]."""

Count: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> how many tokens each has."""


class Encoder(Protocol):
    """What sentence-transformers' models have and we use: texts -> vectors [texts, d]."""

    def encode(self, sentences: list[str], **options: object) -> np.ndarray:
        """The vectors of `sentences`."""
        ...


def encoder(source: str | Encoder | Embed, device: str = "") -> Embed:
    """From texts to vectors [texts, d], float32, by a bi-encoder.

    Args:
        source: a folder or Hub id that sentence-transformers opens, a model of its kind, a function as wanted, or the
            address of a server that has one, see `remote`.
        device: where one that is opened is held, "cuda"; the processor if empty. A model stays where it is.

    Raises `MissingExtraError` without sentence-transformers, `InputError` for what it can't open. Weights are read from
    safetensors alone and no code of a checkpoint is run.
    """
    if isinstance(source, str):
        source = embeddings.embedder(source) if http.is_address(source) else _open_checkpoint(source, device or "cpu")
    if hasattr(source, "encode"):
        return functools.partial(_encode, source)
    if not callable(source):
        raise InputError(
            f"an embedder is a folder, a Hub id, an address, a model or a function, not {type(source).__name__}"
        )
    return source


@dataclass(frozen=True, slots=True)
class Encoding:
    """What compares texts, and what counts their tokens."""

    embedder: Any = ""
    """Folder or Hub id of a bi-encoder, or such a model; without one texts are compared by their words."""
    tokenizer: Any = ""
    """Folder or Hub id of the reader's tokenizer, or a function that counts tokens; the embedder's own if not given."""
    device: str = ""
    """Where encoders and a language model are held if given by name, "cuda"; the processor if empty."""

    def open_embedder(self) -> Embed | None:
        """The embedder, which remembers what it encoded; None without one."""
        return open_remembering(self.embedder, device=self.device) if self.embedder else None

    def counts(self) -> dict[str, Count]:
        """The measure "tokens" and what counts it, if there is a tokenizer."""
        source = self.tokenizer or checkpoint_of(self.embedder)
        return {"tokens": counter(source)} if source else {}


def checkpoint_of(source: str | Encoder | Embed) -> str:
    """The folder or Hub id of an encoder, where its tokenizer is, too; "" of a model, a function or an address."""
    return source if isinstance(source, str) and not http.is_address(source) else ""


def _encode(model: Encoder, texts: Sequence[str]) -> np.ndarray:
    if not len(texts):
        return np.zeros((0, 1), dtype=np.float32)
    found = model.encode(list(texts), batch_size=32, convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


@functools.lru_cache(maxsize=2)
def _open_checkpoint(name: str, device: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("an embedder needs sentence-transformers: pip install 'secateur[embed]'") from error
    from secateur._utils.modes import move_to_device  # torch, which functions need not have loaded

    with opening("embedder", name):
        found = SentenceTransformer(name, device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True})
    move_to_device(found, device)
    model: Encoder = found
    return model


_REMEMBERED: MutableMapping[Any, OrderedDict[str, np.ndarray]] = weakref.WeakKeyDictionary()
_PROBE = "Which of these is a text that nobody asks about?"
_LOCK = threading.Lock()


def open_remembering(source: str | Encoder | Embed, *, device: str = "", most: int = 2**26) -> Embed:
    """The same encoder, which reads a text once: what it made of the last texts is kept in memory, for all callers.

    Facts of a graph come back with every question about their neighbours. An encoder that was changed since is found
    out, by a text that is read anew on each call of this function, and what was kept of it is forgotten.

    device: see `encoder`. most: bytes of vectors that are kept of one encoder; those that were not asked for the
    longest leave.
    """
    embed = encoder(source, device)
    owner = embed.args[0] if isinstance(embed, functools.partial) and embed.func is _encode else embed
    try:
        with _LOCK:
            known = _REMEMBERED.setdefault(owner, OrderedDict())
    except TypeError:  # what can't be referred to weakly, or hashed, is remembered for this caller alone
        known = OrderedDict()
    probe = np.array(embed([_PROBE]))[0]
    with _LOCK:
        if _PROBE not in known or not np.array_equal(known[_PROBE], probe):
            known.clear()
        known[_PROBE] = probe
    return functools.partial(_encode_new, embed, known, most)


def _encode_new(embed: Embed, known: OrderedDict[str, np.ndarray], most: int, texts: Sequence[str]) -> np.ndarray:
    with _LOCK:
        found = {text: known[text] for text in texts if text in known}
    new = list(dict.fromkeys(text for text in texts if text not in found))
    if new:
        # Copies: a row of one large array would keep all of that array.
        found |= {text: row.copy() for text, row in zip(new, np.asarray(embed(new)), strict=True)}
    with _LOCK:
        for text, vector in found.items():
            known[text] = vector
            known.move_to_end(text)
        while len(known) * next(iter(known.values())).nbytes > most and len(known) > 1:
            known.popitem(last=False)
    return np.stack([found[text] for text in texts]) if len(texts) else np.asarray(embed([]))


def tokenizer(source: object) -> Any:
    """A tokenizer of transformers, from a folder or a Hub id; anything else is taken as one."""
    return _tokenizer(source) if isinstance(source, str) else source


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    with opening("tokenizer", name):
        found: Tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return found


def counter(source: object) -> Count:
    """From texts to how many tokens each has for a reader, without those that begin and end a sequence.

    A text is counted once: what the last texts had is remembered, for whoever holds this counter.

    source: a folder or Hub id of a tokenizer of transformers, such a tokenizer, or a function as wanted.
    """
    found = tokenizer(source)
    return functools.partial(_count_new, functools.partial(_count, found), {}) if hasattr(found, "tokenize") else found


_LETTERS = 2**20
"""Characters of the texts whose counts are remembered; with more of them all is forgotten."""


def _count_new(count: Count, known: dict[str, int], texts: Sequence[str]) -> list[int]:
    found = dict(known)  # as it is now: other threads may forget
    new = list(dict.fromkeys(text for text in texts if text not in found))
    if new:
        found |= zip(new, count(new), strict=True)
        if sum(map(len, found)) > _LETTERS:
            known.clear()
        else:
            known |= found
    return [found[text] for text in texts]


def _count(found: Any, texts: Sequence[str]) -> list[int]:
    if not len(texts):
        return []
    # Longer than the model reads is no news here: it is to be made shorter.
    return [len(ids) for ids in found(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
