"""Losses of networks that give a class for each pixel: the rows of `losses` are pixels.

Predictions are [B, h, w, C], the classes last; a network's own [B, C, h, w] become that by `pixels`. Where the sides of
two predictions differ, or those of a prediction and its mask, the smaller is resized between its pixels, as such
networks are evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from secateur._utils.batches import Batch
from secateur._utils.outputs import of_two
from secateur.recover.distillation import losses

__all__ = ["align", "class_loss", "count_pixels", "cross_entropy", "pixels"]

_VOID = 255
"""What counts nowhere in masks as Pascal VOC and Cityscapes draw them, of networks of fewer classes."""


def pixels(logits: Tensor) -> Tensor:
    """[B, h, w, C] of logits [B, C, h, w]: a view."""
    return logits.permute(0, 2, 3, 1)


def count_pixels(batch: Batch, classes: int = 0) -> int:
    """How many pixels of a batch's masks `labels` [B, H, W] count for a network of so many classes; 0 without masks."""
    labels = batch.get("labels")
    return 0 if labels is None or labels.dim() != 3 else int(_mark_counted(labels, classes).sum())


def align(
    student: Tensor, teacher: Tensor, batch: Batch, totals: Mapping[str, int]
) -> tuple[Tensor, Tensor | None, float]:
    """(the student [B, h, w, C] with the teacher's sides, which pixels [B, h, w] count, what their sum is divided by).

    Pixels that count nowhere in the batch's masks are left out; all count where it has none. The divisor is the pixels
    of the whole step, at the sides of the teacher; totals: with "sequences" and, where there are masks, "pixels".
    """
    sides = teacher.shape[1:3]
    student = _resize(student, sides)
    labels = batch.get("labels")
    if labels is None or labels.dim() != 3:
        return student, None, float(totals["sequences"] * sides[0] * sides[1])
    share = (sides[0] * sides[1]) / (labels.shape[1] * labels.shape[2])
    if labels.shape[1:] != sides:
        labels = functional.interpolate(labels[:, None].double(), tuple(sides), mode="nearest-exact")[:, 0]
    return student, _mark_counted(labels, student.shape[-1]), max(1.0, totals["pixels"] * share)


def cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """``sum_pixels -log softmax(z)[label]`` over those that count; prediction [B, h, w, C], labels [B, H, W]."""
    prediction = _resize(prediction, labels.shape[1:])
    counted = _mark_counted(labels, prediction.shape[-1])
    return losses.cross_entropy(prediction, labels.masked_fill(~counted, losses.IGNORED))


def class_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a network's classes summed over examples: of [B, C] and [B], or of [B, C, h, w] and [B, H, W].

    Of an image with a class for each pixel it is the mean over the pixels of its batch that count; with one logit for
    each pixel, [B, 1, h, w], it is binary cross-entropy.
    """
    if outputs.dim() != 4:
        return losses.cross_entropy(outputs, labels)
    outputs = of_two(outputs)
    counted = _mark_counted(labels, outputs.shape[1]).sum().clamp(min=1)
    return cross_entropy(pixels(outputs), labels) * (len(labels) / counted)


def _resize(prediction: Tensor, sides: Sequence[int]) -> Tensor:
    if tuple(prediction.shape[1:3]) == tuple(sides):
        return prediction
    maps = prediction.permute(0, 3, 1, 2)
    return pixels(functional.interpolate(maps, tuple(sides), mode="bilinear", align_corners=False))


def _mark_counted(labels: Tensor, classes: int) -> Tensor:
    void = torch.zeros_like(labels, dtype=torch.bool) if classes > _VOID else labels == _VOID
    return (labels != losses.IGNORED) & ~void
