"""Data sets of Python with boxes or masks, as torchvision has them, from the set to what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading
from torchvision.tv_tensors import BoundingBoxes

import secateur
from secateur.data import examples
from secateur.errors import DataError
from secateur.runs import splits

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
    data.classes = ["__background__", *(f"class {number}" for number in range(1, 10))]
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
    assert (found.ids, found.targets[2]["labels"].tolist()) == ((0, 1), [0, 1])


def boxed(*labels: list[int], classes: list[str] | None = None) -> examples.Examples:
    """Examples with a box for each of these labels."""
    box = torch.tensor([2.0, 2.0, 12.0, 12.0])
    data: Any = [(IMAGES[0], {"boxes": box.expand(len(one), 4), "labels": torch.tensor(one)}) for one in labels]
    if classes is not None:
        data = loading.Subset(data, range(len(data)))
        data.dataset = type("Named", (list,), {"classes": classes})(data.dataset)
    return examples.read(data)


@pytest.mark.parametrize(
    ("learned", "judged", "numbers"),
    [
        (boxed([1], [2], [3]), boxed([1], [2]), [[0], [1]]),
        (boxed([0], [1], [2]), boxed([1], [2]), [[1], [2]]),
        (boxed([1], [2], [3]), boxed([3], [2]), [[2], [1]]),
    ],
    ids=["the highest lacks", "0 lacks", "1 lacks"],
)
def test_boxes_held_out_have_the_classes_that_are_learned(learned, judged, numbers) -> None:
    found = splits.with_classes_of(learned, judged)
    assert [target["labels"].tolist() for target in found.targets] == numbers


def test_names_of_classes_count_as_the_labels_do() -> None:
    ground = ["__background__", "person", "bicycle", "car"]
    found = boxed([2], classes=ground)
    assert (found.targets[0]["labels"].tolist(), found.classes) == ([1], ("person", "bicycle", "car"))
    assert boxed([1], [2], [3], classes=["x", "y", "z"]).targets[2]["labels"].tolist() == [2]
    assert boxed([0], [2], classes=["x", "y", "z"]).targets[1]["labels"].tolist() == [2]
    with pytest.raises(DataError, match="names 3 classes and has the labels 1 to 2, which leaves open whether"):
        boxed([1], [2], classes=["x", "y", "z"])
    for labels, wrong in (([0], 0), ([4], 4)):
        with pytest.raises(DataError, match=rf"has the label {wrong}, and names 3 classes from 1 on"):
            boxed(labels, classes=ground)


def test_boxes_in_another_format_become_corners() -> None:
    boxes = BoundingBoxes([[2, 3, 10, 12]], format="XYWH", canvas_size=(32, 32))
    found = examples.read([(IMAGES[0], {"boxes": boxes, "labels": torch.tensor([1])})])
    assert found.targets[0]["boxes"].tolist() == [[2.0, 3.0, 12.0, 15.0]]


def test_what_a_loader_makes_of_its_examples_is_asked() -> None:
    """Its own collate function may make classes of masks, or pick what it needs."""
    masks = torch.zeros(12, 32, 32, dtype=torch.long)
    masks[1::2, 0, 0] = 1
    items = [(IMAGES[place], masks[place], place) for place in range(12)]

    def classify(batch: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([one[0] for one in batch]), torch.stack([one[1].max() for one in batch])

    found = examples.read(loading.DataLoader(items, batch_size=4, collate_fn=classify))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1] * 6
    pairs = [one[:2] for one in items]
    found = examples.read(loading.DataLoader(pairs, batch_size=4, collate_fn=classify))
    assert found.labels is not None
    assert not found.per_pixel
    assert examples.read(loading.DataLoader(pairs, batch_size=4)).per_pixel


def test_a_data_set_that_draws_by_itself_is_refused() -> None:
    draw = np.random.default_rng(0)
    data = [(IMAGES[place], torch.ones(32, 32)) for place in range(12)]
    turning = type(
        "Turning", (list,), {"__getitem__": lambda self, place: (data[place][0] * draw.random(), data[place][1])}
    )
    with pytest.raises(DataError, match=r"item 0 of the data is another each time it is asked for, by a random"):
        examples.read(turning(data))


def test_masks_of_bits_and_of_16_bits_and_one_number_that_is_none() -> None:
    deep = [(IMAGES[place], Image.fromarray(np.array([[0, 1], [2, 65535]], np.uint16).repeat(16, 0).repeat(16, 1)))
            for place in range(2)]  # fmt: skip
    batch = examples.with_transform(examples.read(deep), "none").batch([0])
    assert batch["labels"].unique().tolist() == [-100, 0, 1, 2]
    bits = [(IMAGES[place], (IMAGES[place, :1] > 0.5)) for place in range(2)]
    batch = examples.with_transform(examples.read(bits), "none").batch([0])
    assert torch.equal(batch["labels"], (IMAGES[:2, 0] > 0.5).long())
    one = examples.read([(IMAGES[place], torch.tensor([[place % 2]])) for place in range(4)])
    assert one.labels is not None
    assert one.labels.tolist() == [0, 1, 0, 1]


def test_a_table_whose_labels_are_images_says_what_to_give() -> None:
    datasets = pytest.importorskip("datasets")
    mask = Image.new("L", (8, 8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [mask], "label": [mask]}, features=features)
    with pytest.raises(DataError, match=r"the table has images in 'label', where classes belong: give masks as a list"):
        examples.read(table)


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


def test_masks_held_out_are_read_as_those_that_are_learned_from() -> None:
    learned = examples.read(Masks())
    ones = [(Image.new("RGB", (8, 8)), Image.new("L", (8, 8), 255)) for _ in range(3)]
    judged = examples.with_transform(splits.with_classes_of(learned, examples.read(ones)), "none")
    assert judged.batch([0])["labels"].unique().tolist() == [1], "where 255 is class 1"
