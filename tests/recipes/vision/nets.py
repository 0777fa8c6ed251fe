"""Small classifiers and examples that they learn in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.runs import keywords
from secateur.subjects import Traced, open_traced
from secateur.vocabulary import Budget, Result


def run(
    recipe: Callable[..., Iterator[Result]],
    root: Path,
    subject: Traced,
    data: Examples,
    budgets: Sequence[str],
    **options: Any,
) -> list[Result]:
    """What a recipe gives, its options as flags and run.yaml name them."""
    with Run.open(root, {}) as folder:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(recipe(subject, data, wanted, folder, **keywords.check_options(recipe, options)))


def data(count: int = 240, seed: int = 0) -> Examples:
    """Four classes of 8 x 8 images: where the bright quarter is, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.5 * torch.rand(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
    return Examples(images, labels, name="quarters")


def vgg(depth: int = 1, seed: int = 0) -> nn.Module:
    """Two stages of `depth` + 1 convolutions with batch norm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for width in (8, 12):
        for _ in range(depth + 1):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 4, 4))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.n, self.b = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x):
        return x + self.b(self.n(self.a(x)).relu())


def residual(seed: int = 0) -> nn.Module:
    """A stem and two residual blocks."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), Block(6), Block(6), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )


class ViT(nn.Module):
    """A vision transformer of transformers that gives its logits: of ViT, or of DeiT with two tokens and two heads."""

    def __init__(
        self, size: int = 8, patch: int = 2, dim: int = 32, depth: int = 3, heads: int = 2, classes: int = 4,
        two: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = dict(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=2 * dim)
        still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        images = dict(image_size=size, patch_size=patch, num_channels=1, num_labels=classes, initializer_range=0.1)
        kinds = (DeiTConfig, DeiTForImageClassificationWithTeacher) if two else (ViTConfig, ViTForImageClassification)
        self.net = kinds[1](kinds[0](**shape, **still, **images))
        if two:  # the library starts tokens and positions at zero, where both tokens are one
            placed = self.net.deit.embeddings
            for each in (placed.cls_token, placed.distillation_token, placed.position_embeddings):
                nn.init.trunc_normal_(each, std=0.1)

    def forward(self, x):
        return self.net(x).logits


class Apart(nn.Module):
    """Two heads with a feature each, the one of distillation made first; in training it answers with both."""

    def __init__(self, wide: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.one, self.two = nn.Linear(16, 8), nn.Linear(16, wide)
        self.head_dist, self.head = nn.Linear(wide, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(x)
        told, said = self.head_dist(self.two(x).relu()), self.head(self.one(x).relu())
        return (said, told) if self.training else (said + told) / 2


class Headless(nn.Module):
    """Logits that no linear layer gives."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


def vit(seed: int = 0, **shape: int) -> nn.Module:
    """Images of 8 x 8 in patches of 2 x 2, three blocks of width 32."""
    torch.manual_seed(seed)
    return ViT(**shape)


def opened(model: nn.Module) -> Traced:
    """`model` on two examples, with statistics that differ from channel to channel."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return open_traced(model, data().inputs[:2])


class Blocks(nn.Module):
    """A stem, three residual steps of which one has two branches, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o))  # noqa: E731
        self.stem = conv(1, 8)
        self.one = nn.Sequential(conv(8, 12), nn.ReLU(), conv(12, 8))
        self.left, self.right = conv(8, 8), conv(8, 8)
        self.two = nn.Sequential(conv(8, 12), nn.ReLU(), conv(12, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.one(x)
        x = (self.left(x) + self.right(x)).relu()
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))


def bars(count: int = 96, seed: int = 0) -> Examples:
    """6 x 6 pictures of a row, a column or a diagonal."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count)
    images = 0.3 * draw.random((count, 1, 6, 6), np.float32)
    for image, label, place in zip(images, labels, draw.integers(0, 6, count), strict=True):
        if label == 2:
            image[0][np.arange(6), (np.arange(6) + place) % 6] += 1
        else:
            (image[0] if label else image[0].T)[place] += 1
    return Examples(torch.from_numpy(images), torch.from_numpy(labels), name="bars")


@cache
def _analysed() -> Traced:
    return open_traced(Blocks(), bars().inputs[:2])


def blocks() -> Traced:
    """`Blocks`, one of the caller's own; its analysis is done once."""
    return _analysed().copy()
