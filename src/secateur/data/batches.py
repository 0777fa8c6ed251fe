"""From epochs to optimiser steps, and batches that know their step."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from secateur._utils import distributed
from secateur.errors import DataError, InputError

if TYPE_CHECKING:
    from secateur._utils.batches import Batch, Batches, FiniteBatches

__all__ = ["Apart", "Feed", "Numbered", "Repeated", "Shifted", "count_steps", "hold_out"]


class Feed(Sized, Protocol):
    """Endless numbered batches, `len(feed)` of them to an epoch; see `examples.Batches`."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """The micro-batch of that number, the same whenever it is asked for."""


def count_steps(feed: Sized, epochs: float, accumulate: int = 1) -> int:
    """Optimiser steps in so many epochs of `len(feed)` micro-batches: at least one, unless `epochs` is 0.

    accumulate: micro-batches to a step, of each process. Raises `InputError` for epochs below 0 or without end.
    """
    if not 0 <= epochs < math.inf:
        raise InputError(f"epochs={epochs}: give 0 or more")
    return max(1, round(epochs * (len(feed) / (accumulate * distributed.count())))) if epochs else 0


class Numbered:
    """Batches with the share of training that is over: `Numbered(feed, steps)[i]` adds "done", from 0 to 1.

    An objective sees a batch and not its number; this way a schedule is right after a resume, under accumulation and in
    several processes, which share the micro-batches out: all those of one step say the same.
    """

    def __init__(self, feed: Feed, steps: int, accumulate: int = 1) -> None:
        self._feed, self._steps, self._per_step = feed, max(1, steps), accumulate * distributed.count()

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._feed[index], "done": min(1.0, index // self._per_step / self._steps)}

    def hold_out(self, share: float) -> tuple[Numbered, Iterable[Mapping[str, object]]]:
        """As the batches' own; what is held out is seen as at the end of training."""
        rest, held = hold_out(self._feed, share)
        numbered = copy.copy(self)
        numbered._feed = rest
        return numbered, _Done(held)


class _Done:
    """One epoch of batches, as at the end of training."""

    def __init__(self, feed: Iterable[Mapping[str, object]]) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return ({**batch, "done": 1.0} for batch in self._feed)


class Shifted:
    """Batches from number `first` on: a stage of training goes on where the one before stopped."""

    def __init__(self, feed: Batches, first: int) -> None:
        self._feed, self._first = feed, first

    def __len__(self) -> int:
        return len(cast(Sized, self._feed))

    def __getitem__(self, index: int) -> Batch:
        return self._feed[self._first + index]

    def hold_out(self, share: float) -> tuple[Shifted, Iterable[Batch]]:
        """As the batches' own: the same part in every stage."""
        rest, held = hold_out(self._feed, share)
        return Shifted(rest, self._first), held


class Apart:
    """Batches of which a part was held out before: `hold_out` gives that part, whatever share is asked for."""

    def __init__(self, feed: FiniteBatches, held: Iterable[Batch]) -> None:
        self._feed, self._held = feed, held

    def __len__(self) -> int:
        return len(self._feed)

    def __getitem__(self, index: int) -> Batch:
        return self._feed[index]

    def hold_out(self, share: float) -> tuple[FiniteBatches, Iterable[Batch]]:
        """(all these batches, the part that was held out)."""
        return self._feed, self._held


class Repeated:
    """Batches that come several times in a given order; those of a group are held out together.

    batches: each once. order: numbers of batches, of all epochs together. groups: of each batch, what it belongs to,
    such as the page that it was made of. seed: of which groups are held out.
    """

    def __init__(
        self, batches: Sequence[Batch], order: Sequence[int], groups: Sequence[Hashable], *, seed: int
    ) -> None:
        self._batches, self._order, self._groups, self._seed = batches, list(order), groups, seed

    def __len__(self) -> int:
        return len(set(self._order))

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._order[index % len(self._order)]]

    def hold_out(self, share: float) -> tuple[Repeated, Iterable[Batch]]:
        """(batches of the other groups, in their order; each batch of a share of the groups once).

        Raises `DataError` where all are of one group.
        """
        names = list(dict.fromkeys(self._groups))
        if len(names) < 2:
            raise DataError(
                "all there is to learn from belongs together, such as to one page, and none of it can be held out: "
                "give more rows, or leave patience and validation out"
            )
        count = min(len(names) - 1, max(1, round(share * len(names))))
        chosen = np.random.default_rng([self._seed, len(names)]).permutation(len(names))[:count]
        back = {names[number] for number in chosen}
        order = [number for number in self._order if self._groups[number] not in back]
        held = [batch for batch, group in zip(self._batches, self._groups, strict=True) if group in back]
        return Repeated(self._batches, order, self._groups, seed=self._seed), held


def hold_out(feed: Batches, share: float) -> tuple[FiniteBatches, Iterable[Batch]]:
    """(batches to learn from, one epoch of a share of the data to judge by), of batches that can hold some out.

    Raises `InputError` for those that can't.
    """
    if not hasattr(feed, "hold_out"):
        raise InputError(
            "patience and validation need a part of the data to judge by, and this training can't hold one out"
        )
    rest, held = cast(Any, feed).hold_out(share)
    return rest, held
