"""Principal components: the directions in which states vary most."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.score.hooks import finite

__all__ = ["components", "second_moment"]


def second_moment(states: Iterable[Tensor]) -> Tensor:
    """Float64 [d, d]: C = sum_i X_i^T X_i over states X_i [..., d], where the first of them lies.

    Source: SliceGPT (arXiv 2401.15024), section 3.3.
    """
    total: Tensor | None = None
    for one in states:
        rows = one.detach().flatten(0, -2).double()
        found = rows.T @ rows
        total = found if total is None else total + found.to(total.device)
    if total is None:
        raise DataError("there are no states to find components of: give at least one batch")
    return finite("the states of the residual stream", total)


def components(moment: Tensor) -> tuple[Tensor, Tensor]:
    """([d], [d, d]) float64: the eigenvalues of a second moment, largest first, and its eigenvectors as columns.

    Higher means keep: the first k columns are the basis of k directions that loses least of the states, in squares.
    """
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0), vectors.flip(1)
