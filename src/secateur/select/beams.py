"""Beam search by a judge that sees few items at once: batch by batch, whole or by their ends.

What is judged are sequences of blocks; what they stand for, the judge alone knows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from secateur.errors import InputError

__all__ = ["narrow", "narrow_branches"]

T = TypeVar("T")


def narrow(
    items: Sequence[T],
    choose: Callable[[Sequence[T]], Sequence[int]],
    *,
    width: int,
    top: int = 3,
    batch: int = 40,
    fits: Callable[[Sequence[T]], bool] = lambda items: True,
    step: int = 5,
) -> list[int]:
    """Of each batch the best `top`, again and again, until at most `width` are left. Places in `items`: the best
    of each batch of the last round, then the second best.

    Args:
        items: what is judged, the likeliest first.
        choose: places of the best of a batch, best first. What is no place in it, or comes twice, does not count, and
            what it names beyond `top` neither; where it names none the first of the batch stay.
        width: how many may stay; the judge is not asked where there are no more.
        top: how many of a batch stay.
        batch: how many are judged at once.
        fits: whether so many can be judged at once; a batch that can't is made smaller.
        step: by so many.

    Where a batch is no larger than `top`, nothing would ever leave: then the first `width` stay.
    """
    if width < 1 or top < 1 or batch < 1 or step < 1:
        raise InputError(f"width={width}, top={top}, batch={batch}, step={step}: give at least 1 of each")
    left = list(range(len(items)))
    while len(left) > width:
        kept = _round(items, left, choose, min(top, width), batch, fits, step)
        if len(kept) == len(left):
            return kept[:width]
        left = kept
    return left


def narrow_branches(
    sequences: Sequence[Sequence[Hashable]],
    choose: Callable[[Sequence[Sequence[Hashable]]], Sequence[int]],
    *,
    width: int,
    longest: int,
    top: int = 3,
    batch: int = 40,
    fits: Callable[[Sequence[Sequence[Hashable]]], bool] = lambda items: True,
    first: int = 3,
    growth: int = 2,
) -> list[int]:
    """Keep the sequences whose beginnings and ends a judge chooses; both grow until at most `width` are left.

    For k = 0, 1, ...: the beginnings of `first + k growth` blocks, and the ends of as many, are the branches of either
    side. The side with fewer distinct ones comes first: of each batch the judge keeps `top`, and sequences without a
    chosen branch leave; then the same for the other side. A side with fewer branches than a batch, while at least a
    batch of sequences is left, is looked at one step longer first: few short branches tell little. Not so where those
    would be no shorter than the sequences: the judge would read all of them.

    Args:
        sequences: blocks of each, the likeliest first.
        choose: as in `narrow`, for branches: pieces of sequences, each once.
        width: how many sequences may stay.
        longest: the last k.
        top, batch, fits: as in `narrow`.
        first, growth: blocks of the shortest branch, and by how many it grows.

    Returns places in `sequences`, in their order; where branches as long as allowed leave too many, the first `width`.
    Source: Paths-over-Graph (arXiv 2410.14211), branch reduced selection.
    """
    if width < 1 or first < 1 or growth < 1 or longest < 0:
        raise InputError(
            f"width={width}, first={first}, growth={growth}, longest={longest}: give at least 1, or k >= 0"
        )
    left, k = list(range(len(sequences))), 0
    while len(left) > width and k <= longest:
        sides = sorted((False, True), key=lambda end: len(_branches(sequences, left, first + k * growth, end)))
        for end in sides:
            if len(left) <= width:
                break
            shorter = first + (k + 1) * growth < max(len(sequences[place]) for place in left)
            few = shorter and len(left) >= batch > len(_branches(sequences, left, first + k * growth, end))
            own = k + 1 if few and k < longest else k
            branches = _branches(sequences, left, first + own * growth, end)
            kept = _round(list(branches), range(len(branches)), choose, top, batch, fits, 5)
            chosen = {
                place for number, places in enumerate(branches.values()) if number in set(kept) for place in places
            }
            left = [place for place in left if place in chosen]
        k += 1
    return left[:width]


def _branches(
    sequences: Sequence[Sequence[Hashable]], left: Sequence[int], size: int, end: bool
) -> dict[tuple[Hashable, ...], list[int]]:
    """Branch -> places of the sequences that have it, in the order in which branches are first met."""
    found: dict[tuple[Hashable, ...], list[int]] = {}
    for place in left:
        blocks = tuple(sequences[place])
        found.setdefault(blocks[-size:] if end else blocks[:size], []).append(place)
    return found


def _round(
    items: Sequence[T],
    left: Sequence[int],
    choose: Callable[[Sequence[T]], Sequence[int]],
    top: int,
    batch: int,
    fits: Callable[[Sequence[T]], bool],
    step: int,
) -> list[int]:
    """The best `top` of each batch of what is left: first the best of each, then the second best, and so on."""
    kept, at = list[list[int]](), 0
    while at < len(left):
        size = min(batch, len(left) - at)
        while size > 1 and not fits([items[place] for place in left[at : at + size]]):
            size = max(1, size - step)
        part = list(left[at : at + size])
        at += size
        if len(part) <= top:
            kept.append(part)
            continue
        named = [place for place in choose([items[place] for place in part]) if 0 <= place < len(part)]
        best = list(dict.fromkeys(named))[:top] or list(range(top))
        kept.append([part[place] for place in best])
    return [some[rank] for rank in range(top) for some in kept if rank < len(some)]
