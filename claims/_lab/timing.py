"""Speedups measured by alternating calls on one thread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from claims._lab.settings import scaled
from secateur.measure import latency

__all__ = ["speedup"]


def speedup(before: Callable[[], object], after: Callable[[], object], seconds: float = 12.0) -> float:
    """How many times faster `after` is than `before`: the median of alternating pairs."""
    torch.set_num_threads(1)
    with torch.no_grad():
        how: dict[str, Any] = scaled(
            {"lasting": seconds, "enough": 4000}, {"lasting": 0.0, "pairs": 6, "resolution": math.inf}
        )
        pair = latency.compare(before, after, **how)
    return float(pair.speedup.value)
