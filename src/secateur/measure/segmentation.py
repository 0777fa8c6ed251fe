"""Quality of networks that give a class for each pixel: intersection over union, by class and in the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.errors import DataError, MeasurementError
from secateur.vocabulary import Figure

__all__ = ["IGNORED", "confusion", "mean_iou"]

IGNORED = (-100, 255)
"""Labels of pixels that count nowhere: PyTorch's own, and that of Pascal VOC and Cityscapes."""

_SHOWN = 20
"""Most classes of which each has a figure of its own."""


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """[C, C]: pixels by their class (rows) and by what is said of them (columns).

    logits: [B, C, h, w], resized to the labels [B, H, W] where they are smaller. Raises `DataError` for a label that is
    no class and not one of `IGNORED`.
    """
    if logits.dim() != 4 or len(logits) != len(labels):
        raise MeasurementError(f"a class for each pixel is read from [B, C, H, W], not {list(logits.shape)}")
    if logits.shape[2:] != labels.shape[1:]:
        logits = torch.nn.functional.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    count = logits.shape[1]
    counts = torch.ones_like(labels, dtype=torch.bool)
    for ignored in IGNORED:
        counts &= (labels != ignored) | (ignored in range(count))
    wanted, said = labels[counts], logits.argmax(1)[counts]
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < count:
        wrong = int(wanted.min()) if int(wanted.min()) < 0 else int(wanted.max())
        raise DataError(f"a mask holds the label {wrong}: the model has {count} classes, 0 to {count - 1}")
    return torch.bincount(wanted * count + said, minlength=count * count).view(count, count)


def mean_iou(
    forward: Callable[[Mapping[str, Tensor]], Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    names: Sequence[str] = (),
) -> dict[str, Figure]:
    """Figures "mIoU", "pixel_accuracy" and "NAME/IoU" of each class that occurs.

    ``IoU = both / (labelled + said - both)``, in pixels.

    forward: batch -> logits [B, C, h, w]; batches hold "labels" [B, H, W]. Classes that occur neither in labels nor in
    what is said are left out of the mean, as is usual.
    """
    total: Tensor | None = None
    images = 0
    for batch in batches:
        with torch.inference_mode():
            counted = confusion(forward(batch).cpu(), batch["labels"].cpu())
        total, images = counted if total is None else total + counted, images + len(batch["labels"])
    if total is None or not int(total.sum()):
        raise MeasurementError("no pixel with a class was given")
    both = total.diag().double()
    union = total.sum(0) + total.sum(1) - both
    occurs = union > 0
    ious = both[occurs] / union[occurs]
    figures = {
        "mIoU": Figure(float(ious.mean()), samples=images),
        "pixel_accuracy": Figure(float(both.sum() / total.sum()), samples=images),
    }
    if len(ious) <= _SHOWN:
        numbers = torch.nonzero(occurs).flatten().tolist()
        for number, value in zip(numbers, ious.tolist(), strict=True):
            name = names[number] if number < len(names) else f"class {number}"
            figures[f"{name}/IoU"] = Figure(value, samples=images)
    return figures
