"""Slices: all weights that belong to a unit, in whatever tensors they are, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Slices", "gather", "sum_rows", "total"]

Slices = Mapping[str, Sequence[tuple[Tensor, int, Tensor]]]
"""Site -> (parameter, dimension, unit of each index of it or -1), for every parameter that a unit takes a part of."""


def total(slices: Slices, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Site -> float64 [count]: `value` summed over all weights of each unit, on the CPU.

    value: parameter -> a number for each of its weights, in its shape. A weight that lies in two slices of a unit (a
    row and a column of one matrix) counts in both.
    """

    return gather(slices, lambda weight, dim: sum_rows(value(weight), dim))


def sum_rows(values: Tensor, dim: int) -> Tensor:
    """Float64 [indices of `dim`], on the CPU: `values` summed over every other dimension."""
    found = values.reshape(values.shape or (1,))
    others = [other for other in range(found.dim()) if other != dim]
    return (found.sum(others) if others else found).cpu().double()


def gather(slices: Slices, row: Callable[[Tensor, int], Tensor]) -> dict[str, Tensor]:
    """Site -> float64 [count]: what `row` says of the indices of each unit, summed.

    row: parameter and dimension -> float64 [indices of the dimension], on the CPU; asked once of each.
    """
    rows: dict[tuple[int, int], Tensor] = {}
    result = {}
    with torch.no_grad():
        for site, parts in slices.items():
            count = max(int(unit.max()) for _, _, unit in parts) + 1
            result[site] = torch.zeros(count, dtype=torch.float64)
            for weight, dim, unit in parts:
                key = (id(weight), dim)
                if key not in rows:
                    rows[key] = row(weight, dim).reshape(-1)  # a weight of no dimension is one row
                inside = unit >= 0
                result[site].index_add_(0, unit[inside], rows[key][inside])
    return result
