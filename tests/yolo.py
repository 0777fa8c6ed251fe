"""A small detector of our own in the manner of YOLO: C2f with shortcuts, SPPF, a neck up and down, heads per scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.data.examples import Examples

STRIDES = (8, 16, 32)


class Conv(nn.Module):
    def __init__(
        self, before: int, width: int, kernel: int = 1, stride: int = 1, act: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, add: bool, act: type[nn.Module]) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width, 3, act=act), Conv(width, width, 3, act=act)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        found = self.cv2(self.cv1(x))
        return x + found if self.add else found


class C2f(nn.Module):
    def __init__(self, before: int, width: int, n: int = 1, add: bool = False, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.cv1 = Conv(before, width, act=act)
        self.m = nn.ModuleList(Bottleneck(width // 2, add, act) for _ in range(n))
        self.cv2 = Conv((2 + n) * (width // 2), width, act=act)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2, act=act), Conv(2 * width, width, act=act)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Raw maps per scale from images [B, 3, H, W]; boxes as distances to the four sides, no anchors."""

    taps = ("up3", "down4", "down5")

    def __init__(
        self, classes: int = 10, widths: Sequence[int] = (8, 16, 32, 48, 64), n: int = 1, act: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.classes = classes
        self.stem = Conv(3, w1, 3, 2, act)
        self.stage2 = nn.Sequential(Conv(w1, w2, 3, 2, act), C2f(w2, w2, n, True, act))
        self.stage3 = nn.Sequential(Conv(w2, w3, 3, 2, act), C2f(w3, w3, n, True, act))
        self.stage4 = nn.Sequential(Conv(w3, w4, 3, 2, act), C2f(w4, w4, n, True, act))
        self.stage5 = nn.Sequential(Conv(w4, w5, 3, 2, act), C2f(w5, w5, n, True, act), SPPF(w5, act))
        self.upsample = nn.Upsample(scale_factor=2)
        self.up4, self.up3 = C2f(w5 + w4, w4, n, act=act), C2f(w4 + w3, w3, n, act=act)
        self.to4, self.down4 = Conv(w3, w3, 3, 2, act), C2f(w3 + w4, w4, n, act=act)
        self.to5, self.down5 = Conv(w4, w4, 3, 2, act), C2f(w4 + w5, w5, n, act=act)
        tower = max(w3, 16)
        self.box = nn.ModuleList(
            nn.Sequential(Conv(w, tower, 3, act=act), nn.Conv2d(tower, 4, 1)) for w in (w3, w4, w5)
        )
        self.cls = nn.ModuleList(
            nn.Sequential(Conv(w, tower, 3, act=act), nn.Conv2d(tower, classes, 1)) for w in (w3, w4, w5)
        )
        for box, cls in zip(self.box, self.cls, strict=True):
            nn.init.constant_(box[1].bias, 1.0)
            nn.init.constant_(cls[1].bias, -4.0)

    def features(self, images: Tensor) -> list[Tensor]:
        p3 = self.stage3(self.stage2(self.stem(images)))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        n4 = self.up4(torch.cat([self.upsample(p5), p4], 1))
        n3 = self.up3(torch.cat([self.upsample(n4), p3], 1))
        n4 = self.down4(torch.cat([self.to4(n3), n4], 1))
        n5 = self.down5(torch.cat([self.to5(n4), p5], 1))
        return [n3, n4, n5]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(images)
        return tuple(part for x, box, cls in zip(maps, self.box, self.cls, strict=True) for part in (box(x), cls(x)))

    def predictions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, A, 4] in pixels and logits of classes [B, A, K] at all A places."""
        raw = self(images)
        boxes, logits = [], []
        for box, cls, stride in zip(raw[::2], raw[1::2], STRIDES, strict=True):
            centre = _centres(box.shape[2:], stride, box.device)
            side = functional.softplus(box.flatten(2).transpose(1, 2)) * stride
            boxes.append(torch.cat([centre - side[..., :2], centre + side[..., 2:]], -1))
            logits.append(cls.flatten(2).transpose(1, 2))
        return torch.cat(boxes, 1), torch.cat(logits, 1)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """1 - GIoU of boxes at positive places, twice, and cross-entropy of classes at all; per positive place."""
        images, targets = batch["inputs"], batch["targets"]
        boxes, logits = self.predictions(images)
        wanted = torch.zeros_like(logits)
        owner = torch.full(logits.shape[:2], -1, device=logits.device)
        for number, target in enumerate(targets):
            owner[number] = _assign(images.shape[2:], target["boxes"])
        matched = (owner >= 0).nonzero()
        image, place = matched.unbind(1)
        if len(matched):
            index = owner[image, place]
            true = torch.stack([targets[i]["boxes"][j] for i, j in zip(image.tolist(), index.tolist(), strict=True)])
            kinds = torch.stack([targets[i]["labels"][j] for i, j in zip(image.tolist(), index.tolist(), strict=True)])
            overlap, iou = _giou(boxes[image, place], true)
            wanted[image, place, kinds] = iou.detach().clamp(min=0.3).to(wanted)
            box = (1 - overlap).sum()
        else:
            box = boxes.sum() * 0
        probability = logits.detach().sigmoid()
        weight = torch.where(wanted > 0, 1.0, probability**2)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")
        return (2 * box + entropy) / max(1, len(matched))

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes, logits = self.predictions(images)
        found = []
        for box, logit in zip(boxes, logits, strict=True):
            scores, label = logit.sigmoid().max(-1)
            order = scores.topk(min(100, len(scores))).indices
            order = order[scores[order] > 0.02]
            keep = _suppressed(box[order], label[order])
            found.append({"boxes": box[order][keep], "scores": scores[order][keep], "labels": label[order][keep]})
        return found


def _centres(shape: Sequence[int], stride: int, device: Any) -> Tensor:
    y, x = (torch.arange(size, device=device) * stride + stride / 2 for size in shape)
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], -1)


def _assign(image: Sequence[int], boxes: Tensor) -> Tensor:
    """[A]: which box each place is to find, or -1: the scale fits the box, the place is near its middle."""
    parts = []
    for level, stride in enumerate(STRIDES):
        centre = _centres([-(-side // stride) for side in image], stride, boxes.device)
        if not len(boxes):
            parts.append(torch.full((len(centre),), -1))
            continue
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        low, high = (0.0, 2.5, 5.0)[level] * 8, (2.5, 5.0, 1e9)[level] * 8
        fits = (side >= low) & (side < high)
        gap = (centre[:, None] - middle[None]).abs().amax(-1)
        inside = ((centre[:, None] > boxes[None, :, :2]) & (centre[:, None] < boxes[None, :, 2:])).all(-1)
        near = (gap <= 0.5 * stride) | ((gap <= 1.2 * stride) & inside)
        gap = torch.where(near & fits[None], gap, torch.inf)
        least, index = gap.min(1)
        parts.append(torch.where(least.isfinite(), index, -1))
    return torch.cat(parts)


def _giou(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (one, other)]
    union = areas[0] + areas[1] - shared
    hull = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    iou = shared / union.clamp(min=1e-6)
    return iou - (hull - union) / hull.clamp(min=1e-6), iou


def _suppressed(boxes: Tensor, labels: Tensor, limit: float = 0.5) -> Tensor:
    """Indices that survive non-maximum suppression per class; boxes come best first."""
    apart = boxes + labels[:, None] * 10_000.0
    low, high = (
        torch.maximum(apart[:, None, :2], apart[None, :, :2]),
        torch.minimum(apart[:, None, 2:], apart[None, :, 2:]),
    )
    shared = (high - low).clamp(min=0).prod(-1)
    area = (apart[:, 2:] - apart[:, :2]).clamp(min=0).prod(-1)
    iou = shared / (area[:, None] + area[None] - shared).clamp(min=1e-6)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for number in range(len(boxes)):
        if alive[number]:
            alive[number + 1 :] &= iou[number, number + 1 :] <= limit
    return alive.nonzero().flatten()


def squares(count: int, size: int = 64, seed: int = 0) -> Examples:
    """Images with one to three bright squares, dark or bright inside (two classes)."""
    draw = np.random.default_rng(seed)
    inputs = torch.from_numpy(0.1 * draw.random((count, 3, size, size), np.float32))
    targets = []
    for image in inputs:
        boxes, labels = [], []
        for place in draw.permutation(4)[: draw.integers(1, 4)]:
            side = int(draw.integers(10, size // 2 - 4))
            x, y = (int(place % 2 * size // 2 + draw.integers(0, size // 2 - side)), int(place // 2 * size // 2 + 1))
            kind = int(draw.integers(0, 2))
            image[:, y : y + side, x : x + side] = 1.0
            if kind:
                image[:, y + 3 : y + side - 3, x + 3 : x + side - 3] = 0.5
            boxes.append([x, y, x + side, y + side])
            labels.append(kind)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
    return Examples(inputs, None, tuple(targets), ("full", "frame"), "squares")


def tiny(seed: int = 0) -> Yolo:
    """Some 20 thousand parameters, two classes, scales of all sizes."""
    torch.manual_seed(seed)
    net = Yolo(2, (4, 8, 8, 12, 16))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()
