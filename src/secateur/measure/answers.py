"""Whether an answer in words is right, leniently, by what holds what; and how well several match those wanted."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["f1", "hit"]


def hit(answer: str, right: Iterable[str]) -> bool:
    """Hits@1: whether the answer holds a right one, or is held by one, letter case and white space aside.

    Lenient, as published figures of question answering on knowledge graphs are: "Bern, Switzerland" is right where
    "Bern" is. An empty answer is wrong.
    """
    said = _plain(answer)
    return bool(said) and any(one and (one in said or said in one) for one in map(_plain, right))


def f1(answers: Iterable[str], right: Iterable[str]) -> float:
    """2 P R / (P + R): P the share of the answers that hit one that is right, R that of the right ones that are hit."""
    said, wanted = [one for one in answers if _plain(one)], [one for one in right if _plain(one)]
    if not said or not wanted:
        return float(not said and not wanted)
    precision = sum(hit(one, wanted) for one in said) / len(said)
    recall = sum(hit(one, said) for one in wanted) / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
