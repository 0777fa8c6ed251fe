"""Clients of encoders and cross-encoders behind a server of OpenAI's protocol or of text-embeddings-inference.

An address that ends in a version, http://localhost:8000/v1#NAME, is OpenAI's: NAME is the model. Any other is the root
of a text-embeddings-inference server, which serves one model. Keys come from the environment alone; what fails is asked
again within bounds, and then is one `ServerError`, as of language models.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np

from secateur._utils import http
from secateur._utils.http import PassingError
from secateur.errors import InputError

__all__ = ["Embedder", "Ranker", "embedder", "ranker"]

T = TypeVar("T")
LONGEST = 4096
"""Letters of a text that are sent: more than most encoders read, and less than a server refuses."""
_ONCE = 32
"""Texts of one request, as many as text-embeddings-inference takes unless it is told otherwise."""
_KEY, _OPENAI = "SECATEUR_EMBED_KEY", "https://api.openai.com/"
_VERSION = re.compile(r"/v\d+$")


class _Served:
    """One server. `key` names the variable that holds its key: SECATEUR_EMBED_KEY, or for OpenAI's own OPENAI_API_KEY.

    requests: see `http.RequestOptions`.
    """

    def __init__(self, url: str, *, key: str = "", **requests: Unpack[http.RequestOptions]) -> None:
        address, _, self.model = url.partition("#")
        address = address.rstrip("/")
        theirs = f"{address.lower()}/".startswith(_OPENAI) and not os.environ.get(_KEY)
        self.key = http.check_key(key) if key else "OPENAI_API_KEY" if theirs else _KEY
        self.client = http.Client(address, example="http://localhost:8080", key=self.key, **requests)
        self.versioned = _VERSION.search(address) is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client.url!r}, {self.model!r})"

    def close(self) -> None:
        """Close its connections, for good."""
        self.client.close()

    def _post(self, path: str, body: Mapping[str, object], read: Callable[[Any], T]) -> T:
        def read_json(raw: bytes) -> T:
            try:
                return read(json.loads(raw))
            except (ValueError, RecursionError, KeyError, IndexError, TypeError, OverflowError) as error:
                raise PassingError("what came is not what was asked for") from error

        return self.client.post(path, read_json, json=dict(body))


class Embedder(_Served):
    """Texts -> vectors [texts, d], float32, by a server.

    Raises `InputError` for an address of OpenAI's protocol that names no model, `ServerError` for no answer.
    """

    def __init__(self, url: str, *, key: str = "", **requests: Unpack[http.RequestOptions]) -> None:
        super().__init__(url, key=key, **requests)
        if self.versioned and not self.model:
            raise InputError("a server of OpenAI's protocol is asked for a model by name: give http://.../v1#NAME")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of `texts`; of each, the first `LONGEST` letters are read."""
        sent = [text[:LONGEST] or " " for text in texts]
        parts = [self._some(sent[start : start + _ONCE]) for start in range(0, len(sent), _ONCE)]
        if len({part.shape[1] for part in parts}) > 1:
            raise InputError(f"{self.client.url} gave vectors of different lengths: it must serve one model")
        return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)

    def _some(self, texts: list[str]) -> np.ndarray:
        count = len(texts)
        if self.versioned:
            body = {"model": self.model, "input": texts, "encoding_format": "float"}
            return self._post("/embeddings", body, lambda found: _vectors(_sort_by_index(found["data"]), count))
        return self._post("/embed", {"inputs": texts, "truncate": True}, lambda found: _vectors(found, count))


class Ranker(_Served):
    """How relevant each text is to a question, by a cross-encoder of a text-embeddings-inference server."""

    def __init__(self, url: str, *, key: str = "", **requests: Unpack[http.RequestOptions]) -> None:
        super().__init__(url, key=key, **requests)
        if self.versioned:
            raise InputError("OpenAI's protocol has no cross-encoders: give the root of text-embeddings-inference")

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """The score of each text, higher for what is more relevant."""
        found = list[float]()
        for start in range(0, len(texts), _ONCE):
            sent = [text[:LONGEST] or " " for text in texts[start : start + _ONCE]]
            body = {"query": question[:LONGEST], "texts": sent, "raw_scores": True, "truncate": True}
            found += self._post("/rerank", body, functools.partial(_scores, count=len(sent)))
        return found


@functools.lru_cache(maxsize=4)
def embedder(url: str) -> Embedder:
    """The encoder at an address, opened once."""
    return Embedder(url)


@functools.lru_cache(maxsize=4)
def ranker(url: str) -> Ranker:
    """The cross-encoder at an address, opened once."""
    return Ranker(url)


def _sort_by_index(rows: Sequence[Mapping[str, object]]) -> list[object]:
    """Vectors in the order of the texts, whatever the order they came in."""
    return [_one(rows, number)["embedding"] for number in range(len(rows))]


def _one(rows: Sequence[Mapping[str, object]], number: int) -> Mapping[str, Any]:
    (found,) = (row for row in rows if row["index"] == number)
    return found


def _vectors(rows: object, count: int) -> np.ndarray:
    found = np.array(rows, dtype=np.float32)
    if found.ndim != 2 or len(found) != count or not found.size or not np.isfinite(found).all():
        raise PassingError(f"what came are no {count} vectors")
    return found


def _scores(rows: Any, count: int) -> list[float]:
    found = [float(_one(rows, number)["score"]) for number in range(count)]
    if len(rows) != count or not all(map(math.isfinite, found)):
        raise PassingError(f"what came are no {count} scores")
    return found
