"""Data sets of Python with boxes or masks, as torchvision has them, from the set to what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading

import secateur
from secateur.data import examples
from secateur.errors import DataError

DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 3, 32, 32, generator=DRAW)


class Boxes(loading.Dataset[Any]):
    """Images with no, one or two boxes of the classes 1 and 2, the second now and then a crowd."""

    first = 1

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Any]]:
        count = place % 3
        boxes = torch.tensor([[1.0, 2.0, 10.0, 12.0], [4.0, 4.0, 30.0, 20.0]])[:count]
        labels = torch.tensor([0, 1])[:count] + self.first
        return IMAGES[place], {"boxes": boxes, "labels": labels, "iscrowd": labels == 9, "image_id": place}


class Masks(loading.Dataset[Any]):
    """Images of unequal sizes, and masks that hold 0 and 255."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> tuple[Image.Image, Image.Image]:
        mask = np.zeros((16, 20 + place), np.uint8)
        mask[: 4 + place] = 255
        return Image.new("RGB", (20 + place, 16)), Image.fromarray(mask)


def pair_up(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


SOURCES = {
    "set": Boxes,
    "list": lambda: [Boxes()[place] for place in range(12)],
    "loader": lambda: loading.DataLoader(Boxes(), batch_size=4, shuffle=True, collate_fn=pair_up),
    "subset": lambda: loading.Subset(Boxes(), range(12)),
}


@pytest.mark.parametrize("case", SOURCES)
def test_boxes_of_a_data_set_are_read_and_its_labels_counted_from_0(case: str) -> None:
    found = examples.read(SOURCES[case]())
    assert len(found) == 12
    assert [len(target["boxes"]) for target in found.targets[:4]] == [0, 1, 2, 0]
    assert found.targets[2]["labels"].tolist() == [0, 1]
    assert found.targets[2]["boxes"][1].tolist() == [4.0, 4.0, 30.0, 20.0]
    assert found.ids == (1, 2), "as they were, of torchvision's 0 is the background"
    assert torch.equal(examples.letterbox(found).batch([0])["inputs"][2], IMAGES[2])


def test_labels_from_0_stay_names_and_crowds_are_told_and_a_sampler_is_followed() -> None:
    data = Boxes()
    data.first = 8
    data.classes = [f"class {number}" for number in range(10)]
    data = loading.DataLoader(data, sampler=loading.SubsetRandomSampler([0, 1, 2]), collate_fn=pair_up)
    found = examples.read(data)
    assert len(found) == 3
    assert found.notes == ("of the 12 examples of the data 3 are read, those that its loader's sampler draws",)
    assert found.classes == tuple(f"class {number}" for number in range(1, 10)), "the first is the background's"
    assert found.targets[2]["labels"].tolist() == [7]
    assert found.targets[2]["crowd_labels"].tolist() == [8]
    counted = Boxes()
    counted.first = 0
    found = examples.read(counted)
    assert (found.ids, found.targets[2]["labels"].tolist()) == ((), [0, 1])


def test_masks_of_a_data_set_are_read_with_their_images() -> None:
    masks = torch.randint(0, 3, (12, 32, 32), generator=DRAW)
    masks[0, 0] = 255
    found = examples.read(loading.TensorDataset(IMAGES, masks))
    assert found.per_pixel
    batch = examples.with_transform(found, "none").batch([0])
    assert torch.equal(batch["inputs"], IMAGES)
    assert torch.equal(batch["labels"], masks.masked_fill(masks == 255, -100))
    assert found.digest != examples.read(loading.TensorDataset(IMAGES, masks.flip(0))).digest
    binary = examples.with_transform(examples.read(Masks()), "imagenet", "16")
    assert binary.notes == ("masks of the data hold 0 and 255 alone: 255 is read as class 1",)
    assert binary.batch([0])["labels"].unique().tolist() == [0, 1]


def test_targets_of_another_form_than_the_first_are_named() -> None:
    pairs = [Boxes()[place] for place in range(4)]
    wrong = {
        r"item 1 of the data has 2 boxes and 1 labels": {"boxes": torch.zeros(2, 4), "labels": torch.ones(1)},
        r"item 1 of the data has the label 1.5: labels are whole": {
            "boxes": torch.zeros(1, 4),
            "labels": torch.tensor([1.5]),
        },
        r"item 1 of the data has no boxes, as the first has": torch.zeros(1),
    }
    for words, target in wrong.items():
        with pytest.raises(DataError, match=words):
            examples.read([pairs[0], (IMAGES[1], target), *pairs[2:]])
    masks = [(IMAGES[0], torch.zeros(32, 32)), (IMAGES[1], torch.full((32, 32), 0.5))]
    with pytest.raises(DataError, match=r"item 1 of the data has a mask of torch.float32, \[32, 32\]: give whole"):
        examples.with_transform(examples.read(masks), "none").batch([0, 1])
    masks[1] = (IMAGES[1], 3)
    with pytest.raises(DataError, match=r"item 1 of the data has no mask, as the first has"):
        examples.with_transform(examples.read(masks), "none").batch([0, 1])


def test_a_segmenter_is_measured_on_a_data_set_of_python() -> None:
    masks = (IMAGES[:, 0] > 0.5).long()
    perfect = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for layer in perfect:
            layer.weight.zero_()
            layer.bias.zero_()
        perfect[0].weight[1, 0], perfect[1].weight[1, 1], perfect[1].bias[0] = 1.0, 2.0, 1.0
    found = secateur.measure(perfect, data=loading.TensorDataset(IMAGES, masks), inputs=IMAGES[:2])
    assert found["model"]["mIoU"].value == 1.0
