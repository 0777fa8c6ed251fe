"""Training that pushes the scales of batch norms to zero, so that channels can go: rates over time, and the penalty.

An L1 penalty ``sum_c s_c |gamma_c|`` in the objective is the subgradient ``s_c sign(gamma_c)`` added to the gradient
before the optimiser's step, whatever the optimiser. Gradients are not clipped meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import InputError

__all__ = ["Schedule", "penalty", "rate", "variable"]

Schedule = Literal["constant", "decay", "rise"]


def rate(done: float, *, initial: float, schedule: Schedule = "decay") -> float:
    """The rate when the share `done` (0 to 1) of training is over.

    - decay: ``initial (1 - 0.9 done)``, the formula of arXiv 2509.12918 (section on dynamic sparsity);
    - rise: ``initial (0.1 + 0.9 done)``, what that text says;
    - constant: ``initial``.
    """
    if schedule not in ("constant", "decay", "rise"):
        raise InputError(f"schedule={schedule!r}: give 'constant', 'decay' or 'rise'")
    if not 0 <= done <= 1:
        raise InputError(f"done={done}: give a share from 0 to 1")
    return initial * {"constant": 1.0, "decay": 1 - 0.9 * done, "rise": 0.1 + 0.9 * done}[schedule]


def variable(
    scales: Sequence[Tensor],
    done: float,
    *,
    initial: float,
    quantile: float = 0.65,
    switch: float = 0.4,
    kept: float = 0.01,
) -> list[Tensor]:
    """One rate per scale, [C] like each of `scales`: two levels after the share `switch` of training, one before.

    From then on, theta is the `quantile` of |gamma| over all scales together, taken anew each time; scales of at least
    theta get ``kept initial``, the others stay at `initial`: what is likely to stay recovers, what is likely to go
    keeps shrinking. Source: group channel pruning (arXiv 2306.01526), sparse training, in the official code.
    """
    if not 0 < quantile < 1:
        raise InputError(f"quantile={quantile}: give a share between 0 and 1")
    if done <= switch:
        return [torch.full_like(one, initial) for one in scales]
    sizes = [one.detach().abs() for one in scales]
    every = torch.cat(sizes).sort().values
    theta = every[int(len(every) * quantile)]
    return [torch.where(one >= theta, kept * initial, initial).to(one.dtype) for one in sizes]


def penalty(scales: Sequence[Tensor], rates: Sequence[Tensor] | float) -> Tensor:
    """``sum_c s_c |gamma_c|`` over all of `scales`; its gradient is ``s_c sign(gamma_c)``, and 0 at 0."""
    each: Sequence[Tensor | float] = [rates] * len(scales) if isinstance(rates, float) else rates
    total = scales[0].new_zeros(())
    for scale, s in zip(scales, each, strict=True):
        total = total + (s * scale.abs()).sum()
    return total
