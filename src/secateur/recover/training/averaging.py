"""Exponential moving average of the weights over the steps of a training (EMA).

    averaged <- d averaged + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) after step t = 1, 2, ...

The warm-up of d, as in TensorFlow's ExponentialMovingAverage, keeps the first weights from weighing on short trainings.
Source of the use: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]

_STATISTICS = (".running_mean", ".running_var")


class Average:
    """The average of trained parameters and of batch norms' statistics; other buffers have none.

    weights: name -> tensor as `checkpoints.tensors_of` gives it; the same objects throughout.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._weights = {
            name: tensor
            for name, tensor in weights.items()
            if isinstance(tensor, nn.Parameter) or name.endswith(_STATISTICS)
        }
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in self._weights.items():
            self.tensors[name].lerp_(weight, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages, one tensor at a time."""
        for name, weight in self._weights.items():
            held = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(held)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the weights are the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
