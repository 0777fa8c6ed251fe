"""Scenes composed of digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assets import packages, scenes
from secateur.errors import InputError


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    draw = np.random.default_rng(0)
    images = np.zeros((200, 28, 28), np.uint8)
    images[:, 4:24, 8:20] = draw.integers(100, 255, (200, 20, 12))
    monkeypatch.setattr(packages, "mnist", lambda: (images, np.arange(200) // 20))


def test_scenes_are_images_with_boxes_and_repeat():
    one = scenes.scenes(20, size=64, objects=(2, 4), sides=(12, 24), stop=200, seed=3)
    assert one.inputs.shape == (20, 3, 64, 64)
    assert 0 <= one.inputs.min() <= one.inputs.max() <= 1
    assert one.classes == tuple("0123456789")
    assert one.digest == scenes.scenes(20, size=64, objects=(2, 4), sides=(12, 24), stop=200, seed=3).digest
    assert one.digest != scenes.scenes(20, size=64, objects=(2, 4), sides=(12, 24), stop=200, seed=4).digest
    for target in one.targets:
        boxes = target["boxes"]
        assert 1 <= len(boxes) <= 4
        assert len(boxes) == len(target["labels"])
        assert boxes.min() >= 0
        assert boxes.max() <= 64
        height = boxes[:, 3] - boxes[:, 1]
        assert bool(((height >= 12) & (height <= 24)).all())


def test_digits_are_where_their_boxes_are():
    for inputs, target in zip(
        *(lambda s: (s.inputs, s.targets))(scenes.scenes(10, size=64, objects=(1, 2), clutter=0, stop=200)), strict=True
    ):
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            inside[y1:y2, x1:x2] = True
        grey = inputs.mean(0)
        assert grey[inside].mean() > grey[~inside].mean() + 0.2


def test_held_out_scenes_show_other_digits_and_wishes_are_checked(monkeypatch):
    seen = []
    real = scenes._digit
    monkeypatch.setattr(scenes, "_digit", lambda image, side: seen.append(image.tobytes()) or real(image, side))
    scenes.scenes(5, stop=100)
    train = set(seen)
    seen.clear()
    scenes.scenes(5, start=100, stop=200)
    assert train.isdisjoint(seen)
    crowd = scenes.scenes(3, size=128, objects=(10, 24), sides=(8, 20), stop=200)
    assert all(len(one["boxes"]) >= 8 for one in crowd.targets)
    for wrong in ({"objects": (3, 1)}, {"sides": (10, 200)}, {"start": 5, "stop": 5}):
        with pytest.raises(InputError, match="rising"):
            scenes.scenes(1, **wrong)
