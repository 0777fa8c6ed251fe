"""Zeros in weight matrices: their number, bytes when packed, and whether they form an n:m pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from secateur._utils import codebook
from secateur.errors import InputError
from secateur.vocabulary import Figure

__all__ = ["WORTH", "broken", "figures", "packed_bits", "packed_bytes", "two_of_four", "weights", "zeros"]

WORTH = 0.05
"""The share of zeros from which a model is spoken of as sparse."""


def weights(matrices: Mapping[str, Tensor]) -> int:
    """How many weights of the matrices, name -> [d_out, d_in], are not zero."""
    return sum(int(torch.count_nonzero(matrix)) for matrix in matrices.values())


def zeros(matrices: Mapping[str, Tensor]) -> float:
    """Share of the matrices' weights that are zero; 0 where there are no matrices."""
    whole = sum(matrix.numel() for matrix in matrices.values())
    return 1.0 - weights(matrices) / whole if whole else 0.0


def figures(
    matrices: Mapping[str, Tensor], stored: float, bits: int | Mapping[str, int] | None = None
) -> dict[str, Figure]:
    """{"weights", "zeros", "packed_bytes"} of a model whose weights take `stored` bytes, these matrices among them.

    Packed are the matrices, each in its smallest form (`packed_bytes`) with `bits` for each weight, of all or of those
    named; everything else stays as it is.
    """
    whole = kept = saved = 0
    for name, matrix in matrices.items():  # once each: they may be read from the disk
        width = bits.get(name) if isinstance(bits, Mapping) else bits
        whole += matrix.numel()
        kept += int(torch.count_nonzero(matrix))
        saved += matrix.numel() * (width or 8 * matrix.element_size()) // 8 - packed_bytes(matrix, width)
    return {
        "weights": Figure(float(kept)),
        "zeros": Figure(1.0 - kept / whole if whole else 0.0),
        "packed_bytes": Figure(stored - saved, unit="B"),
    }


def packed_bits(bits: int) -> float:
    """Bits per weight of a 2:4 matrix whose kept weights have `bits` each, with the places of those that are kept.

    Two of four stay, each with its place in 2 bits: ``(2 bits + 2 * 2) / 4``, so 36 bits for 64 in half precision and
    20 for 32 in eight bits. Weights of four bits are kept in pairs, two pairs of four: ``(4 * 4 + 2 * 2) / 8``, 20 bits
    for 32. Source: the semi-structured formats of NVIDIA's sparse tensor cores, as counted by arXiv 2305.10727.
    """
    pair = 2 if bits <= 4 else 1
    return (2 * pair * bits + 2 * 2) / (4 * pair)


def packed_bytes(matrix: Tensor, bits: int | None = None) -> int:
    """Bytes of a matrix [d_out, d_in] in the smallest of these forms, each weight having `bits` (its own if None).

    - dense: every weight
    - bitmap: the weights that are not zero, and one bit for each place
    - 2:4, where at most two of four consecutive inputs are not zero: see `packed_bits`
    - levels, where `bits` are its own and its rows hold few different numbers: as the bitmap, each weight by its place
      among the numbers of its row
    """
    found = codebook.table(matrix) if bits is None and codebook.may_pay(matrix) else None
    bits = 8 * matrix.element_size() if bits is None else bits
    count = matrix.numel()
    forms: list[float] = [count * bits, int(torch.count_nonzero(matrix)) * bits + count]
    if two_of_four(matrix, in_pairs=bits <= 4):
        forms.append(count * packed_bits(bits))
    if found is not None:
        forms.append(8 * codebook.coded_bytes(found, int(torch.count_nonzero(matrix))) + count)
    return math.ceil(min(forms) / 8)


def two_of_four(matrix: Tensor, *, in_pairs: bool = False) -> bool:
    """Whether [d_out, d_in] is 2:4 along its inputs, with no tail: what kernels for it take.

    `in_pairs`: two neighbouring weights count as one, which is the pattern of kernels for four bits.
    """
    held = matrix != 0
    if in_pairs:
        if matrix.shape[1] % 2:
            return False
        held = held.unflatten(1, (-1, 2)).any(2)
    return held.shape[1] % 4 == 0 and not _off(held, 2, 4, exact=False)


def broken(matrices: Mapping[str, Tensor], n: int, m: int, *, exact: bool = False) -> dict[str, int]:
    """Name of each matrix [d_out, d_in] that is not n:m -> how many runs of m consecutive inputs have too many weights.

    In the order of `matrices`; empty where the pattern holds everywhere. A tail shorter than m is free. With `exact` a
    run with too few is off as well: for masks, as a weight that is kept may happen to be 0.
    """
    if not 0 < n <= m:
        raise InputError(f"pattern {n}:{m} is not n:m with 0 < n <= m, such as 2:4")
    found = {name: _off(matrix != 0, n, m, exact=exact) for name, matrix in matrices.items()}
    return {name: count for name, count in found.items() if count}


def _off(held: Tensor, n: int, m: int, *, exact: bool) -> int:
    """[d_out, d_in] booleans -> how many full runs of m along d_in have more than n, or other than n."""
    whole = held.shape[1] // m * m
    counts = held[:, :whole].unflatten(1, (whole // m, m)).sum(2)
    return int(torch.count_nonzero(counts != n if exact else counts > n))
