"""Losses between features of other sizes and directions: unit vectors, shares of the teacher's norm, class means.

As in `losses`, each is a SUM over what it counts, in float32, and teachers get no gradient. The plain ones stand there:
`losses.mse` and `losses.cosine` (with class means as the teacher, that is "direction only"); attention transfer,
channel-wise and spatial losses between maps stand in `maps`. ReviewKD's residual fusion of stages (Chen et al., CVPR
2021, arXiv 2104.09044) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import devices
from secateur.errors import InputError
from secateur.recover.distillation import losses

__all__ = ["FeatureLoss", "growth", "normalised_errors", "norms_and_directions", "unit"]

_TINY = 1e-12


def norms_and_directions(
    student: Tensor,
    teacher: Tensor,
    centres: Tensor,
    mask: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """ND: ``sum_i 1 - <g_i, e_i> / max(||g_i||, ||t_i||)``, g = project(student), e = centres / ||centres||.

    Where g is shorter than the teacher's feature t, the term falls as the angle closes and as g grows; from there on it
    is ``1 - cos(g, e)`` and length counts for nothing. Each lies in [0, 2]. The gradient flows through ||g|| where it
    is the larger.

    Shapes: student [..., d_s], teacher [..., d_t] features of the same inputs, centres [..., d_t] the mean feature of
    each input's class (see `centres`), for a mixed input the mix of its classes' means. mask [...]: nonzero counts.
    Source: Wang et al., ECCV 2024 (arXiv 2305.17007), eq. of L_nd.
    """
    ours, theirs = losses.pair(student, centres, mask, project)
    teacher = devices.move(teacher, student)
    length = losses.pair(teacher, teacher, mask, None)[1].norm(dim=-1)
    along = (ours * functional.normalize(theirs, dim=-1)).sum(-1)
    return (1 - along / torch.maximum(_length(ours), length).clamp_min(_TINY)).sum()


def growth(student: Tensor, mask: Tensor | None = None, *, step: float = 1.0) -> Tensor:
    """``sum_i (||f_i|| - (sg(||f_i||) + step))^2``: each feature is asked to be `step` longer than it is.

    sg stops the gradient: the value is always step^2 for each row, its gradient ``-2 step f / ||f||``. Shapes:
    [..., d], mask [...]. Source: stepwise adaptive feature norm (Xu et al., ICCV 2019, arXiv 1811.07456), here the
    "norm only" of arXiv 2305.17007.
    """
    if not step > 0:
        raise InputError(f"step={step}: give a length above 0")
    ours, _ = losses.pair(student, student, mask, None)
    length = _length(ours)
    return (length - (length.detach() + step)).square().sum()


def unit(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    power: Literal[1, 2] = 2,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``sum_rows sum_d |N(s)_d - N(t)_d|^power``, N(x) = x / ||x||_2: directions are compared, lengths are not.

    With power 2 that is ``2 (1 - cos)``. Shapes as `losses.cosine`. Source: PPCL (arXiv 2511.16156), its losses of
    depth (power 2) and width (power 1).
    """
    if power not in (1, 2):
        raise InputError(f"power={power}: give 1 or 2")
    ours, theirs = losses.pair(student, teacher, mask, project)
    apart = functional.normalize(ours, dim=-1) - functional.normalize(theirs, dim=-1)
    return (apart.abs() if power == 1 else apart.square()).sum()


def normalised_errors(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    scale: Literal["one", "mean", "max"] = "one",
) -> Tensor:
    """``c sum_i sum_n ||t_i,n - s_i,n||^2 / mean_n ||t_i,n||^2`` over taps i and inputs n: each tap counts alike.

    Plain squared errors of stages differ by orders of magnitude, as the sizes of their features do, and the largest
    takes the whole gradient. scale, c: "one" leaves relative errors; "mean" and "max" multiply by the mean or the
    largest of the taps' ``mean_n ||t_i,n||^2``, which keeps the size of the plain loss. Weights have no gradient.

    Shapes: one feature [N, ...] per tap; both of a pair alike; mask [N]: nonzero inputs count, in the means. Source:
    LAPTOP-Diff (arXiv 2404.11098), the normalised feature loss; which norm it takes is this project's reading.
    """
    if scale not in ("one", "mean", "max"):
        raise InputError(f"scale={scale!r}: give 'one', 'mean' or 'max'")
    if len(student) != len(teacher) or not student:
        raise InputError(f"{len(student)} features of the student and {len(teacher)} of the teacher: tap equally many")
    terms, sizes = [], []
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise InputError(
                f"features {list(ours.shape)} of the student and {list(theirs.shape)} of the teacher: give one shape "
                "(see taps.Adapters)"
            )
        ours, theirs = losses.pair(ours.flatten(1), theirs.flatten(1), mask, None)
        terms.append(losses.relative(ours, theirs, eps=_TINY))
        sizes.append(theirs.square().sum() / max(1, len(theirs)))
    all_sizes = torch.stack(sizes)
    factor = {"one": all_sizes.new_ones(()), "mean": all_sizes.mean(), "max": all_sizes.max()}[scale]
    return factor * torch.stack(terms).sum()


def _length(rows: Tensor) -> Tensor:
    """||x||_2 of rows [n, d]; a row of zeros has length 0 and the gradient 0, where the norm itself has none."""
    squared = rows.square().sum(-1)
    there = squared > 0
    return torch.where(there, torch.where(there, squared, 1).sqrt(), 0)


@dataclass(frozen=True, slots=True)
class FeatureLoss:
    """What a student's feature is asked for, behind its projector: norm and direction, or one of them."""

    variant: Literal["nd", "direction", "norm", "features"] = "nd"
    """nd; or in its place direction, 1 - cos(g, e), norm, which asks g to be `step` longer, or features,
    ||g - f_t||^2."""
    nd: float = 2.0
    """weight of ND or its variant; 0 is the host alone, bit for bit."""
    step: float = 1.0
    """of the norm variant."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """of the projector."""

    def __call__(self, student: Tensor, teacher: Tensor, means: Tensor, project: nn.Module) -> Tensor:
        """The sum over rows: features [N, ours] of the student, [N, d] of the teacher, and class means [N, d]."""
        if self.variant == "norm":
            return growth(losses.lift(project, student), step=self.step)
        if self.variant == "features":
            return teacher.shape[1] * losses.mse(student, teacher, project=project)
        if self.variant == "direction":
            return losses.cosine(student, means, project=project)
        return norms_and_directions(student, teacher, means, project=project)
