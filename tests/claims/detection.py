"""What the claims about detectors share: scenes, a small YOLO trained on them, short trainings, average precision."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from claims.lab import CACHE
from secateur.files import examples
from secateur.files.examples import Examples
from secateur.files.scenes import scenes
from secateur.measure import detection
from secateur.recover import detecting, loop
from secateur.subjects import detectors
from secateur.subjects.traced import Traced
from yolo import Yolo

SIZE, BATCH = 64, 32
SIDES = (16.0, 24.0)
"""Sides of the squares that tell small from medium from large here: a quarter of the digits each, and half."""


@functools.cache
def data(train: int = 2000, test: int = 400) -> tuple[Examples, Examples]:
    """(train, held out): 1 to 4 digits of 12 to 32 pixels on 64 x 64; held-out scenes show other digits."""
    how: dict[str, Any] = {"size": SIZE, "objects": (1, 4), "sides": (12, 32), "clutter": 3}
    return scenes(train, stop=8000, **how), scenes(test, start=8000, seed=1, **how)


def fit(
    model: Any, steps: int, *, lr: float, seed: int = 0, objective: Any = None, batches: Any = None, **how: Any
) -> None:
    """Train a detector in place on the scenes."""
    feed = examples.batches(data()[0], batch=BATCH, seed=seed) if batches is None else batches
    loop.train(
        model, feed, objective or detecting.press(model.loss), steps=steps, lr=lr, seed=seed, count=examples.count,
        clip=None, weight_decay=5e-4, progress=False, every=10**9, **how,
    )  # fmt: skip


@functools.cache
def taught(steps: int = 1250, lr: float = 6e-3, seed: int = 0, many: int = 2000) -> Traced:
    """The small YOLO, trained on so `many` scenes; kept in the cache of the claims."""
    train = data(many)[0]
    torch.manual_seed(seed)
    net = Yolo()
    made = repr((str(net), train.digest, steps, lr, seed, BATCH))
    file = CACHE / f"yolo-{hashlib.sha256(made.encode()).hexdigest()[:8]}.safetensors"
    if file.exists():
        net.load_state_dict(load_file(file))
    else:
        fit(net, steps, lr=lr, seed=seed, batches=examples.batches(train, batch=BATCH, seed=seed))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, file)
    return detectors.opened(net.eval(), train.inputs[:1])


class Pyramid(nn.Module):
    """Three stages of two convolutions, at strides of 2, 4 and 8, joined to a pyramid of `width` channels each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.stages = nn.ModuleList()
        before = 3
        for channels in (width, width, 2 * width):
            layers: list[nn.Module] = []
            for stride in (2, 1):
                layers += [nn.Conv2d(before, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
            self.stages.append(nn.Sequential(*layers))
        self.sides = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (width, width, 2 * width))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        found, above = list[Tensor](), None
        for side, one in zip(reversed(self.sides), reversed(maps), strict=True):
            here = side(one)
            above = here if above is None else here + functional.interpolate(above, scale_factor=2.0)
            found.append(above)
        return {str(place): one for place, one in enumerate(found[::-1])}


def rcnn(width: int, feature: int = 128, seed: int = 0) -> nn.Module:
    """torchvision's Faster R-CNN of the scenes, over a pyramid of `width`; its box head gives `feature` numbers."""
    torch.manual_seed(seed)
    anchors = AnchorGenerator(((12,), (18,), (27,)), ((0.7, 1.0),) * 3)
    return FasterRCNN(
        Pyramid(width), rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 5, 2),
        box_head=TwoMLPHead(width * 25, feature), box_predictor=FastRCNNPredictor(feature, 11),
        min_size=SIZE, max_size=SIZE, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50, rpn_batch_size_per_image=64, box_batch_size_per_image=32, box_detections_per_img=20,
    )  # fmt: skip


def held_out() -> list[Mapping[str, Any]]:
    """The held-out scenes, in batches."""
    part = data()[1]
    return [
        {"inputs": part.inputs[i : i + 100], "targets": part.targets[i : i + 100]} for i in range(0, len(part), 100)
    ]


def ap50(detector: Any) -> float:
    """AP50 on held-out scenes, all points."""
    return detection.all_point(detector.eval().detect, held_out()).value


def sizes(detector: Any) -> dict[str, float]:
    """mAP of small, medium and large boxes, and AP50, by pycocotools."""
    found = detection.average_precision(detector.eval().detect, held_out(), sizes=SIDES)
    return {name: figure.value for name, figure in found.items()}
