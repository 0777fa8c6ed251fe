"""Intersection over union, beside its definition written out."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import DataError, MeasurementError
from secateur.measure.segmentation import confusion, mean_iou


def logits_of(classes: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, count).movedim(-1, 1).float()


def test_it_is_the_overlap_of_each_class_in_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    said, wanted = (torch.randint(3, (6, 5, 7), generator=draw) for _ in range(2))
    wanted[:, 0] = 255
    wanted[:, 1, :2] = -100
    counts = (wanted != 255) & (wanted != -100)
    expected = [
        float(((said == k) & (wanted == k) & counts).sum() / (((said == k) | (wanted == k)) & counts).sum())
        for k in range(3)
    ]
    batches = [{"x": said[i : i + 2], "labels": wanted[i : i + 2]} for i in (0, 2, 4)]
    # The fourth class occurs nowhere: it is left out of the mean.
    figures = mean_iou(lambda batch: logits_of(batch["x"], 4), batches, ["sky", "tree"])
    assert figures["mIoU"].value == pytest.approx(sum(expected) / 3)
    assert [figures[f"{name}/IoU"].value for name in ("sky", "tree", "class 2")] == pytest.approx(expected)
    assert figures["pixel_accuracy"].value == pytest.approx(float((said == wanted)[counts].float().mean()))


def test_smaller_answers_are_resized_and_what_is_no_class_is_refused() -> None:
    small = logits_of(torch.tensor([[[0, 1], [1, 0]]]), 2)
    labels = torch.tensor([[[0, 1], [1, 0]]]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert int(confusion(small, labels).sum()) == 64
    assert float(confusion(small, labels).diag().sum()) / 64 > 0.8
    with pytest.raises(DataError, match="label 7: the model has 2 classes, 0 to 1"):
        confusion(small, torch.full((1, 2, 2), 7))
    with pytest.raises(MeasurementError, match=r"\[B, C, H, W\]"):
        confusion(torch.zeros(1, 2), labels)
    with pytest.raises(MeasurementError, match="no pixel"):
        mean_iou(lambda batch: small, [{"labels": torch.full((1, 2, 2), 255)}])
