"""Whether a text holds an answer, and how near an answer comes to those that are right."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["exact_match", "holds", "normalise", "token_f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text, letter by letter, and not within a word or a number.

    Blanks and upper case say nothing, nor do breaks between the words of an answer.
    """
    return any(answer.strip() and _pattern(answer).search(text) for answer in answers)


@lru_cache(maxsize=4096)
def _pattern(answer: str) -> re.Pattern[str]:
    parts = re.findall(r"\w+|[^\w\s]", answer)
    inner = r"\s*".join(map(re.escape, parts))
    before = r"(?<![\w-])" if re.match(r"\w|-", parts[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", parts[-1][-1]) else ""
    return re.compile(before + inner + after, re.IGNORECASE)


def normalise(answer: str) -> str:
    """Lower case without punctuation, the articles a, an and the, and blanks at the ends.

    Source: Rajpurkar et al., SQuAD (2016), its evaluation.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones after `normalise`, else 0."""
    return float(normalise(answer) in map(normalise, right))


def token_f1(answer: str, right: Sequence[str]) -> float:
    """The best ``2 P R / (P + R)`` over right answers, P and R of the words that both have, as often as both have them.

    Words are those of `normalise`; two answers without words are alike. Source: as `normalise`.
    """
    given = normalise(answer).split()
    return max((_f1(given, normalise(gold).split()) for gold in right), default=0.0)


def _f1(given: Sequence[str], gold: Sequence[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    both = (Counter(given) & Counter(gold)).total()
    return 2 * both / (len(given) + len(gold))
