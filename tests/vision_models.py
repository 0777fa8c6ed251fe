"""torchvision's detectors over backbones of a few layers, some of them under torchvision's own names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.ops import MultiScaleRoIAlign
from transformers.utils import ModelOutput


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


def rcnn(width: int, feature: int = 128, seed: int = 0, size: int = 64, classes: int = 11) -> FasterRCNN:
    """Faster R-CNN of images of `size`, over a pyramid of `width`; its box head gives `feature` numbers."""
    torch.manual_seed(seed)
    anchors = AnchorGenerator(((12,), (18,), (27,)), ((0.7, 1.0),) * 3)
    return FasterRCNN(
        Pyramid(width), rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 5, 2),
        box_head=TwoMLPHead(width * 25, feature), box_predictor=FastRCNNPredictor(feature, classes),
        min_size=size, max_size=size, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50, rpn_batch_size_per_image=64, box_batch_size_per_image=32, box_detections_per_img=20,
    )  # fmt: skip


def ssd(width: int, seed: int = 0, size: int = 64, classes: int = 11) -> SSD:
    """SSD of images of `size`, over the maps of a pyramid of `width`."""
    torch.manual_seed(seed)
    boxes = DefaultBoxGenerator([[2]] * 3, scales=[0.2, 0.3, 0.45, 0.6])
    return SSD(
        Pyramid(width), boxes, (size, size), classes, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        head=SSDHead([width] * 3, boxes.num_anchors_per_location(), classes), topk_candidates=100,
        detections_per_img=20,
    )  # fmt: skip


def dense(kind: type[FCOS | RetinaNet], width: int, seed: int = 0, size: int = 64, classes: int = 11) -> nn.Module:
    """RetinaNet or FCOS of images of `size`, over a pyramid of `width`; classes count from 0."""
    torch.manual_seed(seed)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return kind(
        Pyramid(width), classes, anchor_generator=anchors, min_size=size, max_size=size, image_mean=[0.0] * 3,
        image_std=[1.0] * 3, topk_candidates=100, detections_per_img=20,
    )  # fmt: skip


def ssdlite320_mobilenet_v3_large(*, num_classes: int, **_: Any) -> SSD:
    """What pages of the documentation run in its place."""
    return ssd(32, classes=num_classes)


def fasterrcnn_mobilenet_v3_large_320_fpn(*, num_classes: int, **_: Any) -> FasterRCNN:
    """What pages of the documentation run in its place."""
    return rcnn(16, classes=num_classes)


def resnet18(**_: Any) -> ResNet:
    """What pages of the documentation run in its place: one block at each of its four widths."""
    return ResNet(BasicBlock, [1, 1, 1, 1])


class Stages(nn.Module):
    """Two stages at strides of 2 and 4, under the names that torchvision's segmenters look for."""

    def __init__(self, width: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images)
        return dict(zip(self.names, (first, self.second(first)), strict=True))


def fcn(width: int, classes: int = 3, seed: int = 0) -> FCN:
    """FCN: {"out": [N, C, H, W], "aux": [N, C, H, W]}."""
    torch.manual_seed(seed)
    return FCN(Stages(width, ("aux", "out")), FCNHead(2 * width, classes), FCNHead(width, classes))


def lraspp(width: int, classes: int = 3, seed: int = 0) -> LRASPP:
    """LR-ASPP: {"out": [N, C, H, W]}."""
    torch.manual_seed(seed)
    return LRASPP(Stages(width, ("low", "high")), width, 2 * width, classes, 16)


class Coarse(nn.Module):
    """A segmenter of another's classes at half its sides, in an output with `logits`, as transformers' are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> ModelOutput:
        """ModelOutput with logits [N, C, H / 2, W / 2]."""
        return ModelOutput(logits=functional.avg_pool2d(self.model(images)["out"], 2))
