"""Whole numbers in ascending order as text: "0-31,40,44-47"."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["read", "write"]

_MOST = 2**24


def write(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges; "" for none."""
    parts, start = [], 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            first, last = numbers[start], numbers[place - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = place
    return ",".join(parts)


def read(text: str) -> list[int]:
    """The inverse of `write`. Raises `ValueError` for anything else, and for numbers of more than 24 bits."""
    numbers = list[int]()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        if not (numbers[-1] if numbers else -1) < start <= stop < _MOST:
            raise ValueError(f"{part!r} in {text[:40]!r} is no range of ascending numbers")
        numbers.extend(range(start, stop + 1))
    return numbers
