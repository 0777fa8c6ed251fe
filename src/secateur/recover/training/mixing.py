"""Mixup and CutMix: examples of a batch mixed with others of it, and the share in which their labels are mixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import InputError

__all__ = ["Mix"]


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself in another order; with both alphas above 0, one of the two ways by a coin.

    Mixup blends whole inputs (Zhang et al., arXiv 1710.09412); CutMix puts a box of one image into another (Yun et al.,
    arXiv 1905.04899), and alpha is that of the share of the image that stays.
    """

    mixup: float = 0.0
    """alpha of Beta(alpha, alpha), by which inputs, labels and centres of pairs are mixed; 0 mixes none."""
    cutmix: float = 0.0
    """the same for CutMix, a box of another image in each; with `mixup` too, either by a coin for each batch."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not 0 <= alpha < float("inf"):
                raise InputError(f"{name}={alpha:g}: give an alpha of at least 0, where 0 mixes none")

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
        """(inputs [B, ...] mixed, order [B], share) by torch's generator: row i is mixed with row order[i].

        Its labels count `share`, and those of row order[i] the rest: exactly the area of the box where one was put in.
        Raises `InputError` for CutMix of what is no image [B, C, H, W].
        """
        boxed = self.cutmix > 0 and (not self.mixup or bool(torch.rand(()) < 0.5))
        alpha = self.cutmix if boxed else self.mixup
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        order = torch.randperm(len(inputs)).to(inputs.device)
        if not boxed:
            return share * inputs + (1 - share) * inputs[order], order, share
        if inputs.dim() != 4:
            raise InputError(f"cutmix={self.cutmix:g} is for images [B, C, H, W], and these are {list(inputs.shape)}")
        (top, bottom), (left, right) = (_span(size, (1 - share) ** 0.5) for size in inputs.shape[2:])
        mixed = inputs.clone()
        mixed[:, :, top:bottom, left:right] = inputs[order, :, top:bottom, left:right]
        return mixed, order, 1 - (bottom - top) * (right - left) / inputs[0, 0].numel()


def _span(size: int, part: float) -> tuple[int, int]:
    """(first, past the last) of `part` of `size` places about one of them, as far as they are there."""
    centre, half = int(torch.randint(size, ())), int(size * part) // 2
    return max(0, centre - half), min(size, centre + half)
