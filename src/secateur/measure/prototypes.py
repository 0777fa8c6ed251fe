"""Features and the means of their classes: norm, direction, and accuracy of the nearest mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import MeasurementError
from secateur.measure import loyalty, quality
from secateur.measure.statistics import mean_interval, proportion
from secateur.vocabulary import Figure

__all__ = ["Tally", "cosine", "length", "nearest"]


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


class Tally:
    """Figures of a network's features and logits beside a teacher's, batch by batch: nothing but sums is kept."""

    def __init__(self, means: Tensor) -> None:
        self.means, self.count, self.sums = means, 0, dict[str, float]()

    def add(self, features: Tensor, logits: Tensor, teacher: Tensor, answers: Tensor, labels: Tensor) -> None:
        """Rows of a batch, which may be none: features [N, D], logits [N, K], the teacher's of both, labels [N]."""
        features, logits, teacher, answers, labels = (one.cpu() for one in (features, logits, teacher, answers, labels))
        if not len(labels):
            return
        row = {
            "norm": length(features).value,
            "cosine": cosine(features, self.means, labels).value,
            "nearest": nearest(features, self.means, labels).value,
            "accuracy": quality.accuracy(lambda part: part["logits"], [{"logits": logits, "labels": labels}]).value,
            "loyalty": loyalty.label(logits, answers).value,
            "distance": float((features - teacher).square().sum(1).mean()),
        }
        self.count += len(labels)
        for name, value in row.items():
            self.sums[name] = self.sums.get(name, 0.0) + len(labels) * value

    def figures(self) -> dict[str, float]:
        """Means over all rows, and for the "distance" the root of that of ||f - t||^2.

        Raises `MeasurementError` without a row.
        """
        if not self.count:
            raise MeasurementError("features of no row were asked about: give one at least")
        means = {name: value / self.count for name, value in self.sums.items()}
        return means | {"distance": math.sqrt(means["distance"])}


def _rows(features: Tensor) -> Tensor:
    if features.dim() != 2 or not len(features):
        raise MeasurementError(f"features of shape {list(features.shape)}: expected rows [N, D], one at least")
    return features.detach().cpu().to(torch.float64)
