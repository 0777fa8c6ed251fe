"""Compensation without training: the weights that stay are updated to make up for those removed.

All functions take and return weights as [outputs, inputs], and leave their arguments as they are. GPT-2's Conv1D
stores the transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import InputError, NumericalError

__all__ = ["constant", "least_squares"]


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
