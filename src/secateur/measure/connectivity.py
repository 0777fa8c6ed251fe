"""Linear mode connectivity of two networks, and the regime that it and their similarity tell.

Source: Zhou et al., "A Three-regime Model of Network Pruning" (arXiv 2305.18383).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import MeasurementError

__all__ = ["Regime", "blend", "connectivity", "label", "midpoint", "normalise"]

Regime: TypeAlias = Literal["I", "II-A", "II-B"]
"""I: a barrier parts siblings; II-A: connected, and not alike; II-B: connected and alike."""

_TIE = 1e-9
"""Errors are shares of examples: smaller differences are rounding."""


def blend(first: Mapping[str, Tensor], second: Mapping[str, Tensor], step: int, last: int) -> dict[str, Tensor]:
    """theta(s) = (1 - s) theta_a + s theta_b with s = step / last, of each tensor of numbers; others are `first`'s.

    Symmetric to the last bit: step k from one end is step last - k from the other. Where both are zero, it is zero.
    """
    return {
        name: (one * ((last - step) / last) + second[name] * (step / last)) if one.is_floating_point() else one
        for name, one in first.items()
    }


def connectivity(errors: Sequence[float]) -> float:
    """mc = m - e(s*), with m = (e(0) + e(1)) / 2 and s* = argmax_s |m - e(s)|, of errors along the path.

    About 0: connected; well below: a barrier; above: fewer errors in between. Where several s are farthest, mc is their
    mean, so that it is the same from both ends: 0 for a path that only rises. Raises `MeasurementError` for less than
    two errors, or one that is not finite.
    """
    path = np.asarray(errors, dtype=np.float64)
    if path.size < 2 or not np.isfinite(path).all():
        raise MeasurementError(f"a path of errors {list(errors)}: give two finite ones or more")
    gaps = (path[0] + path[-1]) / 2 - path
    farthest = np.abs(gaps) >= np.abs(gaps).max() - _TIE
    return float(gaps[farthest].mean())


def normalise(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """E'[t, d] = E[t, d] - min_t E[t, d]: 0 where a temperature is the best for its density. NaN stays NaN."""
    known = np.isfinite(errors).any(0)
    best = np.full(errors.shape[1], math.nan)
    best[known] = np.nanmin(errors[:, known], axis=0)
    return np.asarray(errors - best)


def midpoint(connectivities: Sequence[float], similarities: Sequence[float], barrier: float) -> float:
    """The CKA that parts II-A from II-B: halfway between the least and the most alike of the connected cells.

    0 where no cell is connected. The paper reads its line off the map; this rule is of our own.
    """
    alike = [cka for mc, cka in zip(connectivities, similarities, strict=True) if mc >= -barrier]
    return (min(alike) + max(alike)) / 2 if alike else 0.0


def label(connectivity: float, similarity: float, *, barrier: float, similar: float) -> Regime:
    """The regime of a cell: I where mc < -barrier, else II-B where the CKA is at least `similar`, else II-A."""
    if connectivity < -barrier:
        return "I"
    return "II-B" if similarity >= similar else "II-A"
