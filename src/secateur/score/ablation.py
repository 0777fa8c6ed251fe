"""Ablation: what a model loses when units are removed, one at a time or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from secateur.errors import DataError, NumericalError

__all__ = ["list_in_order", "normalized_mse", "without"]

_SLICE = 1 << 22
"""Logits that are taken to float64 at once: all of a long batch and a large vocabulary would fill a device."""

B = TypeVar("B")
C = TypeVar("C")


def without(evaluate: Callable[[C], float], candidates: Iterable[C]) -> Tensor:
    """Float64 [candidates]: the loss with each candidate taken out. The higher it is, the more the candidate counts.

    evaluate: candidate (a layer index, a head, a block of layers) -> loss of the model without it.
    Source: "oracle" or leave-one-out importance; Minitron (arXiv 2407.14679), section 2.2, depth ranking.
    """
    losses: list[float] = []
    for candidate in candidates:
        loss = float(evaluate(candidate))
        if loss != loss:
            raise NumericalError(f"the loss without {candidate!r} is NaN: check the model and the data")
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@torch.no_grad()
def normalized_mse(
    whole: Callable[[B], Tensor], without: Callable[[B, C], Tensor], batches: Iterable[B], candidates: Sequence[C]
) -> Tensor:
    """Float64 [candidates]: sum (M(x) - M_-c(x))^2 / sum M(x)^2, over all batches, positions and logits.

    whole, without: a batch -> logits of the positions that count, of the whole model and of it without a candidate. Of
    each batch the whole model is asked once. Raises `DataError` without batches, `NumericalError` for NaN or infinity.

    Source: Nemotron Elastic (arXiv 2511.16664), section 3.1, importance of layers.
    """
    far, size = torch.zeros(len(candidates), dtype=torch.float64), 0.0
    for batch in batches:
        logits = whole(batch).flatten()
        size += sum(float(part.double().square().sum()) for part in logits.split(_SLICE))
        for place, candidate in enumerate(candidates):
            pairs = zip(logits.split(_SLICE), without(batch, candidate).flatten().split(_SLICE), strict=True)
            far[place] += sum(float((part.double() - other.double()).square().sum()) for part, other in pairs)
    if not size:
        raise DataError("there is nothing to compare logits on: give texts with tokens")
    if not bool(torch.isfinite(far).all()):
        raise NumericalError("logits without a layer are not finite: check the model and the data")
    return far / size


def list_in_order(
    score: Callable[[Sequence[tuple[int, ...]]], Tensor], units: Sequence[int], count: int
) -> list[tuple[int, float]]:
    """(unit, its score) of `count` units in the order in which they go: each time the one that is missed least.

    score: sets of units -> what the model loses without each set, [sets]. Those gone before stay gone: every set holds
    them and one more.

    Source: Nemotron Elastic (arXiv 2511.16664), section 3.1: iterative, against the whole model each time.
    """
    gone, found = list[int](), list[tuple[int, float]]()
    for _ in range(count):
        left = [unit for unit in units if unit not in gone]
        losses = score([(*gone, unit) for unit in left])
        best = int(torch.argmin(losses))
        gone.append(left[best])
        found.append((left[best], float(losses[best])))
    return found
