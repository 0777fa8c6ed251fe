"""Details of networks: what each class lost, and images with the answers of both, of classes, masks and boxes."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vision_models
from pictures import mask_folder
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.runs import showing
from secateur.runs.backends.network import Network


def bright(bound: float) -> nn.Module:
    """Class 1 where an image of 36 pixels is brighter than a bound."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.fill_(1 / 36)
        net[1].bias.zero_()
        net[3].weight.copy_(torch.tensor([[-0.25], [0.25]]).expand(2, 4))
        net[3].bias.copy_(torch.tensor([bound, -bound]))
    return net


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_accuracy_of_each_class_and_images_on_which_the_two_differ() -> None:
    levels = torch.linspace(0, 1, 20)
    inputs = levels[:, None, None, None].expand(-1, 1, 6, 6).contiguous()
    data = Examples(inputs, (levels > 0.5).long(), classes=("dark", "light"))
    pair = tuple(Network().open(bright(bound), None, data) for bound in (0.5, 0.75))
    found = showing.describe(Network(), pair, data, 8)
    assert found is not None
    assert [(row.name, row.before, row.after, row.count) for row in found.classes] == [
        ("dark", 1.0, 1.0, 10), ("light", 1.0, 0.5, 10),
    ]  # fmt: skip
    assert len(found.samples) == 6
    words = [sample.pictures[0][0] for sample in found.samples]
    assert sum("before: light; after: dark" in word for word in words) == 3
    first = opened(found.samples[0].pictures[0][1])
    assert abs(float(first.mean()) / 255 - 0.53) < 0.1, "pictures are the inputs, neither darker nor lighter"


def test_masks_and_boxes_are_drawn_labelled_before_and_after(tmp_path) -> None:
    data = examples.with_transform(examples.read(mask_folder(tmp_path, 4)), "imagenet", 24, workers=0)
    pair = tuple(Network().open(vision_models.fcn(4, seed=seed), None, data) for seed in range(2))
    found = showing.describe(Network(), pair, data, 2, ("teacher", "student"))
    assert found is not None
    assert found.measure == "IoU"
    assert {row.name for row in found.classes} == {"ground", "red", "green"}
    assert [label for label, _ in found.samples[0].pictures] == ["labelled", "teacher", "student"]
    labelled = opened(found.samples[0].pictures[0][1]).astype(int)
    assert labelled.std() > 10
    assert found.samples[0].name.endswith(".png")


@pytest.mark.parametrize("given", [torch.randn(6, 4), torch.randn(6, 5, 8, 8)])
def test_what_is_no_picture_has_classes_alone(given) -> None:
    data = Examples(given, torch.tensor([0, 1] * 3))
    net = nn.Sequential(nn.Flatten(), nn.Linear(given[0].numel(), 4), nn.ReLU(), nn.Linear(4, 2))
    subject = Network().open(net, None, data)
    found = showing.describe(Network(), (subject, subject), data, 4)
    assert found is not None
    assert [row.count for row in found.classes] == [3, 3]
    assert found.samples == ()
    assert showing.describe(Network(), (subject, subject), Examples(given), 4) is None
    assert showing.describe(Network(), (subject, subject), "texts", 4) is None
