"""Quality of networks that give a class for each pixel: intersection over union, by class and in the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateur._utils.outputs import of_two
from secateur.errors import DataError, MeasurementError
from secateur.measure import statistics
from secateur.vocabulary import Figure

__all__ = ["IGNORED", "agreement", "class_ious", "confusion", "mean_iou", "mean_ious", "resize"]

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
    logits = resize(logits, labels.shape[1:])
    count = logits.shape[1]
    counts = _mark_counted(labels, count)
    wanted, said = labels[counts], logits.argmax(1)[counts]
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < count:
        wrong = int(wanted.min()) if int(wanted.min()) < 0 else int(wanted.max())
        raise DataError(f"a mask holds the label {wrong}: the model has {count} classes, 0 to {count - 1}")
    return torch.bincount(wanted * count + said, minlength=count * count).view(count, count)


def resize(logits: Tensor, sides: Sequence[int]) -> Tensor:
    """Logits [B, C, h, w] for other sides (H, W), between their pixels; as they are where they have these.

    One logit for each pixel, [B, 1, h, w], becomes those of two classes.
    """
    logits = of_two(logits)
    if tuple(logits.shape[2:]) == tuple(sides):
        return logits
    return torch.nn.functional.interpolate(logits.float(), tuple(sides), mode="bilinear", align_corners=False)


def _mark_counted(labels: Tensor, classes: int) -> Tensor:
    counts = torch.ones_like(labels, dtype=torch.bool)
    for ignored in IGNORED:
        counts &= (labels != ignored) | (ignored in range(classes))
    return counts


Forward = Callable[[Mapping[str, Tensor]], Tensor]
"""A batch -> logits [B, C, h, w]."""


def mean_iou(forward: Forward, batches: Iterable[Mapping[str, Tensor]], names: Sequence[str] = ()) -> dict[str, Figure]:
    """Figures "mIoU", "pixel_accuracy" and "NAME/IoU" of each class that occurs, of one network; see `mean_ious`."""
    return mean_ious([forward], batches, names)[0][0]


def mean_ious(
    forwards: Sequence[Forward], batches: Iterable[Mapping[str, Tensor]], names: Sequence[str] = ()
) -> tuple[list[dict[str, Figure]], Figure | None]:
    """(figures "mIoU", "pixel_accuracy" and "NAME/IoU" of each class that occurs; in how much the first two agree).

    ``IoU = both / (labelled + said - both)``, in pixels. Agreement is the share of the labelled pixels of which both
    say the same class, whether it is right or not; None for one network.

    forwards: batch -> logits [B, C, h, w] each; batches hold "labels" [B, H, W] and are read once. Classes that occur
    neither in labels nor in what is said are left out of the mean, as is usual.
    """
    totals: list[Tensor] = []
    alike = list[Tensor]()
    images = 0
    for batch in batches:
        labels = batch["labels"].cpu()
        with torch.inference_mode():
            logits = [forward(batch).cpu() for forward in forwards]
        counted = [confusion(one, labels) for one in logits]
        totals = [*map(torch.add, totals, counted)] if totals else counted
        images += len(labels)
        if len(logits) > 1:
            alike.append(_count_alike(logits[0], logits[1], labels))
    if not totals or not int(totals[0].sum()):
        raise MeasurementError("no pixel with a class was given")
    return [_figures(total, images, names) for total in totals], _mean_alike(alike) if alike else None


def agreement(forwards: Sequence[Forward], batches: Iterable[Mapping[str, Tensor]]) -> Figure:
    """Share of all pixels of which two networks say the same class, with the interval over images.

    forwards: two of batch -> logits [B, C, h, w]; the second is resized to the first where it is of other sides.
    """
    alike = []
    for batch in batches:
        with torch.inference_mode():
            one, other = (forward(batch).cpu() for forward in forwards)
        alike.append(_count_alike(one, other, torch.zeros(len(one), *one.shape[2:], dtype=torch.long)))
    return _mean_alike(alike)


def _count_alike(one: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """[images with a labelled pixel, 2]: pixels of which both say the same, and pixels."""
    counted = _mark_counted(labels, one.shape[1])
    said = [resize(logits, labels.shape[1:]).argmax(1) for logits in (one, other)]
    rows = torch.stack([((said[0] == said[1]) & counted).flatten(1).sum(1), counted.flatten(1).sum(1)], 1)
    return rows[rows[:, 1] > 0]


def _mean_alike(parts: Sequence[Tensor]) -> Figure:
    same, counts = torch.cat(list(parts)).unbind(1)
    mean = statistics.per_item(same.tolist(), counts.tolist())
    low, high = (None if bound is None else min(1.0, max(0.0, bound)) for bound in (mean.low, mean.high))
    return replace(mean, low=low, high=high)


def _figures(total: Tensor, images: int, names: Sequence[str]) -> dict[str, Figure]:
    ious = class_ious(total)
    occurs = ~torch.isnan(ious)
    figures = {
        "mIoU": Figure(float(ious[occurs].mean()), samples=images),
        "pixel_accuracy": Figure(float(total.diag().sum() / total.sum()), samples=images),
    }
    if int(occurs.sum()) <= _SHOWN:
        for number in torch.nonzero(occurs).flatten().tolist():
            name = names[number] if number < len(names) else f"class {number}"
            figures[f"{name}/IoU"] = Figure(float(ious[number]), samples=images)
    return figures


def class_ious(total: Tensor) -> Tensor:
    """[C], float64, of a `confusion` [C, C]: the IoU of each class; NaN of one that occurs nowhere."""
    both = total.diag().double()
    return both / (total.sum(0) + total.sum(1) - both)
