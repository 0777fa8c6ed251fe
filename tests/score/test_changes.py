"""How much entries changed."""

from __future__ import annotations

import torch

from secateur.score import changes


def test_of_one_sign_the_other_comes_last():
    update = torch.tensor([0.5, -2.0, 0.0, 1.0])
    assert changes.size(update).tolist() == [0.5, 2.0, 0.0, 1.0]
    assert changes.size(update, "positive").argsort(descending=True).tolist() == [3, 0, 2, 1]
    assert changes.size(update, "negative").argsort(descending=True).tolist() == [1, 2, 0, 3]
