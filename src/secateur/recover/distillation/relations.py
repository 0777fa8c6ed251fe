"""Relational losses: correlations of classes or examples of a batch, scores of pairs and lists, contrastive embeddings.

As in `losses`, each is a SUM over what it counts, in float32, and teachers get no gradient; where a mask leaves
nothing, it is 0. What compares a batch with itself sees one micro-batch, and of that what the mask counts. Scores by
themselves are compared by `losses.mse` of [N, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import InputError
from secateur.recover.distillation import losses

__all__ = ["contrastive", "correlation", "listwise", "margins", "pairwise"]


def correlation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Tensor:
    """``inter sum_n (1 - r(s_n, t_n)) + intra N / K sum_k (1 - r(s_:k, t_:k))``, r Pearson's correlation.

    s and t are softmaxes [N, K] over classes at `temperature`: the first sum asks whether each input orders the classes
    as the teacher does, the second whether each class orders the inputs so; both are means over N once divided by it.
    A row or column without any spread counts as uncorrelated. Shapes: logits [N, K], mask [N], nonzero rows count; N of
    these and K at least 2. Source: DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536). The caller multiplies by
    temperature squared.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: give a number above 0")
    ours, theirs = losses.pair(student, teacher, mask, None)
    if student.dim() != 2 or ours.shape[-1] < 2 or len(ours) == 1:
        raise InputError(
            f"logits {list(student.shape)}, of which {len(ours)} rows count: give [N, K] of one batch, both at least 2"
        )
    if not len(ours):
        return ours.sum()
    ours, theirs = (functional.softmax(one / temperature, -1) for one in (ours, theirs))
    count, classes = ours.shape
    rows, columns = (1 - _pearson(ours, theirs)).sum(), (1 - _pearson(ours.T, theirs.T)).sum()
    return inter * rows + intra * count / classes * columns


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    """[n]: correlation of the rows of two [n, d]."""
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    return functional.cosine_similarity(one, other, dim=-1, eps=1e-8)


def contrastive(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    anchor: Literal["student", "teacher"] = "student",
    keys: Tensor | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """InfoNCE: ``-sum_i log( exp(c_ii / T) / sum_j exp(c_ij / T) )``, c the cosines of anchors i and candidates j.

    anchor "student": candidates are the teacher's embeddings; "teacher": the student's own, as LightGNN has it.
    keys: [B]; two rows of one key are the same thing twice, and no negatives of one another.
    Shapes: student [B, d_s], teacher [B, d_t], mask [B]: rows of 0 are neither anchors nor candidates. `project` lifts
    widths, and at least 2 rows count. Sources: van den Oord et al. (arXiv 1807.03748); LightGNN's embedding-level
    distillation (arXiv 2501.03228).
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: give a number above 0")
    if anchor not in ("student", "teacher"):
        raise InputError(f"anchor={anchor!r}: give 'student' or 'teacher'")
    ours, theirs = (functional.normalize(one, dim=-1) for one in losses.pair(student, teacher, mask, project))
    if student.dim() != 2 or len(ours) == 1:
        raise InputError(
            f"embeddings {list(student.shape)}, of which {len(ours)} count: give [batch, width] of at least 2"
        )
    if not len(ours):
        return ours.sum()
    cosines = (ours @ theirs.T if anchor == "student" else theirs @ ours.T) / temperature
    if keys is not None:
        keys = keys if mask is None else keys[mask.bool()]
        twice = (keys[:, None] == keys) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        cosines = cosines.masked_fill(twice, -math.inf)
    return functional.cross_entropy(cosines, torch.arange(len(cosines), device=cosines.device), reduction="sum")


def pairwise(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """``sum BCE( sigmoid(d_s / T), sigmoid(d_t / T) )`` of margins d = score of the first - score of the second, [N].

    mask [N]: nonzero pairs count. Its least is not 0 but the entropy of the teacher's preferences. Source: LightGNN's
    prediction-level distillation (arXiv 2501.03228, T = 0.03); RankNet with soft labels.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: give a number above 0")
    ours, theirs = _margins(student, teacher, mask)
    return functional.binary_cross_entropy_with_logits(
        ours / temperature, torch.sigmoid(theirs / temperature), reduction="sum"
    )


def margins(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """``sum (d_s - d_t)^2`` of margins d = score of the first - score of the second, [N].

    mask [N]: nonzero pairs count. Scores may sit elsewhere and still rank alike. Source: Margin-MSE (Hofstaetter et
    al., arXiv 2010.02666).
    """
    ours, theirs = _margins(student, teacher, mask)
    return (ours - theirs).square().sum()


def _margins(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise InputError(f"margins {list(student.shape)} and {list(teacher.shape)}: give those of the same pairs")
    ours, theirs = losses.pair(student.reshape(-1, 1), teacher.reshape(-1, 1), mask, None)
    return ours.squeeze(-1), theirs.squeeze(-1)


def listwise(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """``sum_lists KL( softmax(t / T) || softmax(s / T) )`` over the candidates of each list, in nats.

    Shapes: scores [..., n], mask [..., n] with 0 for places without a candidate; each list has one at least. Source:
    ListNet (Cao et al., ICML 2007) with the teacher's scores for relevance.
    """
    if student.shape != teacher.shape:
        raise InputError(f"scores {list(student.shape)} and {list(teacher.shape)}: give those of the same candidates")
    if mask is not None:
        if not bool(mask.bool().any(-1).all()):
            raise InputError("a list without candidates has nothing to rank: leave it out")
        student, teacher = (one.masked_fill(~mask.bool(), -math.inf) for one in (student, teacher))
    return losses.kl(student, teacher, temperature=temperature)
