"""Which single weights of matrices stay: exactly as many as asked for, by row, block, matrix, or globally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from secateur.errors import InputError, NumericalError
from secateur.select.arrays import mask_like

__all__ = ["Scope", "best", "everywhere", "threshold"]

Scope = Literal["row", "block", "matrix", "global"]
"""What is compared with what: weights of one output, of `block` columns of a matrix, of a matrix, of all of them."""

_BINS = 1 << 16


def best(scores: Any, share: float, scope: Scope = "row", *, block: int = 128) -> Any:
    """A mask [d_out, d_in] that keeps the best of `scores` [d_out, d_in]: int(n share) of every n that are compared.

    NumPy or torch, on its device. Ties go to the lower index (in a block or matrix: of the rows laid end to end), so
    that a smaller share keeps a subset. The last block may be narrower.

    Raises `InputError` for a share outside 0 to 1 and for scope "global", which needs all matrices (`everywhere`).
    """
    _check(share)
    if bool((scores != scores).any()):
        raise NumericalError(f"scores of shape {tuple(scores.shape)} hold NaN: give finite ones")
    if scope == "row":
        return _rows(scores, share)
    if scope == "matrix":
        return _rows(scores.reshape(1, -1), share).reshape(scores.shape)
    if scope == "block":
        mask = scores != scores
        for start in range(0, scores.shape[1], block):
            part = scores[:, start : start + block]
            mask[:, start : start + block] = _rows(part.reshape(1, -1), share).reshape(part.shape)
        return mask
    if scope == "global":
        raise InputError("scope='global' compares all matrices: use everywhere(scores, share)")
    raise InputError(f"scope={scope!r}: give one of {', '.join(get_args(Scope))}")


def everywhere(scores: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Name -> mask: the best int(n share) of the n entries of all arrays, whatever array they stand in.

    Ties go to the earlier array, then to the lower index. The arrays are counted into a histogram, never sorted or
    laid side by side, so that billions of entries take two passes and no further memory (see `threshold`).
    """
    _check(share)
    columns = {name: _numbers(name, array) for name, array in scores.items()}
    wanted = _count(sum(column.size for column in columns.values()), share)
    if not wanted:
        return {name: mask_like(np.zeros(np.shape(array), bool), array) for name, array in scores.items()}
    edge = threshold(list(columns.values()), wanted)
    left = wanted - sum(int((column > edge).sum()) for column in columns.values())
    masks = {}
    for name, column in columns.items():
        mask = column > edge
        ties = np.flatnonzero(column == edge)[:left]
        left -= len(ties)
        mask[ties] = True
        masks[name] = mask_like(mask.reshape(np.shape(scores[name])), scores[name])
    return masks


def threshold(columns: Sequence[np.ndarray], k: int) -> float:
    """The k-th largest number of all `columns` together (float32 or float64, one-dimensional), exactly.

    A histogram over the leading 16 bits of a number's rank tells which bin holds it, a second one over the next 16 bits
    of what is in that bin, and so on: two passes for float32, four for float64.
    """
    total = sum(column.size for column in columns)
    if not 1 <= k <= total:
        raise InputError(f"k={k}: give a number between 1 and {total}")
    wide = any(column.dtype == np.float64 for column in columns)
    bits = 64 if wide else 32
    left, prefix = k, 0
    for shift in range(bits - 16, -1, -16):
        counts = np.zeros(_BINS, np.int64)
        for column in columns:
            rank = _ranks(column, wide)
            if shift + 16 < bits:
                rank = rank[rank >> np.uint64(shift + 16) == prefix]
            digits = ((rank >> np.uint64(shift)) & np.uint64(_BINS - 1)).astype(np.int64)
            counts += np.bincount(digits, minlength=_BINS)
        above = np.cumsum(counts[::-1])[::-1]  # how many are in this bin or in one above it
        digit = int(np.flatnonzero(above >= left)[-1])
        left -= int(above[digit + 1]) if digit + 1 < _BINS else 0
        prefix = (prefix << 16) | digit
    return _number(prefix, wide)


def _ranks(column: np.ndarray, wide: bool) -> np.ndarray:
    """Unsigned integers in the order of the numbers: the bits of a float, with the sign's meaning put right."""
    if wide:
        raw = column.astype(np.float64, copy=False).view(np.uint64)
        return np.where(raw >> np.uint64(63) == 1, ~raw, raw | np.uint64(1 << 63))
    small = column.view(np.uint32)
    turned = np.where(small >> np.uint32(31) == 1, ~small, small | np.uint32(1 << 31))
    return turned.astype(np.uint64)


def _number(rank: int, wide: bool) -> float:
    size = 64 if wide else 32
    top = 1 << (size - 1)
    raw = rank ^ top if rank & top else rank ^ ((1 << size) - 1)
    kind, whole = (np.float64, np.uint64) if wide else (np.float32, np.uint32)
    return float(np.array(raw, whole).view(kind))


def _rows(scores: Any, share: float) -> Any:
    """[..., n] -> a mask with int(n share) True in each row."""
    size = scores.shape[-1]
    wanted = _count(size, share)
    if wanted == 0:
        return scores != scores
    if wanted == size:
        return scores == scores
    edge = _kth_smallest(scores, size - wanted + 1)
    above, ties = scores > edge, scores == edge
    missing = wanted - above.sum(-1, keepdims=True)
    return above | (ties & (ties.cumsum(-1) <= missing))


def _kth_smallest(scores: Any, k: int) -> Any:
    """[..., n] -> [..., 1]."""
    if hasattr(scores, "kthvalue"):
        return scores.float().kthvalue(k, -1, True)[0] if scores.element_size() < 4 else scores.kthvalue(k, -1, True)[0]
    return np.partition(scores, k - 1, axis=-1)[..., k - 1 : k]


def _count(size: int, share: float) -> int:
    """How many of `size` may stay; 1e-9 absorbs the rounding of a product that should have been whole."""
    return int(size * share + 1e-9)


def _check(share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share={share}: give the share of weights that stay, from 0 to 1")


def _numbers(name: str, array: Any) -> np.ndarray:
    """Any floating array as a flat NumPy column, float64 where it is that, else float32 (which holds the others)."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array if str(array.dtype) in ("torch.float32", "torch.float64") else array.float()).numpy()
    column = np.ascontiguousarray(array).reshape(-1)
    column = column if column.dtype == np.float64 else column.astype(np.float32, copy=False)
    if bool(np.isnan(column).any()):
        raise NumericalError(f"the scores of {name} hold NaN: give finite ones")
    return column
