"""An encoder for many threads: what several ask for at once is encoded in one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

__all__ = ["Together"]

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts -> vectors [texts, d]."""


@dataclass
class _Asked:
    texts: list[str]
    done: bool = False
    found: np.ndarray = field(default_factory=lambda: np.zeros(0))
    error: BaseException | None = None


class Together:
    """An encoder, one call at a time; all that threads asked for meanwhile goes into the next.

    Nobody waits for others to come: who finds it idle is answered at once, alone. inner: texts -> [texts, d]; no
    attribute is called `encode`, as models of sentence-transformers are told by. An error is raised in each thread
    whose texts were in the call.
    """

    def __init__(self, inner: Embed) -> None:
        self.inner = inner
        self._changed: dict[object, Together] = {}
        self._waiting: list[_Asked] = []
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, d]."""
        mine = _Asked(list(texts))
        with self._lock:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                with self._lock:
                    batch, self._waiting = self._waiting, []
                self._answer(batch)
        if mine.error is not None:
            raise mine.error
        return mine.found

    def change(self, change: Callable[[Embed], Embed]) -> Together:
        """The same for what `change` makes of the encoder, one for all threads; this one where it makes nothing new."""
        with self._lock:
            if change not in self._changed:
                inner = change(self.inner)
                self._changed[change] = self if inner is self.inner else Together(inner)
            return self._changed[change]

    def _answer(self, batch: Sequence[_Asked]) -> None:
        try:
            vectors, start = self.inner([text for asked in batch for text in asked.texts]), 0
            for asked in batch:
                asked.found = vectors[start : start + len(asked.texts)]
                start += len(asked.texts)
        except BaseException as error:
            for asked in batch:
                asked.error = error
        for asked in batch:
            asked.done = True
