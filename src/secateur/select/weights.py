"""Select single weights of matrices: an exact number by row, block, matrix, or globally."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np

from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.select.arrays import mask_like
from secateur.select.pattern import n_of_m
from secateur.vocabulary import Array, Budget, Pattern, Scores, write_enough

__all__ = [
    "Choose",
    "Scope",
    "above",
    "best",
    "best_of_all",
    "by_sums",
    "chooser",
    "read_budget",
    "second_share",
    "threshold",
]

Choose: TypeAlias = Callable[[Array], Array]
"""Scores [d_out, d_in] -> booleans, True where the weight stays."""

Scope = Literal["row", "block", "matrix", "global"]
"""What is compared with what: weights of one output, of `block` columns of a matrix, of a matrix, of all of them."""

_BINS = 1 << 16


def best(scores: Array, share: float, scope: Scope = "row", *, block: int = 128) -> Array:
    """A mask [d_out, d_in] that keeps the best of `scores` [d_out, d_in]: int(n share) of every n that are compared.

    NumPy or torch, on its device. Ties go to the lower index (in a block or matrix: of the rows laid end to end), so
    that a smaller share keeps a subset. The last block may be narrower.

    Raises `InputError` for a share outside 0 to 1 and for scope "global", which needs all matrices (`best_of_all`).
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
        raise InputError("scope='global' compares all matrices: use best_of_all(scores, share)")
    raise InputError(f"scope={scope!r}: give one of {', '.join(get_args(Scope))}")


def by_sums(scores: Array, share: float, *, tolerance: float = 1e-3) -> Array:
    """A mask [d_out, d_in]: each row loses its lowest scores, up to one share alpha of the row's sum.

    alpha, the same for all rows, is found by bisection so that at most `share` of the matrix stays, and at least
    `share - tolerance` where ties allow it.

    Source: Wanda (arXiv 2306.11695), official code's variant (from 0.4 in [0, 0.8], until 1e-3).
    """
    _check(share)
    values = _numbers("", scores).reshape(np.shape(scores)).astype(np.float64)
    order = np.argsort(values, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(values, order, 1), axis=1)
    goes = np.empty_like(values)  # the share of its row's sum up to and with each entry
    np.put_along_axis(goes, order, sums / np.maximum(sums[:, -1:], np.finfo(float).tiny), 1)
    low, high, alpha = 0.0, 1.0, 0.4
    for _ in range(60):
        kept = float((goes > alpha).mean())
        if share - tolerance <= kept <= share:
            break
        low, high = (alpha, high) if kept > share else (low, alpha)
        alpha = (low + high) / 2
    else:
        alpha = high
    return mask_like(goes > alpha, scores)


def best_of_all(scores: Scores, share: float) -> dict[str, Array]:
    """Name -> mask: the best int(n share) of the n entries of all arrays, whatever array they stand in.

    Ties go to the earlier array, then to the lower index. The arrays are counted into a histogram, never sorted or laid
    side by side; where not even the arrays fit in memory at once, use `threshold` and `above`.
    """
    _check(share)
    wanted = _count(sum(math.prod(np.shape(array)) for array in scores.values()), share)
    if not wanted:
        return {name: mask_like(np.zeros(np.shape(array), bool), array) for name, array in scores.items()}
    edge, ties = threshold(lambda: scores.items(), wanted)
    masks = {}
    for name, array in scores.items():
        masks[name], ties = above(array, edge, ties)
    return masks


def above(scores: Array, edge: float, ties: int) -> tuple[Array, int]:
    """A mask of what is greater than `edge`, and of the first `ties` that equal it; and how many ties are left."""
    column = _numbers("", scores)
    mask = column > edge
    equal = np.flatnonzero(column == edge)[:ties]
    mask[equal] = True
    return mask_like(mask.reshape(np.shape(scores)), scores), ties - len(equal)


def threshold(arrays: Callable[[], Iterable[tuple[str, Array]]], k: int) -> tuple[float, int]:
    """(the k-th largest number of all arrays together, how many of its equals are among the k largest), exactly.

    `arrays` gives (name, array) pairs, the same each time it is called; each is seen and let go. A histogram over the
    leading 16 bits of a number's rank tells which bin holds the one that is sought, a second one over the next 16 bits
    of what is in that bin, and so on: one pass to learn the number type, two for float32 or less, four for float64.
    """
    total, wide = 0, False
    for name, array in arrays():
        column = _numbers(name, array)
        total, wide = total + column.size, wide or column.dtype == np.float64
    if not 1 <= k <= total:
        raise InputError(f"k={k}: give a number between 1 and {total}")
    bits = 64 if wide else 32
    left, prefix = k, 0
    for shift in range(bits - 16, -1, -16):
        counts = np.zeros(_BINS, np.int64)
        for name, array in arrays():
            rank = _ranks(_numbers(name, array), wide)
            if shift + 16 < bits:
                rank = rank[rank >> np.uint64(shift + 16) == prefix]
            digits = ((rank >> np.uint64(shift)) & np.uint64(_BINS - 1)).astype(np.int64)
            counts += np.bincount(digits, minlength=_BINS)
        beyond = np.cumsum(counts[::-1])[::-1]  # how many are in this bin or in one above it
        digit = int(np.flatnonzero(beyond >= left)[-1])
        left -= int(beyond[digit + 1]) if digit + 1 < _BINS else 0
        prefix = (prefix << 16) | digit
    return _number(prefix, wide), left


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


def read_budget(
    budget: Budget, whole: float, recipe: str, *, held: float | None = None, all_stay: bool = False
) -> tuple[float, Pattern | None]:
    """(share of the `whole` weights that may stay, pattern or None) of a budget over single weights.

    held: how many of them are not zero, which is what a budget counts; all, if None. A model that was pruned before has
    fewer, and half of it is half of these. Up to half a percent of zeros are taken for chance, as a verdict does.
    all_stay: whether all may stay, where something else is done to the weights.

    Raises `BudgetError` for a budget that limits anything else or both, and for one under which nothing would go.
    """
    others = [limit.measure for limit in budget.limits if limit.measure != "weights"]
    if others or bool(budget.limits) == (budget.pattern is not None):
        what = others[0] if others else "both weights and a pattern" if budget.limits else "nothing"
        raise BudgetError(
            f"{recipe} can't follow budget {budget.brief()}, which limits {what}: give weights=50% or pattern=2:4"
        )
    most = 1.0
    if budget.pattern is not None:
        share = budget.pattern.n / budget.pattern.m
    else:
        most = 1.0 if held is None or held > 0.995 * whole else held / whole
        share = min(most, budget["weights"].absolute(most * whole) / whole)
    if share >= most and not all_stay:
        raise BudgetError(f"budget {budget.brief()} lets every weight stay, so that nothing would change: ask for less")
    return share, budget.pattern


def second_share(total: float, first: float, budget: Budget | None = None) -> float:
    """s2 = (S - s1) / (1 - s1): what must go of the weights that are left, for a share S of all that goes in all.

    Raises `InfeasibleError` where more than S went in the first stage.
    """
    if first > total + 1e-9:
        raise InfeasibleError(
            f"budget {budget}: the experts that go are {first:.4g} of the weights, more than the {total:.4g} that it "
            "asks for; keep more experts or fewer weights",
            1.0 - first,
        )
    return max(0.0, (total - first) / (1.0 - first))


def chooser(share: float, pattern: Pattern | None = None, scope: Scope = "row", *, block: int = 128) -> Choose:
    """Scores [d_out, d_in] -> mask, by the pattern or by the share.

    Raises `InfeasibleError` when asked for a mask of a row, block or matrix in which not one weight would stay.
    """
    if pattern is not None:
        return partial(n_of_m, n=pattern.n, m=pattern.m)

    def choose(scores: Array) -> Array:
        rows, columns = scores.shape
        size = {"row": columns, "block": rows * min(block, columns)}.get(scope, rows * columns)
        if _count(size, share) < 1:
            raise InfeasibleError(
                f"weights={share:.3g} leaves nothing of a {scope} of {size} weights: keep at least "
                f"{write_enough(1 / size)}",
                1 / size,
            )
        return best(scores, share, scope, block=block)

    return choose


def _rows(scores: Array, share: float) -> Array:
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


def _kth_smallest(scores: Array, k: int) -> Array:
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


def _numbers(name: str, array: Array) -> np.ndarray:
    """Any floating array as a flat NumPy column, float64 where it is that, else float32 (which holds the others)."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array if str(array.dtype) in ("torch.float32", "torch.float64") else array.float()).numpy()
    column = np.ascontiguousarray(array).reshape(-1)
    # Adding zero makes -0.0 and 0.0 one number, as comparisons have it.
    column = column + (np.float64(0) if column.dtype == np.float64 else np.float32(0))
    column = column if column.dtype == np.float64 else column.astype(np.float32, copy=False)
    if bool(np.isnan(column).any()):
        raise NumericalError(f"the scores{f' of {name}' if name else ''} hold NaN: give finite ones")
    return column
