"""Digits and MNIST, small convolutional networks, plain trainings, accuracy: for tests and claims."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from assets import packages
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.measure import quality
from secateur.recover.training import loop

__all__ = ["accuracy", "digits", "fit", "mnist", "resnet", "vgg"]


@functools.cache
def digits(train: int = 1000, seed: int = 0) -> tuple[Examples, Examples]:
    """The 1,797 digits of scikit-learn, [N, 1, 8, 8] between 0 and 1: (`train` of them, the rest)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.from_numpy(found.images.astype(np.float32))[:, None] / 16.0
    data = Examples(inputs, torch.from_numpy(found.target.astype(np.int64)), name="digits")
    order = np.random.default_rng([seed, 1797]).permutation(len(data))
    return data.take(order[:train]), data.take(order[train:])


@functools.cache
def mnist(train: int = 2000, test: int = 2000, *, noise: float = 0.0, flip: float = 0.0, seed: int = 0,
          size: int = 28) -> tuple[Examples, Examples]:  # fmt: skip
    """(train, test) of MNIST, [N, 1, size, size]: with uniform `noise` added, and a share `flip` of wrong train labels.

    size 14: every second pixel, after averaging over 2 x 2.
    """
    images, classes = packages.mnist()
    draw = np.random.default_rng([seed, len(images)])
    order = draw.permutation(len(images))[: train + test]
    inputs = torch.from_numpy(images[order]).float()[:, None] / 255.0
    if size != 28:
        inputs = functional.adaptive_avg_pool2d(inputs, size)
    if noise:
        inputs = (inputs + noise * torch.from_numpy(draw.random(inputs.shape, np.float32))).clamp(max=1.0 + noise)
    labels = torch.from_numpy(classes[order])
    wrong = torch.from_numpy(draw.random(len(labels)) < flip) & (torch.arange(len(labels)) < train)
    labels = torch.where(wrong, torch.from_numpy(draw.integers(0, 10, len(labels))), labels)
    data = Examples(inputs, labels, name="mnist")
    return data.take(range(train)), data.take(range(train, train + test))


def vgg(
    widths: Sequence[int | str] = (16, 16, "M", 32, 32, "M", 64, 64), classes: int = 10, seed: int = 0
) -> nn.Module:
    """3 x 3 convolutions of `widths` with batch norm, max-pooling at each "M", mean-pooling, a linear head."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Block(nn.Module):
    """A basic residual block: two 3 x 3 convolutions, and a 1 x 1 where the shape changes."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        changed = before != width or stride != 1
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if changed else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, width, H / stride, W / stride]."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


def resnet(
    widths: Sequence[int] = (8, 16, 32), blocks: int = 2, classes: int = 10, channels: int = 1, seed: int = 0
) -> nn.Module:
    """A CIFAR-style residual network: one stage of `blocks` per width."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    before = widths[0]
    for stage, width in enumerate(widths):
        for number in range(blocks):
            layers.append(Block(before, width, 2 if stage and not number else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def fit(
    net: nn.Module,
    data: Examples,
    *,
    epochs: float,
    lr: float = 0.05,
    batch: int = 64,
    seed: int = 0,
    penalty: Callable[[], Tensor] | None = None,
    **how: Any,
) -> int:
    """Train `net` in place on the classes of `data`, SGD with cosine unless `how` says otherwise; returns the steps.

    penalty: added to the loss of each step.
    """
    feed = examples.batches(data, batch=batch, seed=seed)
    steps = max(1, round(epochs * len(feed)))

    def objective(part: Mapping[str, Tensor], totals: Mapping[str, int]) -> tuple[Tensor, dict[str, float]]:
        loss = functional.cross_entropy(net(part["inputs"]), part["labels"], reduction="sum") / totals["examples"]
        return loss if penalty is None else loss + penalty(), {}

    settings = {"optimizer": "sgd", "schedule": "cosine", "warmup": 0.0, "weight_decay": 5e-4, "clip": None} | how
    loop.train(net, feed, objective, steps=steps, lr=lr, seed=seed, count=examples.count, every=10**9, **settings)
    return steps


@torch.no_grad()
def accuracy(net: nn.Module, data: Examples) -> float:
    """Share of right classes, in eval mode."""
    net.eval()
    batches = [
        {"inputs": data.inputs[i : i + 500], "labels": data.labels[i : i + 500]} for i in range(0, len(data), 500)
    ]
    return quality.accuracy(lambda batch: net(batch["inputs"]), batches).value
