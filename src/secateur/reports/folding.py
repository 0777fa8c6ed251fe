"""Equal blocks that follow one another, folded into one for a picture: 24 layers of a transformer are one, times 24."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.reports.pictures import Box

__all__ = ["Stack", "fold_blocks"]

_LEAST = 3
"""Equal blocks in a row from which they are folded."""


@dataclass(frozen=True)
class Stack:
    """Boxes of one block that stands for several: their places, what they are called, and how many blocks they are."""

    places: range
    name: str
    """encoder.layers.0 to 23"""
    times: int
    sites: frozenset[str] = frozenset()
    """Those of this block."""


def fold_blocks(boxes: Sequence[Box]) -> tuple[list[Box], list[Stack]]:
    """The boxes with each run of three or more equal blocks in a row as its first one, and these.

    A block is what modules of one number in a list, "layers.3", do. Blocks are equal that have equal boxes up to that
    number, joined among themselves in the same way and each to the one before in the same way; and of which none but
    the last is read elsewhere.
    """
    current, stacks = list(boxes), list[Stack]()
    while True:
        found = next((run for prefix in _prefixes(current) for run in _runs(current, prefix)), None)
        if found is None:
            return current, stacks
        start, length, times, prefix, first = found
        stack = Stack(
            range(start, start + length), f"{prefix}.{first} to {first + times - 1}", times,
            frozenset(part[0] for box in current[start : start + length] for part in box.parts if part[0]),
        )  # fmt: skip
        gone = length * (times - 1)
        current = _drop_blocks(current, start, length, times)
        stacks = [replace(one, places=_move_places(one.places, start + length, gone)) for one in stacks]
        stacks.append(stack)


def _move_places(places: range, end: int, gone: int) -> range:
    """Where places are when `gone` boxes from `end` on, all of them inside or all outside, are no more."""
    start = places.start - gone if places.start >= end else places.start
    return range(start, places.stop - gone if places.stop > end else places.stop)


def _prefixes(boxes: Sequence[Box]) -> list[str]:
    """Names of lists of modules, outer ones first."""
    found = dict[str, None]()
    for box in boxes:
        parts = box.name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                found[".".join(parts[:place])] = None
    return sorted(found, key=lambda name: name.count("."))


def _number(box: Box, prefix: str) -> int | None:
    """Which block of a list a box is of; None of none."""
    match = re.match(re.escape(prefix) + r"\.(\d+)(\.|$)" if prefix else r"(\d+)(\.|$)", box.name)
    return int(match[1]) if match else None


def _runs(boxes: Sequence[Box], prefix: str) -> Iterator[tuple[int, int, int, str, int]]:
    """(first box, boxes of a block, blocks, prefix, number of the first block) of runs of equal blocks."""
    starts = dict[int, int]()
    last = -1
    for place, box in enumerate(boxes):
        number = _number(box, prefix)
        if number is None:
            continue
        if number < last:
            return  # the list is run through several times
        if number > last:
            starts[number], last = place, number
    numbers = sorted(starts)
    index = 0
    while index < len(numbers) - 1:
        first = numbers[index]
        start, length = starts[first], starts[numbers[index + 1]] - starts[first]
        times = 1
        while (
            first + times in starts
            and starts[first + times] == start + times * length
            and _equal(boxes, prefix, start, length, first, times)
        ):
            times += 1
        if times >= _LEAST and not _read_inside(boxes, start, length, times):
            yield start, length, times, prefix, first
        index += max(1, times - 1)


def _equal(boxes: Sequence[Box], prefix: str, start: int, length: int, first: int, times: int) -> bool:
    """Whether block `times` after the first is like the first."""
    shift = times * length
    if start + shift + length > len(boxes):
        return False
    for place in range(start, start + length):
        one, other = boxes[place], boxes[place + shift]
        if _signature(one, prefix, first) != _signature(other, prefix, first + times):
            return False
        inside = [before - start for before in one.before if before >= start]
        theirs = [before - start - shift for before in other.before]
        if inside != [before for before in theirs if before >= 0]:
            return False
        if len(one.before) != len(other.before):
            return False
        if times > 1:  # what it reads of the block before it is as in the second
            second = [before - start - length for before in boxes[place + length].before]
            if second != theirs:
                return False
        elif any(before < -length for before in theirs):
            return False  # it reads from farther above
    return True


def _signature(box: Box, prefix: str, number: int) -> tuple[object, ...]:
    here, there = f"{prefix}.{number}".lstrip("."), f"{prefix}.#".lstrip(".")

    def plain(name: str) -> str:
        return there + name[len(here) :] if name == here or name.startswith(here + ".") else name

    parts = tuple((plain(site), count, stay) for site, count, stay in box.parts)
    return box.kind, plain(box.name), box.detail, box.shape, parts, box.gone


def _read_inside(boxes: Sequence[Box], start: int, length: int, times: int) -> bool:
    """Whether a block but the last is read by another than the next one."""
    last = start + (times - 1) * length
    end = last + length
    return any(start <= before < last for box in boxes[end:] for before in box.before)


def _drop_blocks(boxes: Sequence[Box], start: int, length: int, times: int) -> list[Box]:
    """The boxes with the first block in the place of all."""
    end = start + times * length

    def move(before: int) -> int:
        if before < start + length:
            return before
        return start + (before - start) % length if before < end else before - (times - 1) * length

    kept = [*boxes[: start + length], *boxes[end:]]
    return [replace(box, before=tuple(map(move, box.before))) for box in kept]
