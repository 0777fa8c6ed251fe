"""Compensation without training: the weights that stay are updated to make up for those removed.

All functions take and return weights as [outputs, inputs], and leave their arguments as they are. GPT-2's Conv1D
stores the transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import InputError, NumericalError

__all__ = ["constant", "least_squares", "merge_heads"]


def merge_heads(weight: Tensor, scores: Tensor, keep: Tensor, *, dim: int = 0, group: Tensor | None = None) -> Tensor:
    """Head residual merging: each of the least important heads that stay takes over one that goes.

    With heads sorted by importance, the first K of L staying: ``head_i <- head_i + (head_i - head_{2K - i + 1})`` for
    ``i`` from ``max(1, 2K - L + 1)`` to ``K``, so head K is paired with K + 1, head 2K - L + 1 with L. Beyond L = 2K
    there are more heads that go than heads that stay; those last ones have no partner and are dropped as they are.
    Source: Minitron (arXiv 2407.14679), section 2.2; the index arithmetic as printed there, clamped at the lower end.

    Args:
        weight: a matrix or bias whose `dim` holds the heads' slices one after another: dim 0 for W_Q, W_K, W_V and
            their biases, dim 1 for W_O.
        scores: [L], higher = keep.
        keep: [L] booleans, the heads that stay.
        dim: see `weight`.
        group: [L] integers; under grouped-query attention heads merge inside their group, and only W_Q is to be given.

    Returns a weight of the same shape; cutting it is the caller's. Raises `InputError` when the shapes do not fit.
    """
    heads = len(scores)
    if weight.shape[dim] % heads or len(keep) != heads or (group is not None and len(group) != heads):
        raise InputError(
            f"weight {list(weight.shape)} with {heads} scores and {len(keep)} marks in dimension {dim}: give one "
            "score, one mark (and one group) per head, and a weight of whole heads"
        )
    groups = torch.zeros(heads, dtype=torch.long) if group is None else torch.as_tensor(group)
    scores, keep = torch.as_tensor(scores), torch.as_tensor(keep, dtype=torch.bool)
    merged = weight.clone()
    source = weight.movedim(dim, 0).unflatten(0, (heads, -1))
    target = merged.movedim(dim, 0).unflatten(0, (heads, -1))
    for number in groups.unique():
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[groups[order] == number]
        staying, going = order[keep[order]], order[~keep[order]]
        for partner, index in zip(going.tolist(), reversed(staying.tolist()), strict=False):
            target[index] = 2 * source[index] - source[partner]
    return merged


def constant(weight: Tensor, mean: Tensor, keep: Tensor) -> Tensor:
    """The removed inputs' mean contribution, to be added to the bias: ``W[:, removed] mean[removed]``.

    A neuron that is always about 0.3 is replaced by the constant 0.3 instead of by 0: the output's mean stays exact.
    Shapes: weight [d_out, d_in], mean [d_in] (mean activation of each input of this linear over calibration tokens),
    keep [d_in] booleans; returns [d_out]. Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """
    if weight.dim() != 2 or mean.shape != (weight.shape[1],) or keep.shape != mean.shape:
        raise InputError(
            f"weight {list(weight.shape)}, mean {list(mean.shape)}, keep {list(keep.shape)}: give [d_out, d_in], "
            "[d_in], [d_in]"
        )
    gone = ~keep.to(weight.device, torch.bool)
    return weight[:, gone].float() @ mean.to(weight.device).float()[gone]


def least_squares(weight: Tensor, hessian: Tensor, keep: Tensor, *, damp: float = 0.0) -> Tensor:
    """The best weight on the inputs that stay: ``W H[:, R] H[R, R]^-1``, R the kept inputs.

    It minimises ``||W_R X_R - W X||^2`` for ``H = X X^T`` (any positive multiple of it). Shapes: weight [d_out, d_in],
    hessian [d_in, d_in], keep [d_in] booleans; returns [d_out, |R|] in the weight's type, solved in float64. `damp`:
    share of the mean diagonal that is added to it. Source: ZipLM (arXiv 2302.04089), the closed form of its
    compensation; ordinary least squares.

    Inputs that never vary make H[R, R] singular: give `damp`, else `NumericalError`.
    """
    inputs = weight.shape[-1]
    if weight.dim() != 2 or hessian.shape != (inputs, inputs) or keep.shape != (inputs,):
        raise InputError(
            f"weight {list(weight.shape)}, Hessian {list(hessian.shape)}, keep {list(keep.shape)}: give [d_out, d_in], "
            "[d_in, d_in], [d_in]"
        )
    full, stays = hessian.double(), keep.to(hessian.device, torch.bool)
    full = full + damp * full.diagonal().mean() * torch.eye(inputs, dtype=full.dtype, device=full.device)
    factor, failed = torch.linalg.cholesky_ex(full[stays][:, stays])
    if failed or not factor.isfinite().all():
        raise NumericalError(
            f"the Hessian of the {int(stays.sum())} kept inputs can't be inverted (dead or duplicate inputs, or NaN): "
            "give damp=0.01 or more calibration data"
        )
    right = (weight.to(full.device).double() @ full[:, stays]).T
    return torch.cholesky_solve(right, factor).T.to(weight)
