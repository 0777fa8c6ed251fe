"""Ask a language model within limits of calls and tokens, and parse JSON in its answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from secateur.clients import chat

__all__ = ["Asking", "Record", "Spending", "choice_in", "list_in", "objects_in"]

Record = dict[str, Any]
"""Figures, texts and notes that a run keeps as JSON."""

NAMES = 16
"""Names in an answer that are read; what is behind them is nonsense."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Which language model a recipe asks, and how much it may ask of it."""

    llm: Any = ""
    """Address of a server of OpenAI's protocol, folder or Hub id of a language model, or such a model."""
    llm_name: str = ""
    """Name of the language model, on a server."""
    calls: Annotated[int, Ge(0)] = 0
    """Calls of the language model, at most; no limit if 0. The rest is done without it."""
    llm_tokens: Annotated[int, Ge(0)] = 0
    """The same for tokens in and out."""

    def open_model(self, device: str = "") -> chat.LanguageModel | None:
        """The language model, or None where none is given; one that is opened from a folder is held on `device`."""
        if not self.llm:
            return None
        return chat.open_model(self.llm, self.llm_name, calls=self.calls, tokens=self.llm_tokens, device=device)


class Spending:
    """What a language model was asked since this was made: calls, prompt_tokens, answer_tokens."""

    def __init__(self, model: chat.LanguageModel) -> None:
        meter = model.meter
        self._meter, self._before = meter, (meter.calls, meter.prompt_tokens, meter.answer_tokens)

    @property
    def calls(self) -> int:
        """Calls since then."""
        return self._meter.calls - self._before[0]

    @property
    def prompt_tokens(self) -> int:
        """Tokens in."""
        return self._meter.prompt_tokens - self._before[1]

    @property
    def answer_tokens(self) -> int:
        """Tokens out."""
        return self._meter.answer_tokens - self._before[2]

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.prompt_tokens + self.answer_tokens


def objects_in(reply: str) -> Iterator[Record]:
    """The first objects of JSON that stand in a reply."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"\{", reply), 20):
        try:
            value, _ = decoder.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def list_in(reply: str) -> list[str] | None:
    """The first list of texts in an object of JSON in a reply, bounded; None where there is none."""
    for value in itertools.chain.from_iterable(found.values() for found in objects_in(reply)):
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            names = dict.fromkeys(" ".join(name.split())[:200] for name in value)
            return [name for name in names if name][:NAMES]
    return None


def choice_in(reply: str, choices: Sequence[str]) -> str:
    """Which of `choices` a reply gives: by its JSON, or as the only one that it names; empty where none is clear.

    A choice that stands in a longer one alone, as asthma in severe asthma, is not named.
    """
    answers = (value["answer"] for value in objects_in(reply) if isinstance(value.get("answer"), str))
    answer = next(answers, reply)
    exact = [choice for choice in choices if choice.casefold() == answer.strip().casefold()]
    if exact:
        return exact[0]
    named, left = list[str](), answer
    for choice in sorted(filter(None, choices), key=len, reverse=True):
        left, times = re.subn(rf"(?<!\w){re.escape(choice)}(?!\w)", "\0", left, flags=re.IGNORECASE)
        named += [choice] * bool(times)
    return named[0] if len(named) == 1 else ""
