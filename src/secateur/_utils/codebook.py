"""Matrices whose rows hold few distinct numbers, as quantisation leaves them: find these and the bits per index."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["coded_bytes", "may_pay", "table"]

_MOST = 256


def may_pay(matrix: Tensor) -> bool:
    """Whether a table [d_out, 2^bits] can be smaller than its matrix [d_out, d_in], as far as the first row tells."""
    return bool(matrix.numel()) and 1 << max(1, (len(matrix[0].unique()) - 1).bit_length()) < matrix.shape[1]


def table(matrix: Tensor) -> Tensor | None:
    """The different numbers of each row of a matrix [d_out, d_in], ascending: [d_out, 2^bits].

    As few bits as are enough for the richest row; in others the largest number is repeated. None where a row has more
    than 256.
    """
    if not matrix.numel() or len(matrix[0].unique()) > _MOST:  # where most matrices end
        return None
    ordered = matrix.detach().sort(1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = new.cumsum(1) - 1
    most = int(place[:, -1].max()) + 1
    if most > _MOST:
        return None
    found = ordered[:, -1:].repeat(1, 1 << max(1, (most - 1).bit_length()))
    return found.scatter_(1, place, ordered)


def coded_bytes(found: Tensor, count: int) -> int:
    """Bytes of `count` weights as places in the table `found`, and of that table."""
    bits = found.shape[1].bit_length() - 1
    return found.nbytes + bits * -(-count // 8)
