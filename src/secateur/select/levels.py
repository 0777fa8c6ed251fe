"""Levels of a knapsack: one choice of kept count per site, from polynomial costs of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.errors import InputError, UnsupportedError
from secateur.vocabulary import Units

__all__ = ["Table", "costs", "widest", "with_latency"]

Table = dict[str, dict[str, float]]
"""Kind of site -> kept count (as text, for JSON) -> seconds; under "rest" what no block takes."""


def widest(units: Units) -> dict[str, int]:
    """Kind of site -> the most units that a site of it has: they differ in a model that was cut before."""
    counts: dict[str, int] = {}
    for site in units.sites.values():
        counts[site.kind] = max(site.count, counts.get(site.kind, 0))
    return counts


def costs(units: Units, levels: Mapping[str, Sequence[int]], measure: str) -> tuple[dict[str, np.ndarray], float]:
    """Site -> [levels] cost of keeping that many units there, and the cost of all that no level changes.

    Exact where the sites named don't share a term (heads and neurons at a fixed width); raises
    `UnsupportedError` where they do, since then no column of costs exists.
    """
    nothing = {name: np.zeros(units[name].count, dtype=bool) for name in levels}
    base = units.cost(nothing)[measure]
    columns: dict[str, np.ndarray] = {}
    for name, counts in levels.items():
        span = np.arange(units[name].count)
        columns[name] = np.array([units.cost({**nothing, name: span < k})[measure] - base for k in counts])
    whole = base + sum(
        float(units.cost({**nothing, name: np.ones(units[name].count, dtype=bool)})[measure] - base) for name in levels
    )
    full = units.cost()[measure]
    if abs(whole - full) > 1e-6 * max(abs(full), 1e-12):
        raise UnsupportedError(
            f"the {measure} of {', '.join(levels)} is a product, not a sum, of what is kept at each: "
            "select one of these axes at a time"
        )
    return columns, float(base)


def with_latency(units: Units, table: Table | None, fixed: float) -> Units:
    """`units` with the seconds of `table` as one more cost beside `fixed` seconds that nothing selected changes.

    Counts between two timed ones are interpolated. Without a table, `units` as they are. Raises `InputError` for a site
    of more units than were timed.
    """
    if table is None:
        return units
    columns: dict[str, np.ndarray] = {}
    for name, site in units.sites.items():
        if site.kind in table:
            counts, seconds = zip(*sorted((int(k), value) for k, value in table[site.kind].items()), strict=True)
            if site.count > counts[-1]:
                raise InputError(
                    f"{name} has {site.count} units, and the latency table ends at {counts[-1]}: "
                    "give a new out folder, so that all widths are timed"
                )
            columns[name] = np.interp(np.arange(site.count + 1), counts, seconds)
    return units.with_table("latency", columns, fixed)
