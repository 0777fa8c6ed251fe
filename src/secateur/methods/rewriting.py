"""Texts rewritten by a language model so that a keyword is less of a surprise, accepted by measured probability."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from secateur.clients import chat
from secateur.methods.learning import Document

__all__ = ["WAYS", "Proposal", "Way", "find_keyword", "gives_away", "propose", "rewrite"]

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

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
"""Opening -> closing."""
_ENDING = re.compile(r"(?:ies|ing|ish|ed|es|ly|s|e|y)$")


class Proposal(NamedTuple):
    """A text that was written in place of another, or why it is of no use."""

    document: Document | None
    refused: str = ""


def find_keyword(text: str, keyword: str) -> int | None:
    """Where a keyword first stands in a text as a word of its own; None where it does not."""
    match = re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", text) if keyword else None
    return None if match is None else match.start()


def gives_away(context: str, keyword: str) -> bool:
    """Whether what stands before a keyword holds it, in capitals or not, or another form of it: mauves, reddish.

    Forms are words of the same stem, by a short rule for endings of English; of several words the same in a row.
    """
    ours, theirs = (list(map(_stem, re.findall(r"\w+", text.casefold()))) for text in (keyword, context))
    if not ours:
        return keyword.casefold() in context.casefold()
    return any(theirs[at : at + len(ours)] == ours for at in range(len(theirs)))


def _stem(word: str) -> str:
    """A word without its endings and a doubled letter before them: of red, reds and reddish the same."""
    short = _ENDING.sub("", word)
    if len(short) < 3 or short == word:
        return word
    return _stem(short[:-1] if len(short) > 3 and short[-1] == short[-2] else short)


def _unwrap(reply: str, text: str) -> str:
    """An answer without blanks around it, "Text:" before it, and quotation marks around the whole of it.

    Marks within stay, and those around an answer whose text has such, too.
    """
    bare = reply.strip().removeprefix("Text:").strip()
    first, inside, last = bare[:1], bare[1:-1], bare[1:][-1:]
    whole = first in _QUOTES and _QUOTES[first] == last and not {first, last} & set(inside)
    return inside.strip() if whole and first != text.strip()[:1] else bare


def propose(
    writer: chat.LanguageModel,
    document: Document,
    way: Way,
    seed: int = 0,
    *,
    refuse: Callable[[Document], str] = lambda document: "",
) -> Proposal:
    """What a model writes for a text; none where it is empty, has lost the keyword or gives it away before its place.

    Consequences stand after the text itself, which keeps its keyword and what stands before it. refuse: why else a text
    can't be used, such as for its length, "" where it can.
    """
    question = WAYS[way].format(text=document.text, keyword=document.keyword)
    most = 128 + 4 * len(document.text.split())  # more tokens than a rewrite takes
    reply = chat.ask_text(writer, question, most=most, temperature=0.7 if seed else 0.0, seed=seed)
    text = _unwrap(reply, document.text)
    if not text:
        return Proposal(None, "it is empty")
    if way == "consequences":
        made = replace(document, text=f"{document.text.rstrip()} {text}")
    else:
        start = find_keyword(text, document.keyword)
        if start is None:
            return Proposal(None, "it has lost the keyword")
        made = replace(document, text=text, start=start)
        if gives_away(made.context, document.keyword) and not gives_away(document.context, document.keyword):
            return Proposal(None, "it gives the keyword away before its place")
    why = refuse(made)
    return Proposal(None, why) if why else Proposal(made)


def rewrite(
    writer: chat.LanguageModel,
    document: Document,
    log_probability: Callable[[Document], float],
    *,
    gain: float,
    tries: int = 3,
    refuse: Callable[[Document], str] = lambda document: "",
) -> tuple[Document | None, float, list[str]]:
    """(the first rewrite with stepping stones that is accepted, or None; the best ln P(keyword | context) of all; why
    others were refused before that was asked, see `propose`).

    Accepted is one of which P is at least `gain` times that of the text itself.
    """
    least, best, refused = log_probability(document) + math.log(gain), -math.inf, list[str]()
    for seed in range(tries):
        proposal, why = propose(writer, document, "stepping stones", seed, refuse=refuse)
        if proposal is None:
            refused.append(why)
            continue
        found = log_probability(proposal)
        best = max(best, found)
        if found >= least:
            return proposal, found, refused
    return None, best, refused
