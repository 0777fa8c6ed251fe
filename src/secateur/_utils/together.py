"""An encoder for many threads: what several ask for at once is encoded in one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Together"]


@dataclass
class _Asked:
    texts: list[str]
    done: bool = False
    found: np.ndarray = field(default_factory=lambda: np.zeros(0))
    error: BaseException | None = None


class Together:
    """`encode`, one call at a time; all that threads asked for meanwhile goes into the next.

    Nobody waits for others to come: who finds it idle is answered at once, alone. encode: texts -> [texts, d]. An error
    is raised in each thread whose texts were in the call.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.encode = encode
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

    def _answer(self, batch: Sequence[_Asked]) -> None:
        try:
            vectors, start = self.encode([text for asked in batch for text in asked.texts]), 0
            for asked in batch:
                asked.found = vectors[start : start + len(asked.texts)]
                start += len(asked.texts)
        except BaseException as error:
            for asked in batch:
                asked.error = error
        for asked in batch:
            asked.done = True
