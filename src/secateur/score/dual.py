"""Dual importance: what a weight is worth to a domain, under a penalty on moving weights that general skill needs.

A weight's part in the loss comes from a gradient step of the domain's loss to which a quadratic penalty was added,

    L~ = L + lambda sum_m G_m (w'_m - w_m)^2,       w' = w - alpha g,       g = dL/dw,

G the importance of each weight to open-domain text. The penalty is lambda alpha^2 sum G g^2, its gradient
2 lambda alpha^2 G g H_mm; second derivatives are not computed, the Fisher information stands for them.

Source: D-Pruner (arXiv 2405.06275). All functions are of one weight matrix and keep its shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from secateur.errors import InputError

__all__ = ["DualScore", "importance", "penalise", "regularise"]


def regularise(gradient: Tensor, general: Tensor, weight: float, *, share: float = 1.0) -> Tensor:
    """g~ = g + weight share^2 (G / mean G) g |g| / rms(g): the penalised gradient in units of the gradient itself.

    `weight` is the size of the second term beside the first one for a weight of average general importance and average
    gradient, whatever the scales of G, of the learning rate and of the data; `share` is the learning rate as a share
    of its peak. The term has the sign of g, as the penalty's gradient has, since G and the Hessian's diagonal are not
    negative. A matrix without general importance, or without gradient, gives g.

    gradient, general: [d_out, d_in], general >= 0. Returns float32.
    """
    _check(gradient, general)
    g, G = gradient.float(), general.float()
    mean, rms = G.mean(), g.square().mean().sqrt()
    if not bool(mean > 0) or not bool(rms > 0):
        return g
    return g + (G * (weight * share**2 / mean)) * (g * (g.abs() / rms))


@dataclass(frozen=True, slots=True)
class DualScore:
    """What the penalty adds to the domain's gradient, and what the score adds to both."""

    general_weight: Annotated[float, Ge(0)] | None = None
    """What the penalty adds to a gradient of average size, of a weight of average general importance, as a share of
    it, 1 unless given: at the peak of the learning rate, whose square it follows, so a third of that over a descent. 0
    leaves the domain's Taylor score and needs no general text. Where `published`, the paper's lambda, 0.1 unless given.
    """
    published: bool = False
    """Add lambda 2 lr^2 G g^2 / N as released, in place of the relative form."""
    cubic: bool = False
    """Add w^3 to the score, as released."""

    @property
    def weight(self) -> float:
        """The weight of the general term, given or by default."""
        if self.general_weight is not None:
            return self.general_weight
        return 0.1 if self.published else 1.0


def penalise(gradient: Tensor, general: Tensor, weight: float, *, rate: float, samples: int) -> Tensor:
    """g~ = g + weight 2 rate^2 G g^2 / N, as released: `rate` is the learning rate alpha, N the number of samples.

    The second term is positive whatever the sign of g. It scales with rate^2 / N, which is tiny: see what it changes
    before trusting it.
    """
    _check(gradient, general)
    g = gradient.float()
    return g + (2.0 * weight * rate**2 / samples) * general.float() * g.square()


def importance(weight: Tensor, gradient: Tensor, samples: int, *, cubic: bool = False) -> Tensor:
    """|g~ w + (g~ w)^2 / (2 N)|: what setting a weight to zero does to the penalised loss, to second order.

    The second derivative is the Fisher diagonal g~^2 / N over N samples. cubic: adds w^3 inside, as released, where it
    stands for the remainder of the Taylor series; it is right only in size, and without the released code's scaled
    gradients it outweighs the rest and turns the score into the weight's magnitude.
    """
    w = weight.detach().float()
    first = gradient.float() * w
    inside = first + first.square() / (2.0 * samples)
    return (inside + w**3 if cubic else inside).abs()


def _check(gradient: Tensor, general: Tensor) -> None:
    if gradient.shape != general.shape:
        raise InputError(
            f"general importance {tuple(general.shape)} of a gradient {tuple(gradient.shape)}: give one of its shape"
        )
    if bool(torch.any(general < 0)):
        raise InputError("general importance is negative somewhere: give one that is 0 or more")
