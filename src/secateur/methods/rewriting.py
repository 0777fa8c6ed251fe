"""Texts rewritten by a language model so that a keyword is less of a surprise, accepted by measured probability."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

from secateur.clients import chat
from secateur.methods.learning import Document

__all__ = ["WAYS", "Way", "find_keyword", "propose", "rewrite"]

Way: TypeAlias = Literal["stepping stones", "paraphrase", "consequences"]
WAYS: dict[Way, str] = {
    "stepping stones": (
        "Rewrite this text so that the word {keyword!r} comes as less of a surprise: before it first stands there, add "
        "a clause or a sentence that describes properties of what it names, from which a reader could guess it. Do not "
        "use the word itself before its place, and keep the meaning and all facts.\n\nText: {text}\n\nAnswer with the "
        "new text alone."
    ),
    "paraphrase": (
        "Say this text in other words, with the same meaning, of about the same length, and with the word {keyword!r} "
        "in it.\n\nText: {text}\n\nAnswer with the new text alone."
    ),
    "consequences": (
        "Write one or two sentences that follow logically from this text, to stand after it.\n\nText: {text}\n\nAnswer "
        "with these sentences alone."
    ),
}
"""How a text is rewritten -> what a model is asked. Stepping stones are the method of arXiv 2504.09522, the others its
rivals; its own prompts are not public."""

_QUOTES = "\"'`“”‘’«»"


def find_keyword(text: str, keyword: str) -> int | None:
    """Where a keyword first stands in a text as a word of its own; None where it does not."""
    match = re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", text) if keyword else None
    return None if match is None else match.start()


def propose(writer: chat.LanguageModel, document: Document, way: Way, seed: int = 0) -> Document | None:
    """What a model writes for a text; None where the answer is empty or has lost the keyword.

    Consequences stand after the text itself, which keeps its keyword and what stands before it.
    """
    question = WAYS[way].format(text=document.text, keyword=document.keyword)
    most = 128 + 4 * len(document.text.split())  # more tokens than a rewrite takes
    reply = chat.ask_text(writer, question, most=most, temperature=0.7 if seed else 0.0, seed=seed)
    text = " ".join(reply.split()).removeprefix("Text:").strip().strip(_QUOTES).strip()
    if not text:
        return None
    if way == "consequences":
        return replace(document, text=f"{document.text.rstrip()} {text}")
    start = find_keyword(text, document.keyword)
    return None if start is None else replace(document, text=text, start=start)


def rewrite(
    writer: chat.LanguageModel,
    document: Document,
    log_probability: Callable[[Document], float],
    *,
    gain: float,
    tries: int = 3,
) -> tuple[Document | None, float]:
    """(the first rewrite with stepping stones that is accepted, or None; the best ln P(keyword | context) of all).

    Accepted is one of which P is at least `gain` times that of the text itself.
    """
    least, best = log_probability(document) + math.log(gain), -math.inf
    for seed in range(tries):
        proposal = propose(writer, document, "stepping stones", seed)
        if proposal is None:
            continue
        found = log_probability(proposal)
        best = max(best, found)
        if found >= least:
            return proposal, found
    return None, best
