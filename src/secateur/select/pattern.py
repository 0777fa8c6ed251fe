"""n:m and block patterns inside a matrix of scores."""

from __future__ import annotations

from itertools import combinations

from secateur.errors import InputError, NumericalError
from secateur.select.arrays import small_integers
from secateur.vocabulary import Array

__all__ = ["n_of_m"]


def n_of_m(scores: Array, n: int, m: int, dim: int = -1) -> Array:
    """A mask that keeps the `n` best of every `m` consecutive entries along `dim`. NumPy or torch, on its device.

    scores: any shape [..., d, ...]; returns booleans of that shape, exactly n True in each full run of m, ties to
    the lower index. A tail shorter than m stays whole, as hardware treats it. n counts what is KEPT (2:4 keeps two).

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks", ICLR 2021.
    """
    if not 0 < n <= m:
        raise InputError(f"pattern {n}:{m} is not n:m with 0 < n <= m, such as 2:4")
    if bool((scores != scores).any()):
        raise NumericalError(f"scores of shape {tuple(scores.shape)} hold NaN: a pattern needs finite scores")
    rows = scores.swapaxes(dim, -1)
    whole = rows.shape[-1] // m * m
    if not whole:  # all tail; what follows would go through every one of m
        return scores == scores
    columns = [rows[..., place:whole:m] for place in range(m)]
    # An entry stays if fewer than n others beat it; comparing needs no sort and no library of its own.
    beaten = [small_integers(column != column, m) for column in columns]
    for one, other in combinations(range(m), 2):
        higher = columns[other] > columns[one]
        beaten[one] += higher
        beaten[other] += ~higher
    mask = rows == rows
    for place in range(m):
        mask[..., place:whole:m] = beaten[place] < n
    return mask.swapaxes(dim, -1)
