"""Alignment: similarity of two sequences where matched items keep their order."""

from __future__ import annotations

import itertools

import numpy as np

__all__ = ["align"]


def align(alike: np.ndarray) -> list[float]:
    """Each row's value in the one-to-one alignment of rows and columns, in order, of the largest sum; 0 where unpaired.

        S[i, j] = max(S[i - 1, j], S[i, j - 1], S[i - 1, j - 1] + max(0, alike[i, j]))

    alike: [rows, columns]. Source: Needleman and Wunsch (1970), with gaps that cost nothing.
    """
    rows, columns = alike.shape
    best = np.zeros((rows + 1, columns + 1))
    for i, j in itertools.product(range(rows), range(columns)):
        best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + max(0.0, alike[i, j]))
    values, i, j = [0.0] * rows, rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            values[i] = float(alike[i, j])
    return values
