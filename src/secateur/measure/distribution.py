"""Statistics of a network's weights that predict how well it tolerates pruning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from secateur.errors import MeasurementError

__all__ = ["kurtosis"]


def kurtosis(weights: Sequence[Tensor], *, zeros: bool = False) -> float:
    """K = E[((theta - mu) / sigma)^4] over all entries of all `weights` together; 3 for a normal distribution.

    zeros: count the weights that are zero. Pruned ones are not there any more, and weights without those near zero have
    a lower K: they bear further pruning less.

    Computed in float64, one tensor at a time, in three passes. Raises `MeasurementError` where fewer than two different
    weights are left.

    Source: the proxy of robustness to unstructured pruning in STUN (arXiv 2409.06211).
    """

    def columns() -> Iterable[Tensor]:
        for weight in weights:
            column = weight.detach().flatten()
            yield (column if zeros else column[column != 0]).double()

    count = sum(len(column) for column in columns())
    mean = sum(float(column.sum()) for column in columns()) / max(count, 1)
    second = fourth = 0.0
    for column in columns():
        square = (column - mean).square()
        second += float(square.sum())
        fourth += float(square.square().sum())
    if not second > 0 or not torch.isfinite(torch.tensor(fourth)):
        raise MeasurementError(
            f"the kurtosis of {count} weights was asked for: give at least two, finite and different"
        )
    return fourth / count / (second / count) ** 2
