"""Whole numbers as text, runs of neighbours as ranges: "0-31,40,44-47"."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["read", "write"]

_MOST = 2**24


def write(numbers: Sequence[int]) -> str:
    """Numbers in their order, each run that ascends by one as a range; "" for none."""
    parts, start = [], 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            first, last = numbers[start], numbers[place - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = place
    return ",".join(parts)


def read(text: str, *, sorted_only: bool = True) -> list[int]:
    """The inverse of `write`. Raises `ValueError` for anything else, and for numbers of more than 24 bits.

    sorted_only: also for numbers that do not ascend; else for those that come twice.
    """
    numbers = list[int]()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        least = numbers[-1] if numbers and sorted_only else -1
        if not least < start <= stop < _MOST:
            raise ValueError(f"{part!r} in {text[:40]!r} is no range of ascending numbers")
        numbers.extend(range(start, stop + 1))
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{text[:40]!r} names a number twice")
    return numbers
