"""Losses between feature maps [N, C, H, W], and between what two detectors predict.

As everywhere in `recover`, a loss is a SUM over the images of a batch, and the caller divides by totals; teachers get
no gradient. Maps of a pair have one height and width; where they have other numbers of channels, `taps.Adapters` or a
loss that sums the channels out is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from secateur._utils import devices
from secateur.errors import InputError

__all__ = [
    "attention",
    "box_weights",
    "boxes",
    "channel_wise",
    "classes",
    "flat",
    "spatial_attention",
]

COCO_SIZES = (32.0, 96.0)
"""Sides of squares: a box of less area than the first is small, of less than the second medium, else large."""


def channel_wise(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Sum over images of ``T^2 / C sum_c sum_i p_ci log(p_ci / q_ci)``, p and q softmaxes over SPACE of each channel.

    student, teacher: [N, C, H, W]; p_c = softmax over the H W places of teacher channel c over T, q_c the student's.
    weights: [N, H, W], how much each place counts; then the summand is ``w_i (p log(p / q) - p + q)``, which is the
    same for w = 1 and never negative for any other w >= 0.
    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv 2011.13256).
    """
    _alike(student, teacher, channels=True)
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: give a number above 0")
    ours = functional.log_softmax(student.float().flatten(2) / temperature, -1)
    theirs = functional.log_softmax(_bring(teacher, student).float().flatten(2) / temperature, -1)
    p = theirs.exp()
    summand = p * (theirs - ours)
    if weights is not None:
        summand = weights.flatten(1)[:, None] * (summand - p + ours.exp())
    return summand.sum() * (temperature**2 / student.shape[1])


def attention(maps: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N, H W] of length 1 per image: ``vec(mean_c F_c^2)`` over its L2 norm, times `mask` [N, H, W] before that.

    Any number of channels gives the same shape, and F times any positive number the same result.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928).
    """
    found = maps.float().square().mean(1)
    if mask is not None:
        found = found * mask
    return functional.normalize(found.flatten(1), dim=1, eps=1e-12)


def spatial_attention(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Sum over images of the mean over places of ``(A_t - A_s)^2``, A the `attention` of each; channels may differ.

    student: [N, C_s, H, W]; teacher: [N, C_t, H, W]. Source: group channel pruning and spatial attention distilling
    (arXiv 2306.01526).
    """
    _alike(student, teacher, channels=False)
    return (attention(_bring(teacher, student), mask) - attention(student, mask)).square().mean(1).sum()


def classes(student: Tensor, teacher: Tensor, *, temperature: float = 3.0, exclusive: bool = True) -> Tensor:
    """Sum over images of ``T^2 sum_a KL(softmax(t_a / T) || softmax(s_a / T))`` over all places a.

    student, teacher: [N, A, K] logits of classes (and of objectness, or a background). Where classes do not exclude
    one another, each is a yes or no of its own: ``T^2 sum_a sum_k KL(sigmoid(t_ak / T) || sigmoid(s_ak / T))``. A
    softmax over such logits sees no difference between a class that is sure and none at all.
    Source: as `spatial_attention`, output KD; the sigmoids: binary classification distillation, ICCV 2023
    (arXiv 2308.14286), without its weights.
    """
    if student.shape != teacher.shape:
        raise InputError(f"logits of shape {tuple(student.shape)} and {tuple(teacher.shape)}: they have to be alike")
    pair = [logits.float() / temperature for logits in (student, _bring(teacher, student))]
    if exclusive:
        ours, theirs = (functional.log_softmax(logits, -1) for logits in pair)
        return (theirs.exp() * (theirs - ours)).sum() * temperature**2
    # Both answers to each question: yes and no.
    ours, theirs = (functional.logsigmoid(torch.stack([logits, -logits])) for logits in pair)
    return (theirs.exp() * (theirs - ours)).sum() * temperature**2


def boxes(student: Tensor, teacher: Tensor, positive: Tensor) -> Tensor:
    """Sum over images of the squared L2 distance of decoded boxes [N, A, 4], at the places `positive` [N, A].

    Where there is a box for each class, [N, A, K, 4], positive is [N, A, K].
    """
    if student.shape != teacher.shape:
        raise InputError(f"boxes of shape {tuple(student.shape)} and {tuple(teacher.shape)}: they have to be alike")
    return ((student - _bring(teacher, student)).float().square().sum(-1) * positive).sum()


def box_weights(
    targets: Sequence[Mapping[str, Tensor]],
    like: Tensor,
    images: Tensor,
    *,
    gains: Sequence[float] = (2.0, 1.5, 1.0),
    sizes: Sequence[float] = COCO_SIZES,
    background: float = 1.0,
) -> Tensor:
    """[N, h, w]: how much each cell of a map counts, by the size of the boxes that touch it, the largest if several.

    targets: per image {"boxes": [n, 4] (x1, y1, x2, y2) in pixels}; like: a map [N, C, h, w]; images: [N, C, H, W];
    gains: of small, medium and large boxes, by area below sizes[0]^2, below sizes[1]^2 and above. With a background of
    0 and equal gains it is the mask of cells near boxes.
    """
    (height, width), (rows, columns) = images.shape[2:], like.shape[2:]
    result = torch.full((len(targets), rows, columns), float(background))
    for cells, target in zip(result, targets, strict=True):
        area = (target["boxes"][:, 2:] - target["boxes"][:, :2]).clamp(min=0).prod(1)
        for box, size in zip(target["boxes"].tolist(), area.tolist(), strict=True):
            gain = gains[0] if size < sizes[0] ** 2 else gains[1] if size < sizes[1] ** 2 else gains[2]
            x1, x2 = (int(value / width * columns) for value in (box[0], box[2]))
            y1, y2 = (int(value / height * rows) for value in (box[1], box[3]))
            cells[max(0, y1) : y2 + 1, max(0, x1) : x2 + 1].clamp_(min=float(gain))
    return result.to(like)


def flat(output: object) -> list[Tensor]:
    """The maps [N, C, H, W] in what a module gave: a tensor, or mappings and sequences of such."""
    if isinstance(output, Tensor):
        return [output] if output.dim() == 4 else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [one for part in parts for one in flat(part)]


def _bring(teacher: Tensor, student: Tensor) -> Tensor:
    """What the teacher gave, where the student is, without a gradient."""
    return devices.move(teacher.detach(), student)


def _alike(student: Tensor, teacher: Tensor, *, channels: bool) -> None:
    wrong = student.dim() != 4 or teacher.dim() != 4 or student.shape[0] != teacher.shape[0]
    if wrong or student.shape[2:] != teacher.shape[2:] or (channels and student.shape[1] != teacher.shape[1]):
        raise InputError(
            f"maps of shape {tuple(student.shape)} and {tuple(teacher.shape)}: they are [N, C, H, W] of one size"
            + (" and one number of channels (see taps.Adapters)" if channels else "")
        )
