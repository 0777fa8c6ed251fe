"""How heavy the tail of a matrix's spectrum is: well-trained matrices have heavy tails, which is a small exponent.

Source: Lu et al., AlphaPruning, NeurIPS 2024 (arXiv 2410.10912).
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import InputError

__all__ = ["tail_exponent"]


def tail_exponent(weight: Tensor) -> float:
    """The exponent of the upper half of the eigenvalues of W^T W, W [d_out, d_in], by Hill's estimator.

        alpha = 1 + k / sum_i ln(l_(n-i+1) / l_(n-k)),    i = 1 ... k,   k = n // 2,   l rising

    inf for a matrix whose upper half of eigenvalues are equal, or zero. Source: AlphaPruning, equation 2.
    """
    if weight.dim() != 2 or min(weight.shape) < 2:
        raise InputError(f"a tail exponent is of a matrix with 2 rows and columns: got {tuple(weight.shape)}")
    values = torch.linalg.svdvals(weight.detach().float()).square().flip(0).double()
    k = len(values) // 2
    floor = values[len(values) - k - 1].clamp(min=torch.finfo(torch.float64).tiny)
    total = float((values[-k:].clamp(min=floor) / floor).log().sum())
    return 1 + k / total if total > 0 else float("inf")
