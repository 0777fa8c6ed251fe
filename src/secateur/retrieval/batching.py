"""Texts of unlike lengths in batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BEGUN", "ONCE", "batches"]

ONCE = 2048
"""Tokens of one forward pass, padding included. On a processor more of them at once are no faster, each by itself."""
BEGUN = 32
"""Tokens that take as long as the beginning of one more pass."""


def batches(lengths: Sequence[int], once: int = ONCE, begun: int = BEGUN) -> list[list[int]]:
    """Indices by falling length, in the passes that take the least: tokens with padding, and `begun` for each pass.

    A pass pads to at most `once` tokens, unless one sequence alone is longer.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    least, starts = [0], list[int]()  # of the first so many: what they take, and where their last pass starts
    for end in range(1, len(order) + 1):
        start = end - 1
        cost = least[start] + lengths[order[start]] + begun
        for first in range(end - 2, -1, -1):
            taken = (end - first) * lengths[order[first]]  # the longest of a pass is its first
            if taken > once:
                break
            if least[first] + taken + begun < cost:
                cost, start = least[first] + taken + begun, first
        least.append(cost)
        starts.append(start)
    found, end = list[list[int]](), len(order)
    while end:
        found.append(order[starts[end - 1] : end])
        end = starts[end - 1]
    return found[::-1]
