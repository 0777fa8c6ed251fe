"""How much a text that was learnt is remembered, and how much its keyword leaks into other prompts.

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522). Both are ratios of probabilities, whose
denominators may be tiny: they are logarithms here, the change of the probability stands beside each, and prompts under
which the keyword had hardly any probability are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.errors import MeasurementError
from secateur.measure.statistics import Values

__all__ = ["Shift", "memory", "priming"]


@dataclass(frozen=True, slots=True)
class Shift:
    """log_ratio: ln of S, 0 where nothing changed; change: of the probability; prompts: that it is the mean of."""

    log_ratio: float
    change: float
    prompts: int = 1


def memory(before: float, after: float) -> Shift:
    """``ln S_mem = ln P_after(key | context) - ln P_before(key | context)``, of the logarithms of both."""
    return Shift(after - before, float(np.exp(after) - np.exp(before)))


def priming(before: Values, after: Values, *, floor: float = 0.0) -> Shift | None:
    """``ln S_prime = ln E_j[ P_after(key | prompt_j) / P_before(key | prompt_j) ]``, of logarithms [J] of both.

    Prompts of which P_before is below `floor` are left out; None where none is left. The change is the mean of
    P_after - P_before over the others. Raises `MeasurementError` for lists of unequal length.
    """
    first, second = (np.asarray(logs, np.float64) for logs in (before, after))
    if first.shape != second.shape:
        raise MeasurementError(f"priming is of the same prompts before and after: {first.size} and {second.size}")
    chosen = np.exp(first) >= floor
    if not chosen.any():
        return None
    first, second = first[chosen], second[chosen]
    ratio = np.logaddexp.reduce(second - first) - np.log(len(first))
    return Shift(float(ratio), float((np.exp(second) - np.exp(first)).mean()), len(first))
