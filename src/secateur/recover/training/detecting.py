"""Objectives of detectors: their own loss, with a penalty on scales, or with distillation of the teacher's maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import restore_modes
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import tap
from secateur.recover.sparsity import slimming
from secateur.recover.training.compose import Objective, Parts

__all__ = ["Compare", "Loss", "answering", "follow", "press", "ratio"]

Loss = Callable[[Mapping[str, Any]], Tensor]
"""Batch -> mean loss per image."""

Compare = Callable[[list[Tensor], list[Tensor], Mapping[str, Any]], Tensor]
"""(student's maps, teacher's maps, batch) -> a sum over the images of the batch."""

_TEMPERATURE = 3.0
_WEIGHTS = (0.001, 0.001)
"""Of output distillation in the official code of arXiv 2306.01526: of the soft classes; of classes and boxes."""


def press(
    loss: Loss, scales: Sequence[Tensor] = (), rates: Callable[[float], Sequence[Tensor] | float] | None = None
) -> Objective:
    """The loss alone, or with ``sum_c s_c |gamma_c|``: `rates` gives s from the share of training that is over.

    That share is the batch's "done" (`data.batches.Numbered`); `rates` is asked at every iteration.
    """

    def objective(batch: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        share = len(batch["inputs"]) / totals["examples"]
        total = loss(batch) * share
        parts = {"task": total.detach()}
        if rates is not None:
            pushed = slimming.penalty(scales, rates(batch["done"])) * share
            total, parts["scales"] = total + pushed, pushed.detach()
        return total, parts

    return objective


def follow(
    student: nn.Module, loss: Loss, teacher: Callable[[Tensor], Any], teaching: nn.Module, taps: Sequence[str],
    compare: Compare, *, weight: float = 1.0,
) -> Objective:  # fmt: skip
    """``L_task + weight L_maps``: the maps that the modules `taps` give, in the student and in its teacher.

    teacher: images -> anything, a pass of `teaching` in which the taps run; it gets no gradient. compare may see the
    batch, for the sizes of boxes.
    """

    def objective(batch: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        with tap(student, taps, maps.flat) as ours:
            task = loss(batch) * (len(batch["inputs"]) / totals["examples"])
        with torch.no_grad(), tap(teaching, taps, maps.flat) as theirs:
            teacher(devices.move(batch["inputs"], teaching))
        near = compare(list(ours), devices.move(list(theirs), task), batch) / totals["examples"]
        return task + weight * near, {"task": task.detach(), "maps": near.detach()}

    return objective


def answering(
    objective: Objective,
    student: nn.Module,
    teacher: nn.Module,
    *,
    temperature: float = _TEMPERATURE,
    weights: Sequence[float] = _WEIGHTS,
) -> Objective:
    """`objective` + ``w_1 L_kd + w_2 L_boxes``: the teacher's soft classes everywhere, its boxes where it is sure.

    Both are detectors with `predictions` (`subjects.network.detectors.Predicting`), whose places are the same.
    weights: w_1 and w_2. Source: output KD of group channel pruning (arXiv 2306.01526); see `maps.classes`.
    """
    ours, theirs = (cast(Any, one).predictions for one in (student, teacher))
    kind: bool | None = getattr(teacher, "exclusive", None)

    def both(batch: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        total, parts = objective(batch, totals)
        images = batch["inputs"]
        with torch.no_grad():
            # What two stages judge are regions, and the teacher's are those where objects are.
            seen = devices.move(images, teacher)
            regions = [cast(Any, teacher).proposals(seen)] if getattr(teacher, "staged", False) else []
            wanted, told = devices.move(theirs(seen, *regions), images)
            sure = told.sigmoid() > 0.5
            if kind:
                sure = (told.softmax(-1) > 0.5) & (torch.arange(told.shape[-1], device=told.device) > 0)
            positive = sure if wanted.dim() == 4 else sure.any(-1)
        boxes, logits = ours(images, *devices.move(regions, images))
        soft = maps.classes(logits, told, temperature=temperature, exclusive=kind is not False)
        apart = maps.boxes(boxes, wanted, positive)
        kd, near = (weight * one / totals["examples"] for weight, one in zip(weights, (soft, apart), strict=True))
        return total + kd + near, {**parts, "kd": kd.detach(), "boxes": near.detach()}

    return both


@torch.no_grad()
def ratio(objective: Objective, batch: Mapping[str, Any], student: nn.Module) -> float:
    """The weight that makes the maps' loss of `follow` as large as the task's at the first step; 0 where there is none.

    `student` is asked in training mode, as that step will, and is left as it was, running statistics included.
    """
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    try:
        with restore_modes(student):
            student.train()
            _, parts = objective(devices.move(batch, student), {"examples": len(batch["inputs"])})
    finally:
        for name, buffer in student.named_buffers():
            buffer.copy_(before[name])
    return float(parts["task"] / parts["maps"]) if parts["maps"] > 0 else 0.0
