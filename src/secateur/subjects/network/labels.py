"""Label tensors: integers that say, for every element of a tensor, to which atom it belongs.

A label tensor has the rank of its tensor and size 1 along every dimension in which its labels do not change, so that
those of a feature map are a handful of numbers. Functions here know tensors only, no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["along", "compact", "first", "on", "padded", "varying", "wide"]


def varying(label: Tensor) -> frozenset[int]:
    """The dimensions along which the labels change."""
    return wide(label.shape)


@lru_cache(4096)
def wide(shape: tuple[int, ...]) -> frozenset[int]:
    """The dimensions of size above 1."""
    return frozenset(dim for dim, size in enumerate(shape) if size > 1)


def first(label: Tensor, dims: Iterable[int]) -> Tensor:
    """The labels at index 0 of `dims`, with those dimensions kept at size 1."""
    for dim in dims:
        label = label.narrow(dim, 0, 1)
    return label


def padded(label: Tensor, rank: int) -> Tensor:
    """With leading dimensions of size 1, as broadcasting aligns it."""
    return label.view((1,) * (rank - label.dim()) + tuple(label.shape)) if label.dim() < rank else label


def compact(label: Tensor) -> Tensor:
    """Size 1 along every dimension in which the labels are all the same."""
    for dim, (size, stride) in enumerate(zip(label.shape, label.stride(), strict=True)):
        if size > 1 and stride == 0:
            label = label.narrow(dim, 0, 1)
    for dim, size in enumerate(label.shape):
        if size > 1 and torch.equal(head := label.narrow(dim, 0, 1), label.narrow(dim, size - 1, 1)):
            same = bool((label == head).all())
            label = head if same else label
    return label


def along(label: Tensor, dim: int) -> Tensor:
    """The labels of a tensor that varies along `dim` only, as one row."""
    return label.reshape(label.shape[dim])


def on(row: Tensor, dim: int, rank: int) -> Tensor:
    """A row of labels along `dim` of a tensor of `rank` dimensions: the inverse of `along`."""
    shape: Sequence[int] = [row.numel() if place == dim else 1 for place in range(rank)]
    return row.reshape(shape)
