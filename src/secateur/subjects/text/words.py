"""Words of a text, as budgets count them and as a search compares them."""

from __future__ import annotations

import re
from itertools import islice

__all__ = ["first_words", "stems", "terms", "whole", "words"]

# Every letter of a script without spaces is a word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_TERM = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def whole(text: str) -> str:
    """The text with a question mark for each lone half of a surrogate pair, which can't be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")


def words(text: str) -> int:
    """How many words: runs without blanks, and each letter of scripts that write none."""
    return len(_WORD.findall(text))


def first_words(text: str, count: int) -> str:
    """The text up to and with its `count`-th word, as `words` counts."""
    end, left = 0, max(0, count) + 1
    for found in islice(_WORD.finditer(text), left):
        left -= 1
        if left:
            end = found.end()
    return text if left else text[:end]


def terms(text: str) -> list[str]:
    """What a search compares: words in lower case without punctuation, single letters of scripts without blanks."""
    return _TERM.findall(text.lower())


def stems(text: str) -> list[str]:
    """The terms of a text, underscores as spaces, without the commonest endings of English."""
    return [re.sub(r"(?:ing|ed|es|s|e)$", "", term) or term for term in terms(text.replace("_", " "))]
