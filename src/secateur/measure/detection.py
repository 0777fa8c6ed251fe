"""Average precision of detected boxes: by COCO's rules with sizes, or all-point and without a library."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import DataError, MeasurementError, MissingExtraError
from secateur.vocabulary import Figure

__all__ = ["SIZES", "all_point", "average_precision", "class_precisions", "describe_sizes", "squares"]

Detect = Callable[[Tensor], Sequence[Mapping[str, Tensor]]]
"""Images [B, C, H, W] -> per image {"boxes" [n, 4] (x1, y1, x2, y2), "scores" [n], "labels" [n]}."""

Boxes = Mapping[str, Tensor]
"""Of one image: "boxes" [n, 4] and "labels" [n], and "scores" [n] where they were detected."""

SIZES = (32.0, 96.0)
"""Sides of squares: boxes of less area than the first are small, of less than the second medium (COCO's)."""


def average_precision(
    detect: Detect, batches: Iterable[Mapping[str, Any]], *, sizes: Sequence[float] = SIZES, most: int = 100
) -> dict[str, Figure]:
    """mAP (over IoU 0.50 to 0.95), AP50, AP75 and mAP of small, medium and large boxes, by pycocotools; 0 to 1.

    batch: "inputs" [B, C, H, W] and "targets", per image {"boxes" [n, 4], "labels" [n]} and, where there are crowds,
    {"crowds" [m, 4], "crowd_labels" [m]}, in which detections count neither way; sizes: sides of the squares
    that divide small from medium from large, see `squares`; most: detections per image that count. What the data has
    none of (large boxes, say) is left out. Raises `MissingExtraError` without pycocotools, `DataError` without boxes.
    """
    _tools()  # what is missing is told before the images are looked at
    found, true, shape = _collect(detect, batches)
    sizes = squares(sizes, shape)
    names = ("mAP", "AP50", "AP75", "mAP_small", "mAP_medium", "mAP_large")
    precision, _ = _accumulate(found, true, sizes, most)
    if precision is None:
        areas = [(target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) for target in true]
        all_areas = torch.cat(areas).tolist()
        values = [0.0] * 3 + [
            0.0 if any(low <= area < high for area in all_areas) else -1.0 for low, high in _ranges(sizes)
        ]
    else:
        parts = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
        parts += [precision[..., area, -1] for area in (1, 2, 3)]
        values = [float(part[part > -1].mean()) if (part > -1).any() else -1.0 for part in parts]
    return {name: Figure(value, samples=len(true)) for name, value in zip(names, values, strict=True) if value >= 0}


def class_precisions(found: Sequence[Boxes], true: Sequence[Boxes], *, most: int = 100) -> dict[int, float]:
    """Label -> mAP (over IoU 0.50 to 0.95) of each class that has boxes, by pycocotools.

    found: per image what was detected, {"boxes", "scores", "labels"}; true: per image its boxes, {"boxes", "labels"}.
    Raises `MissingExtraError` without pycocotools.
    """
    precision, kinds = _accumulate(found, true, SIZES, most)
    wanted = {label for target in true for label in target["labels"].tolist()}
    if precision is None:
        return dict.fromkeys(sorted(wanted), 0.0)
    values = dict[int, float]()
    for place, kind in enumerate(kinds):
        part = precision[:, :, place, 0, -1]
        if kind in wanted:
            values[kind] = float(part[part > -1].mean()) if (part > -1).any() else 0.0
    return values


def _tools() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise MissingExtraError("COCO's average precision needs pycocotools: pip install 'secateur[detect]'") from error


def _accumulate(
    found: Sequence[Boxes], true: Sequence[Boxes], sizes: Sequence[float], most: int
) -> tuple[NDArray[np.float64] | None, list[int]]:
    """(COCO's precision [IoU, recall, class, area, detections], the classes); None where nothing was detected."""
    coco, evaluation = _tools()
    truth: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, (target, given) in enumerate(zip(true, found, strict=True)):
        for crowd, boxes, labels in ((0, "boxes", "labels"), (1, "crowds", "crowd_labels")):
            if boxes not in target:
                continue
            for box, label in zip(_corner(target[boxes]), target[labels].tolist(), strict=True):
                truth.append(
                    {"id": len(truth) + 1, "image_id": number, "category_id": label, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": crowd}
                )  # fmt: skip
        columns = (_corner(given["boxes"]), given["labels"].tolist(), given["scores"].tolist())
        for box, label, score in zip(*columns, strict=True):
            rows.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    if not rows:
        return None, []
    kinds = sorted({one["category_id"] for one in (*truth, *rows)})
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        data.dataset = {
            "images": [{"id": number} for number in range(len(true))],
            "annotations": truth,
            "categories": [{"id": kind, "name": str(kind)} for kind in kinds],
        }
        data.createIndex()
        judged = evaluation.COCOeval(data, data.loadRes(rows), "bbox")
        judged.params.areaRng = [[0, 1e10], *map(list, _ranges(sizes))]
        judged.params.maxDets = [1, 10, most]
        judged.evaluate()
        judged.accumulate()
    return judged.eval["precision"], kinds


def squares(sizes: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
    """`sizes` in pixels of images of `shape`, (height, width) last: below 1 they are shares of the longer side.

    COCO's images are mostly 640 pixels long, so that its sizes are (0.05, 0.15) of them.
    """
    low, high = sizes
    scale = max(shape[-2:]) if high < 1 else 1
    return low * scale, high * scale


def describe_sizes(sizes: Sequence[float], shape: Sequence[int]) -> str:
    """What a report says of the sizes by which its mean average precisions are told apart; COCO's where there are none.

    >>> describe_sizes((0.125, 0.25), (64, 64))
    'boxes are small below 8 x 8 pixels of area, medium below 16 x 16, else large'
    """
    low, high = squares(sizes or SIZES, shape)
    whose = "" if sizes else " (COCO's sizes; give sizes=5%,15% for shares of the images' longer side)"
    return (
        f"boxes are small below {low:g} x {low:g} pixels of area, medium below {high:g} x {high:g}, else large{whose}"
    )


def all_point(detect: Detect, batches: Iterable[Mapping[str, Any]], *, iou: float = 0.5) -> Figure:
    """Mean over classes of average precision at `iou`: the area under precision made to fall with recall; 0 to 1.

    Detections are taken best first; each takes the box of its class and image with which it overlaps most, if that is
    at least `iou` and not taken. Source: PASCAL VOC since 2010, all points. Needs no library.
    """
    found, true, _ = _collect(detect, batches)
    values = []
    for kind in sorted({label for target in true for label in target["labels"].tolist()}):
        count, scores, right = 0, [], []
        for target, given in zip(true, found, strict=True):
            boxes = target["boxes"][target["labels"] == kind]
            own = given["labels"] == kind
            order = given["scores"][own].argsort(descending=True, stable=True)
            overlap = _overlap(given["boxes"][own][order], boxes)
            taken = np.zeros(len(boxes), bool)
            count += len(boxes)
            scores += given["scores"][own][order].tolist()
            for row in overlap:
                best = int(row.argmax()) if len(row) else -1
                hit = best >= 0 and row[best] >= iou and not taken[best]
                right.append(hit)
                if hit:
                    taken[best] = True
        values.append(_area(np.asarray(scores), np.asarray(right, bool), count))
    return Figure(float(np.mean(values)), samples=len(true))


def _area(scores: NDArray[np.float64], right: NDArray[np.bool_], count: int) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], hits / count])
    return float((np.diff(recall) * precision).sum())


def _collect(
    detect: Detect, batches: Iterable[Mapping[str, Any]]
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], tuple[int, int]]:
    """(detections, true boxes, largest height and width of the images)."""
    shape = (0, 0)
    found: list[dict[str, Tensor]] = []
    true: list[dict[str, Tensor]] = []
    for batch in batches:
        if "targets" not in batch:
            raise DataError("the examples have no boxes: average precision needs targets")
        given = detect(batch["inputs"])
        high, wide = batch["inputs"].shape[-2:]
        shape = max(shape[0], high), max(shape[1], wide)
        if len(given) != len(batch["targets"]):
            raise MeasurementError(f"{len(given)} answers for {len(batch['targets'])} images: one each is wanted")
        found += [{name: tensor.detach().cpu() for name, tensor in one.items()} for one in given]
        true += [{name: tensor.detach().cpu() for name, tensor in one.items()} for one in batch["targets"]]
    if not any(len(one["boxes"]) for one in true):
        raise DataError("the examples have no box at all: average precision needs some")
    for one in found:
        if not all(bool(torch.isfinite(one[name]).all()) for name in ("boxes", "scores")):
            raise MeasurementError("a detection is NaN or infinite: the model is broken")
    return found, true, shape


def _ranges(sizes: Sequence[float]) -> list[tuple[float, float]]:
    return [(0.0, sizes[0] ** 2), (sizes[0] ** 2, sizes[1] ** 2), (sizes[1] ** 2, 1e10)]


def _corner(boxes: Tensor) -> list[list[float]]:
    """COCO's form: x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _overlap(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """IoU of each of one with each of the other."""
    a, b = one.double().numpy(), other.double().numpy()
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    area = [(box[:, 2:] - box[:, :2]).clip(min=0).prod(-1) for box in (a, b)]
    result: NDArray[np.float64] = shared / (area[0][:, None] + area[1][None] - shared).clip(min=1e-12)
    return result
