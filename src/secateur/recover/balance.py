"""Weights between losses that follow the losses themselves."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dynamic", "rescale"]


def dynamic(logit_loss: Tensor, hidden_loss: Tensor) -> Tensor:
    """``alpha = L_logits / L_is``, detached: the weight that makes the hidden-state loss as large as the logit loss.

    Source: Minitron (arXiv 2407.14679), section 3, ``L = L_CLM + L_logits + alpha L_is``. Both must be divided by their
    own totals first. Scalars in, scalar out; 0 where L_is is 0, since then nothing is left to balance.
    """
    return _ratio(logit_loss, hidden_loss)


def rescale(distillation: Tensor, cross_entropy: Tensor) -> Tensor:
    """``L_CE / L_KD``, detached: the weight that brings the distillation loss to the magnitude of cross-entropy.

    For objectives that keep cross-entropy beside distillation, so that neither drowns the other. Scalars in, scalar
    out; 0 where L_KD is 0.
    """
    return _ratio(cross_entropy, distillation)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    above, below = above.detach(), below.detach()
    # Only an exact 0 gives 0: NaN has to pass through, so that training stops at it.
    zero = below == 0
    return torch.where(zero, 0, above / torch.where(zero, 1, below))
