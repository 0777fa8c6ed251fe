"""Features and the means of their classes: norm, direction, and accuracy of the nearest mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import MeasurementError
from secateur.measure.statistics import mean_interval, proportion
from secateur.vocabulary import Figure

__all__ = ["cosine", "length", "nearest"]


def length(features: Tensor) -> Figure:
    """Mean ||f||_2 over the rows of [N, D]."""
    return mean_interval(_rows(features).norm(dim=-1).tolist())


def cosine(features: Tensor, means: Tensor, labels: Tensor) -> Figure:
    """Mean cosine of each row of [N, D] to the mean of its class: means [K, D], labels [N]."""
    return mean_interval(functional.cosine_similarity(_rows(features), _rows(means)[labels.cpu()], dim=-1).tolist())


def nearest(features: Tensor, means: Tensor, labels: Tensor) -> Figure:
    """Share of rows of [N, D] whose class has the mean of the largest cosine; means of zeros are no candidates."""
    unit, centres = (functional.normalize(_rows(one), dim=-1) for one in (features, means))
    cosines = (unit @ centres.T).masked_fill(~centres.bool().any(-1), -2.0)
    return proportion(int((cosines.argmax(-1) == labels.cpu()).sum()), len(labels))


def _rows(features: Tensor) -> Tensor:
    if features.dim() != 2 or not len(features):
        raise MeasurementError(f"features of shape {list(features.shape)}: expected rows [N, D], one at least")
    return features.detach().cpu().to(torch.float64)
