"""Ablation: increase of the loss when a unit is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from secateur.errors import NumericalError

__all__ = ["without"]

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
