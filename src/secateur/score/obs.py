"""Optimal brain surgeon over single weights: which to remove at the least loss, and the update of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur._utils import allocator
from secateur._utils.finite import all_finite
from secateur.errors import InputError, NumericalError
from secateur.score.hessian import Moments, dampened_factor_, strips

__all__ = [
    "Pruned",
    "describe_losses",
    "factor",
    "factor_",
    "factor_all",
    "grid",
    "prune",
    "prune_all",
    "round_to_nearest",
]

_TOGETHER = 3
"""Matrices with the same inputs that are gone through at once: queries, keys and values, not all starved experts."""

_STEP = 16
"""Columns whose corrections are applied one by one; beyond them they are added up into matrix products."""


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What `prune` gives.

    weight: [d_out, d_in], zero where `mask` is False, corrected elsewhere. loss: sum of e^2 / 2 over what went (or was
    rounded), which is by how much the outputs change: ||W' X - W X||^2 / N, with the dampening counted in.
    """

    weight: Tensor
    mask: Tensor
    loss: float


def describe_losses(losses: Sequence[float | None]) -> str:
    """A note on the `Pruned.loss` of each block; None where a run that went on doesn't know it."""
    told = ", ".join("unknown" if loss is None else f"{loss:.3g}" for loss in losses)
    return f"squared error of what the matrices give, a token, as estimated on the way, by block: {told}"


def factor(H: Tensor, damp: float = 0.01) -> Tensor:
    """U [d_in, d_in], upper triangular, with U^T U = (H + damp mean(diag H) I)^-1.

    U_jj^2 is the inverse of the j-th pivot once the columns before j are gone: what removing j costs is w_j^2 / U_jj^2.
    With J the reversal of order and J H J = L L^T, U = (J L J)^-1: one Cholesky and one triangular inverse.
    Source: SparseGPT (arXiv 2301.00774), section 3.3.
    """
    return factor_(H.clone(), damp)


def factor_(H: Tensor, damp: float = 0.01) -> Tensor:
    """`factor`, in place: H becomes U. One more of its size is held at a time: at [28672, 28672] each is 3 GiB."""
    H.copy_(H.flip(0, 1))
    lower = dampened_factor_(H, damp)
    for here in strips(len(lower)):  # what is above its diagonal block is zero, and stays so
        below = slice(here.start, None)
        one = torch.eye(len(lower) - here.start, here.stop - here.start, dtype=lower.dtype, device=lower.device)
        lower[below, here] = torch.linalg.solve_triangular(lower[below, below], one, upper=False)
    return H.copy_(lower.flip(0, 1))


def factor_all(moments: dict[str, Moments], damp: float = 0.01) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """(names, the diagonal of H, U) by `factor`, of each matrix in turn and its neighbours of the same moments.

    `moments` is emptied on the way, and U takes the place of H: of all that is as large, two are held at a time.
    """
    for _, group in itertools.groupby(list(moments), lambda name: id(moments[name])):
        names = list(group)
        shared = any(moments[name] is moments[names[0]] for name in moments if name not in names)
        H = moments[names[0]].value(names[0])
        for name in names:
            del moments[name]
        allocator.release_memory()
        diagonal = H.diagonal().clone()
        yield names, diagonal, factor(H, damp) if shared else factor_(H, damp)
        del H  # before the next one is worked on


def prune_all(
    matrices: Mapping[str, Tensor],
    moments: dict[str, Moments],
    choose: Callable[[Tensor], Tensor],
    *,
    every: int = 128,
    damp: float = 0.01,
    bits: int = 0,
    group: int = 0,
    by_row: bool = False,
) -> float:
    """`prune` all matrices [d_out, d_in] in place; those that read the same are gone through at once, row under row.

    Returns the sum of their losses, see `Pruned`.

    Args:
        matrices: name -> matrix.
        moments: of what each reads, in the order of the work; emptied, see `factor_all`.
        choose: of one matrix, see `prune`.
        every, damp: see `prune`.
        bits, group: if not 0, see `grid` and `prune`.
        by_row: `choose` looks at each row by itself, so that it may be asked for several matrices at once.
    """
    loss = 0.0
    for names, diagonal, U in factor_all(moments, damp):
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]
            sizes = [len(matrices[name]) for name in some]
            whole = torch.cat([matrices[name] for name in some])

            def each(scores: Tensor, sizes: Sequence[int] = sizes) -> Tensor:
                return torch.cat([choose(part) for part in scores.split(sizes)])

            found = prune(whole, diagonal, choose if by_row else each, every=every, inverse=U, bits=bits, group=group)
            for name, part in zip(some, found.weight.split(sizes), strict=True):
                matrices[name].copy_(part)
            loss += found.loss
            del whole, found
        del U  # before the next one is made
    return loss


def prune(
    weight: Tensor,
    H: Tensor,
    choose: Callable[[Tensor], Tensor] | Tensor,
    *,
    every: int = 128,
    block: int = 128,
    damp: float = 0.01,
    bits: int = 0,
    group: int = 0,
    inverse: Tensor | None = None,
) -> Pruned:
    """Go through the columns from left to right; what goes is made up for by all columns to its right.

    Each `every` columns, `choose` gets the scores w_ij^2 / U_jj^2 [d_out, every] of weights that hold all corrections
    so far, and says by booleans which stay. Then, for each column i with pruned weights q:
    e = (w - q) / U_ii and W_:k -= e U_ik for all k > i.

    Args:
        weight: [d_out, d_in]; any float type, computed in float32. Not changed.
        H: [d_in, d_in], from `hessian.collect`; its diagonal [d_in] will do where `inverse` is given.
        choose: scores -> mask, or a mask [d_out, d_in] made elsewhere (the corrections alone).
        every: columns per choice: 128 for a share of the weights, m for n of m, 0 to choose among all columns at once,
            by weights that hold no correction yet.
        block: columns whose corrections of the rest are applied as one matrix product.
        damp: dampening, as a share of the mean of H's diagonal.
        bits: if not 0, what stays is rounded on the way, to the levels of `grid` for each row.
        group: columns that share their levels, a multiple of 16: those that their weights span once all corrections
            of the columns before them are made; 0 for all columns of a row, by its weights as they were.
        inverse: `factor(H, damp)`, for matrices that share their inputs.

    Weights of inputs that were always zero become zero, whether they are chosen or not.

    With `bits` and a mask of which all stays, this is GPTQ (arXiv 2210.17323), algorithm 1, with its groups.

    Source: SparseGPT (arXiv 2301.00774), algorithm 1. Departure: the corrections inside a block are gathered 16
    columns at a time into matrix products, which is the same sum in another order.
    """
    d_out, d_in = weight.shape
    fits = H.shape == (d_in, d_in) or (inverse is not None and H.shape == (d_in,))
    if not fits or every < 0 or block < 1:
        raise InputError(f"weight {tuple(weight.shape)}, H {tuple(H.shape)}, every={every}: expected [d_out, d_in], "
                         "[d_in, d_in] and no number below 0")  # fmt: skip
    if not all_finite(weight):
        raise NumericalError(f"weight {tuple(weight.shape)} holds NaN or infinity: this checkpoint is broken")
    U = factor(H, damp) if inverse is None else inverse
    pivots, diagonal = U.diagonal().square().unsqueeze(1), U.diagonal().tolist()
    # Transposed, so that a column of W is a run of memory.
    W = weight.detach().to(torch.float32, copy=True).T.contiguous()
    W[(H if H.dim() == 1 else H.diagonal()) == 0.0] = 0.0
    if not every:
        choose = choose if isinstance(choose, Tensor) else choose((W.square() / pivots).T)
        every = block
    # A choice lies within one step, or at the start of one: its columns then hold all corrections there are.
    step = _STEP if every % _STEP == 0 else every * max(1, _STEP // every)
    if group % _STEP or (group and group % step):
        raise InputError(f"groups of {group} columns, and {every} to choose among: give multiples of {_STEP}")
    rounded = grid(weight, bits) if bits and not group else None
    whole = math.lcm(step, every, group or 1)
    block = max(1, block // whole) * whole
    gone = torch.zeros_like(W, dtype=torch.bool)
    loss = 0.0
    for start in range(0, d_in, block):
        end = min(start + block, d_in)
        errors = W.new_zeros(end - start, d_out)
        for first in range(start, end, step):
            last = min(first + step, end)
            columns = zip(W[first:last], gone[first:last], errors[first - start : last - start], strict=True)
            for i, (w, goes, error) in enumerate(columns, first):
                if (i - start) % every == 0:
                    some = slice(i, min(i + every, end))
                    if isinstance(choose, Tensor):
                        gone[some] = ~choose[:, some].T
                    else:
                        gone[some] = ~choose((W[some].square() / pivots[some]).T).T
                if bits and group and i % group == 0:
                    rounded = grid(W[i : i + group].T, bits)
                if rounded is None:
                    torch.mul(w, goes, out=error)
                else:
                    kept = rounded(w).masked_fill(goes, 0.0)
                    torch.sub(w, kept, out=error)
                    w.copy_(kept)
                error.div_(diagonal[i])
                if i + 1 < last:
                    W[i + 1 : last].addr_(U[i, i + 1 : last], error, alpha=-1.0)
            if last < end:
                W[last:end].addmm_(U[first:last, last:end].T, errors[first - start : last - start], alpha=-1.0)
        W[start:end].masked_fill_(gone[start:end], 0.0)
        if end < d_in:
            W[end:].addmm_(U[start:end, end:].T, errors, alpha=-1.0)
        loss += 0.5 * float(errors.square().sum())
    return Pruned(W.T.to(weight.dtype), ~gone.T, loss)


def grid(weight: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """A rounding of columns [d_out] onto 2^bits levels per row, asymmetric between the row's least and largest weight.

    Zero is always a level. Source: the joint quantisation of SparseGPT (arXiv 2301.00774), section 3.5.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"bits={bits}: give 2 to 8")
    most = 2**bits - 1
    low = weight.detach().float().amin(1).clamp(max=0.0)
    high = weight.detach().float().amax(1).clamp(min=0.0)
    scale = ((high - low) / most).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.round(-low / scale)

    def round_column(column: Tensor) -> Tensor:  # or several columns [.., d_out]
        levels = torch.clamp(torch.round(column / scale) + zero, 0, most)
        result: Tensor = scale * (levels - zero)
        return result

    return round_column


def round_to_nearest(weight: Tensor, bits: int, group: int = 0) -> Tensor:
    """A matrix [d_out, d_in] whose weights are rounded to the levels of `grid`, for each `group` columns of a row.

    group: 0 for whole rows; the last group may be narrower. The same number type.
    """
    width = group or weight.shape[1]
    parts = [grid(part, bits)(part.float().T).T for part in weight.split(width, 1)]
    return torch.cat(parts, 1).to(weight.dtype)
