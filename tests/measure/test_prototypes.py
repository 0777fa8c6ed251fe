"""Figures of features against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.errors import MeasurementError
from secateur.measure import prototypes

FEATURES = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 0.1]])
MEANS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
LABELS = torch.tensor([1, 0, 1, 0])


def test_lengths_and_cosines():
    assert prototypes.length(FEATURES).value == pytest.approx((5 + 1 + 2 + np.hypot(1, 0.1)) / 4)
    unit = FEATURES.numpy() / np.linalg.norm(FEATURES.numpy(), axis=1, keepdims=True)
    wanted = (unit[0, 1] + unit[1, 0] + unit[2, 1] + unit[3, 0]) / 4
    assert prototypes.cosine(FEATURES, MEANS, LABELS).value == pytest.approx(wanted, rel=1e-6)
    assert prototypes.cosine(9 * FEATURES, MEANS, LABELS).value == pytest.approx(wanted, rel=1e-6)


def test_the_nearest_mean_is_a_classifier_and_a_mean_of_zeros_no_candidate():
    figure = prototypes.nearest(FEATURES, MEANS, LABELS)
    assert figure.value == 0.75, "the last is nearer to the second mean than to its own"
    assert figure.samples == 4
    away = torch.tensor([[-1.0, -1.0]])
    assert prototypes.nearest(away, MEANS, torch.tensor([2])).value == 0.0


def test_maps_are_no_rows():
    with pytest.raises(MeasurementError, match="rows"):
        prototypes.length(torch.zeros(2, 3, 4))
