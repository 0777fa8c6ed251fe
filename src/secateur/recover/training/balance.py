"""Weights between losses that follow the losses themselves."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dynamic"]


def dynamic(logit_loss: Tensor, hidden_loss: Tensor) -> Tensor:
    """``alpha = L_logits / L_is``, detached: the weight that makes the hidden-state loss as large as the logit loss.

    Source: Minitron (arXiv 2407.14679), section 3, ``L = L_CLM + L_logits + alpha L_is``. Both must be divided by their
    own totals first. Scalars in, scalar out; 0 where L_is is 0, since then nothing is left to balance.
    """
    above, below = logit_loss.detach(), hidden_loss.detach()
    # Only an exact 0 gives 0: NaN has to pass through, so that training stops at it.
    zero = below == 0
    return torch.where(zero, 0, above / torch.where(zero, 1, below))
