"""Cut a text to its budget, measured anew after each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from secateur.retrieval.encoders import Count
from secateur.select import ranking
from secateur.vocabulary import Array, Budget, Cut, Selection, Units

__all__ = ["Readable", "fit_to_limits"]

Kept = TypeVar("Kept", bound="Readable")


class Readable(Protocol):
    """Facts, passages or pages: a subject of texts."""

    def units(self, *axes: str, **counts: Count) -> Units:
        """One site: what may leave, and what each costs."""
        ...

    def cut(self: Kept, selection: Selection) -> tuple[Kept, Cut]:
        """What stays."""
        ...

    def cost(self, counts: Mapping[str, Count]) -> dict[str, float]:
        """Measure -> what all of it takes."""
        ...


def fit_to_limits(
    subject: Readable,
    scores: np.ndarray | Sequence[float],
    limits: Mapping[str, float],
    counts: Mapping[str, Count],
    units: Units | None = None,
) -> Selection:
    """The units with the highest scores that fit into the limits; the lowest leave first, and the rest is counted anew.

    Args:
        subject: what is cut; it has one site.
        scores: [units].
        limits: measure -> how much of it may stay.
        counts: measure -> (texts -> how many each has).
        units: those of the subject, where they differ from `subject.units(**counts)`.
    """
    units = subject.units(**counts) if units is None else units

    def measure(keep: Mapping[str, Array]) -> dict[str, float]:
        return subject.cut(Selection(keep))[0].cost(counts)

    (site,) = units.sites
    return ranking.by_budget(units, {site: np.asarray(scores)}, Budget.of(limits), measure=measure)
