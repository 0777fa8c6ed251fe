"""Data sets of Python with boxes or masks, as torchvision has them, from the set to what is measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading
from torchvision.tv_tensors import BoundingBoxes

import secateur
import second_device
from secateur.data import examples, own_targets
from secateur.data.images import Images
from secateur.errors import DataError, DataWarning
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


class Streamed(loading.IterableDataset[Any]):
    """Examples that can only be passed over."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


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


def test_images_boxes_and_masks_may_lie_on_another_device() -> None:
    def on_card(value: Any) -> Any:
        return value.to(second_device.DEVICE) if isinstance(value, Tensor) else value

    masked = [(IMAGES[place], torch.arange(1024).reshape(32, 32) % (2 + place)) for place in range(4)]
    boxed = [Boxes()[place] for place in range(12)]
    with second_device.present():
        there = [(on_card(image), {name: on_card(value) for name, value in target.items()}) for image, target in boxed]
        assert examples.read(there).digest == examples.read(boxed).digest
        masks = examples.read([(on_card(image), on_card(mask)) for image, mask in masked])
        assert masks.masks is not None
        assert masks.digest == examples.read(masked).digest


def test_labels_from_0_stay_names_and_crowds_are_told_and_a_sampler_is_followed() -> None:
    data = Boxes()
    data.first = 8
    data.classes = ["__background__", *(f"class {number}" for number in range(1, 10))]
    data = loading.DataLoader(data, sampler=loading.SubsetRandomSampler([0, 1, 2]), collate_fn=pair_up)
    found = examples.read(data)
    assert len(found) == 3
    assert found.notes == (
        "of the 12 examples of the data 3 are read, those that its loader's sampler draws",
        "the data: 1 of 3 boxes of crowds or objects too hard to judge, not learned from (first on item 2)",
    )
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
        (boxed([0], [1], [2], [3]), boxed([1], [3]), [[1], [3]]),
        (boxed([0], [1], [2], classes=["x", "y", "z"]), boxed([1], [2]), [[1], [2]]),
    ],
    ids=["the highest lacks", "0 lacks", "1 lacks", "several lack", "names lack"],
)
def test_boxes_held_out_have_the_classes_that_are_learned(learned, judged, numbers) -> None:
    found = splits.with_classes_of(learned, judged)
    assert [target["labels"].tolist() for target in found.targets] == numbers
    assert (found.classes, found.ids) == (learned.classes, learned.ids)


@pytest.mark.parametrize(("judged", "wrong"), [([[0], [1]], 0), ([[1], [4]], 4)])
def test_boxes_held_out_of_a_class_that_is_not_learned_are_refused(judged: list[list[int]], wrong: int) -> None:
    match = rf"the held-out data has boxes of the class {wrong}, and the data has those of 1, 2, 3: give both"
    with pytest.raises(DataError, match=match):
        splits.with_classes_of(boxed([1], [2], [3]), boxed(*judged))


def test_crowds_of_a_class_that_is_not_learned_excuse_nothing_and_arrays_keep_their_labels() -> None:
    crowd = {"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]] * 2), "labels": torch.tensor([1, 5])}
    judged = examples.read([(IMAGES[0], crowd | {"iscrowd": torch.tensor([0, 1])})])
    found = splits.with_classes_of(boxed([1], [2]), judged)
    assert found.targets[0]["crowd_labels"].tolist() == [-1]
    target = {"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]), "labels": torch.tensor([3])}
    arrays = examples.Examples(IMAGES[:1], None, (target,))
    assert splits.with_classes_of(boxed([1], [2]), arrays) is arrays


def test_a_part_of_a_named_set_counts_as_the_whole_does() -> None:
    box = torch.tensor([2.0, 2.0, 12.0, 12.0])
    whole: Any = [(IMAGES[0], {"boxes": box[None], "labels": torch.tensor([label])}) for label in (1, 2, 1, 0)]
    whole = type("Named", (list,), {"classes": ["car", "person", "bike"]})(whole)
    found = examples.read(loading.Subset(whole, [0, 1, 2]))
    assert [target["labels"].tolist() for target in found.targets] == [[1], [2], [1]]
    whole.append("what can not be read")
    assert examples.read(loading.Subset(whole, [0, 1, 2])).targets[0]["labels"].tolist() == [1]
    whole[3] = (IMAGES[0], {"boxes": box[None], "labels": torch.tensor([3])})
    found = examples.read(loading.Subset(whole, [0, 1, 2]))
    assert [target["labels"].tolist() for target in found.targets] == [[0], [1], [0]]


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


def test_no_box_is_a_target_too_and_marks_of_crowds_that_are_not_one_each_are_passed_over() -> None:
    none = {"boxes": torch.tensor([]), "labels": torch.tensor([])}
    odd = {
        "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(2, 4),
        "labels": torch.ones(2),
        "iscrowd": torch.tensor(True),
    }
    found = examples.read([(IMAGES[0], none), (IMAGES[1], odd)])
    assert [list(target["boxes"].shape) for target in found.targets] == [[0, 4], [2, 4]]
    assert "crowds" not in found.targets[1]


def test_masks_with_the_same_numbers_in_another_shape_are_other_masks() -> None:
    def digest(*shape: int) -> bytes:
        found = examples.read([(torch.rand(3, *shape), torch.zeros(shape)) for _ in range(2)])
        assert found.masks is not None
        assert isinstance(found.inputs, Images)
        return found.masks.digest(found.inputs)

    assert digest(16, 64) != digest(64, 16)
    assert digest(16, 64) == digest(16, 64)


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


MASKED = [(IMAGES[place], (IMAGES[place, 0] > 0.5).long()) for place in range(12)]


def stack(batch: list[Any], change: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([change(image) for image, _ in batch]), torch.stack([mask for _, mask in batch])


def test_what_a_loader_changes_of_its_images_is_not_passed_over() -> None:
    same = loading.DataLoader(MASKED, batch_size=4, collate_fn=lambda batch: stack(batch, lambda image: image.clone()))
    assert examples.read(same).per_pixel
    for change in (lambda image: image * 2 - 1, lambda image: image[:, ::2, ::2]):
        loader = loading.DataLoader(MASKED, batch_size=4, collate_fn=lambda batch, change=change: stack(batch, change))
        with pytest.raises(DataError, match="the collate_fn of the loader of the data makes other images, boxes or"):
            examples.read(loader)
    pictures = [(Image.new("RGB", (32, 32), (51, 102, 255)), mask) for _, mask in MASKED]
    shares = torch.tensor([0.2, 0.4, 1.0])[:, None, None].expand(3, 32, 32)
    loader = loading.DataLoader(pictures, batch_size=4, collate_fn=lambda batch: stack(batch, lambda _: shares))
    assert examples.read(loader).per_pixel, "the same image as a tensor"
    faint = loading.DataLoader(MASKED, collate_fn=lambda batch: stack(batch, lambda image: image + 1e-3))
    with pytest.raises(DataError, match="makes other images"):
        examples.read(faint)
    for like in (lambda image: image.half(), lambda image: image.bfloat16()):
        loader = loading.DataLoader(MASKED, batch_size=4, collate_fn=lambda batch, like=like: stack(batch, like))
        assert examples.read(loader).per_pixel, "the same at its own precision"
    deep = [(image, mask[None]) for image, mask in MASKED]
    flat = loading.DataLoader(deep, collate_fn=lambda batch: (batch[0][0][None], batch[0][1]))
    assert examples.read(flat).per_pixel, "one at a time, and a mask without its first dimension"
    for made, said in (((1, 2, 3), "tuple of 3"), ("x", "str")):
        with pytest.raises(DataError, match=f"a batch of the loader of the data is {said}: expected a pair"):
            examples.read(loading.DataLoader(MASKED, collate_fn=lambda batch, made=made: made))
    broken = loading.DataLoader(MASKED, batch_size=4, collate_fn=lambda batch: batch[7])
    with pytest.raises(DataError, match=r"fails on the first of its examples \(.*\): give the data set alone"):
        examples.read(broken)


@pytest.mark.parametrize(
    "how",
    [{"batch_size": 1}, {"batch_size": None}, {"batch_size": 4}, {"batch_size": 2, "collate_fn": lambda batch: batch}],
    ids=["one", "alone", "several", "as they are"],
)
def test_loaders_of_images_of_unequal_sizes(how: dict[str, Any]) -> None:
    found = examples.with_transform(examples.read(loading.DataLoader(Masks(), **how)), "imagenet", "16")
    assert found.per_pixel
    assert len(found) == 6


def test_numbers_of_any_kind_are_the_same_twice() -> None:
    half = [(image.bfloat16(), mask) for image, mask in MASKED]
    assert torch.equal(
        examples.with_transform(examples.read(half), "none").batch()["inputs"], IMAGES.bfloat16().float()
    )
    learned = [(image.clone().requires_grad_(), mask) for image, mask in MASKED]
    assert examples.read(learned).per_pixel
    flat = {"boxes": torch.tensor([[1.0, 2.0, float("nan"), 9.0]]), "labels": torch.tensor([1])}
    with pytest.raises(DataError, match="the data has a box of item 1 that is no four finite numbers"):
        examples.read([Boxes()[1], (IMAGES[1], flat)])


def test_an_example_in_names_keeps_its_mask_or_its_boxes() -> None:
    found = examples.read([{"image": image, "mask": mask} for image, mask in MASKED])
    assert found.per_pixel
    named = [{"image": image, **target} for image, target in (Boxes()[place] for place in range(12))]
    assert [len(target["boxes"]) for target in examples.read(named).targets[:4]] == [0, 1, 2, 0]


def test_what_is_passed_over_with_a_mask_or_boxes_says_what_to_give() -> None:
    for pairs, what in ((iter(MASKED), "a mask"), ((Boxes()[place] for place in range(3)), "boxes")):
        with pytest.raises(
            DataError, match=f"item 0 of the data has {what}, which the data gives in batches or as it is passed over"
        ):
            examples.read(pairs)


def test_boxes_are_checked_as_those_of_files() -> None:
    flat, outside = [3.0, 3.0, 3.0, 9.0], [40.0, 40.0, 50.0, 50.0]
    target = {"boxes": torch.tensor([flat, outside, *[[1.0, 1.0, 9.0, 9.0]] * 18]), "labels": torch.ones(20)}
    found = examples.read([(IMAGES[0], target)])
    assert len(found.targets[0]["boxes"]) == 18
    assert found.notes == (
        "the data: 1 of 20 boxes without an area, left out (first on item 0)",
        "the data: 1 of 20 boxes outside of their images, left out (first on item 0)",
    )
    for boxes, words in (
        ([outside], "no box that can be learned from"),
        ([[0.1, 0.1, 0.5, 0.5]], "has boxes between 0 and 1, which are shares of an image: give them in pixels"),
        ([[1.0, 2.0, 3.0]], r"item 0 of the data has boxes of shape \[1, 3\]: give four numbers for each"),
    ):
        with pytest.raises(DataError, match=words):
            examples.read([(IMAGES[0], {"boxes": torch.tensor(boxes), "labels": torch.ones(1)})])
    with pytest.raises(DataError, match="item 0 of the data has the label cat: labels are whole numbers"):
        examples.read([(IMAGES[0], {"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]), "labels": ["cat"]})])


def test_each_example_of_a_batch_is_asked_for_once() -> None:
    asked = list[int]()

    def get(self: Any, place: int) -> Any:
        asked.append(place)
        return MASKED[place]

    counting = type("Counting", (loading.Dataset,), {"__getitem__": get, "__len__": lambda self: 12})
    found = examples.with_transform(examples.read(counting()), "none")
    found.batch()
    asked.clear()
    found.batch()
    assert sorted(asked) == list(range(12))


def test_no_more_masks_wait_for_their_turn_than_a_few() -> None:
    items = own_targets._Sized(MASKED * 4, "the data")
    for place in range(48):
        items.open(place)
    assert len(items._targets) == 32
    assert torch.equal(items.target(47), MASKED[11][1])
    assert torch.equal(items.target(0), MASKED[0][1])


def test_masks_of_bits_held_out_are_read_as_those_of_0_and_255() -> None:
    ones = [(image, (mask > 0)) for image, mask in MASKED]
    judged = examples.with_transform(splits.with_classes_of(examples.read(Masks()), examples.read(ones)), "none")
    assert torch.equal(judged.batch()["labels"], torch.stack([mask for _, mask in MASKED]))


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
        r"item 1 of the data has no boxes, as others have": torch.zeros(1),
    }

    class Bare(list[Any]):
        """A new target each time: of two dicts of tensors nobody can ask whether they are equal."""

        def __getitem__(self, place: Any) -> Any:
            return (IMAGES[1], {"boxes": torch.zeros(0, 4)}) if place == 1 else super().__getitem__(place)

    with pytest.raises(DataError, match="item 1 of the data has no boxes, as others have"):
        examples.read(Bare(pairs))
    for words, target in wrong.items():
        with pytest.raises(DataError, match=words):
            examples.read([pairs[0], (IMAGES[1], target), *pairs[2:]])
    masks = [(IMAGES[0], torch.zeros(32, 32)), (IMAGES[1], torch.full((32, 32), 0.5))]
    with pytest.raises(DataError, match=r"item 1 of the data has a mask of torch.float32, \[32, 32\]: give whole"):
        examples.with_transform(examples.read(masks), "none").batch([0, 1])
    masks[1] = (IMAGES[1], 3)
    with pytest.raises(DataError, match=r"item 1 of the data has no mask, as others have"):
        examples.with_transform(examples.read(masks), "none").batch([0, 1])


@pytest.mark.parametrize("empty", [0, 3])
def test_an_image_that_torchvision_gives_no_annotations_has_no_boxes(empty: int) -> None:
    """As its wrapper of a COCO data set does: the number of the image alone."""
    pairs: list[Any] = [Boxes()[place] for place in (1, 2, 4, 5)]
    pairs[empty] = (IMAGES[0], {"image_id": 7})
    for source in (pairs, loading.DataLoader(pairs, batch_size=2, collate_fn=pair_up)):
        found = examples.read(source)
        assert [len(target["boxes"]) for target in found.targets] == [
            0 if place == empty else len(target["boxes"]) for place, (_, target) in enumerate(pairs)
        ]


def test_annotations_as_a_file_of_coco_has_them_say_what_to_give() -> None:
    rows = [{"bbox": [1, 2, 3, 4], "category_id": 3}]
    with pytest.raises(DataError, match="annotations as COCO's file has them: give the folder of that file, or"):
        examples.read([(image, rows if place else []) for place, image in enumerate(IMAGES)])


@pytest.mark.parametrize("target", [torch.rand(2, 4), torch.eye(4)[:1], Image.new("L", (3, 3))])
def test_what_is_not_as_large_as_its_image_is_no_mask(target: Any) -> None:
    with pytest.raises(DataError, match=r"beside an image of 32 x 32 pixels: a mask is as large as its image, boxes"):
        examples.read([(image, target) for image in IMAGES])


def test_targets_are_found_though_the_first_example_has_none() -> None:
    mask = torch.zeros(32, 32, dtype=torch.long)
    with pytest.raises(DataError, match="item 0 of the data has no mask, as others have"):
        examples.with_transform(examples.read([(IMAGES[0], None), (IMAGES[1], mask)]), "none").batch([0, 1])
    with pytest.raises(DataError, match="item 0 of the data has no boxes, as others have"):
        examples.read([(IMAGES[0], None), Boxes()[1]])
    empty = [(image, {"image_id": 0}) for image in IMAGES[:9]]
    for source in ([*empty, Boxes()[1]], loading.DataLoader([*empty, Boxes()[1]], batch_size=2, collate_fn=pair_up)):
        assert [len(target["boxes"]) for target in examples.read(source).targets] == [0] * 9 + [1]


def test_one_image_with_a_target_among_many_without_is_found() -> None:
    """Where a few looks pass it by."""
    empty: list[Any] = [(IMAGES[place % 12], {"image_id": place}) for place in range(40)]
    with pytest.raises(DataError, match="the data has no box that can be learned from"):
        examples.read(empty)
    assert len(examples.read(empty, label="")) == 40
    some = [*empty[:7], Boxes()[1], *empty[8:]]
    found = examples.read(some)
    assert [place for place, target in enumerate(found.targets) if len(target["boxes"])] == [7]
    assert not examples.read(some, label="").targets
    coco = [(image, [{"bbox": [1, 2, 3, 4]}]) for image in IMAGES]
    assert len(examples.read(coco, label="")) == 12, "what it has is not asked for"

    def classify(batch: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in batch]), torch.tensor([target["image_id"] % 2 for _, target in batch])

    told = examples.read(loading.DataLoader(empty, batch_size=8, collate_fn=classify))
    assert told.labels is not None
    assert told.labels.tolist() == [0, 1] * 20
    with pytest.raises(DataError, match="the data has no box that can be learned from"):
        examples.read(loading.DataLoader(empty, batch_size=8, collate_fn=pair_up))


@pytest.mark.parametrize("label", ["label", ""])
def test_images_without_targets_are_not_read_through_to_find_that_out(label: str) -> None:
    asked = []

    class Counted(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            asked.append(place)
            return super().__getitem__(place)

    assert len(examples.read(Counted([(IMAGES[place % 12], None) for place in range(200)]), label=label)) == 200
    assert len(asked) < 50


def test_an_image_that_was_opened_and_can_not_be_read_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    found = examples.read([*IMAGES, Image.open(tmp_path / "a.png")])
    with pytest.raises(DataError, match="item 12 of the data can't be read"):
        _ = found.digest


@pytest.mark.parametrize("label", ["label", ""])
def test_batches_of_ones_own_that_have_the_form_of_a_pair_are_refused(label: str) -> None:
    """Two examples in a list are no images and labels, whatever is asked for."""
    masked = [(image, torch.zeros(32, 32, dtype=torch.long)) for image in IMAGES]
    empty = [(image, {"image_id": 0}) for image in IMAGES]
    for items in (list(IMAGES), masked, [Boxes()[place] for place in range(12)], empty):
        with pytest.raises(DataError, match="two examples in a list as a batch"):
            examples.read(loading.DataLoader(Streamed(items), batch_size=2, collate_fn=list), label=label)


def test_without_labels_there_are_neither_classes_nor_boxes() -> None:
    assert examples.read((IMAGES, torch.zeros(12)), label="").labels is None
    assert not examples.read([Boxes()[place] for place in range(12)], label="").targets


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "L", "1", "P", "LA", "RGBA", "I", "F", "I;16"])
def test_images_of_any_mode_that_were_opened_are_read(mode: str, tmp_path: Path) -> None:
    grey = Image.linear_gradient("L").resize((8, 8))
    values = np.asarray(grey)
    numbers = {"F": np.float32(values / 255), "I;16": np.uint16(values)}
    colours = grey.convert("RGB") if mode in ("CMYK", "YCbCr", "HSV") else grey
    image = Image.fromarray(numbers[mode]) if mode in numbers else colours.convert(mode)
    assert image.mode == mode
    assert examples.read([(image, 0), (image, 1)]).inputs[:1].shape[-2:] == (8, 8)
    grey.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(DataError, match="item 0 of the data is an image that was closed"):
        examples.read([(closed, 0)])


def test_masks_of_0_and_255_in_arrays_say_that_255_counts_nowhere() -> None:
    masks = (IMAGES[:, 0] > 0.5).long()
    found = examples.read((IMAGES, 255 * masks))
    (note,) = found.notes
    assert note.startswith("masks of the data hold 0 and 255 alone: 255 counts nowhere in arrays, write 1")
    assert torch.equal(found.batch()["labels"], 255 * masks)
    assert examples.read((IMAGES, masks)).notes == ()
    nothing = torch.zeros(12, 0, 4, dtype=torch.long)
    for other in (255 + 0 * masks, 0 * masks, 254 * masks, 255 * masks[:, 0, 0], nothing):
        assert examples.read((IMAGES, other)).notes == (), "both, of each pixel, and no other"
    with pytest.raises(DataError, match=r"12 inputs and labels of shape \(\): one each"):
        examples.read((IMAGES, 3))
    assert examples.read((IMAGES, torch.arange(12)[:, None, None].eq(3).long().expand(12, 32, 32) * 255)).notes


def test_many_masks_in_an_array_are_looked_through_part_by_part() -> None:
    masks = torch.zeros(3, 1024, 1024, dtype=torch.long)
    masks[1] = 255
    assert examples.read((torch.rand(3, 3, 4, 4), masks)).notes, "0 in one part and 255 in another"
    masks[2, 0, 0] = 1
    assert not examples.read((torch.rand(3, 3, 4, 4), masks)).notes


def test_what_a_pair_of_arrays_has_beside_its_inputs_is_not_looked_at_where_nobody_asks() -> None:
    for kinds in (["cat"] * 12, None, torch.rand(12, 4), [[0], [0, 1]]):
        assert examples.read((IMAGES, kinds), label="").labels is None
    assert examples.read((IMAGES, None)).labels is None
    masks = 255 * (IMAGES[:, :1] > 0.5).long()
    found = examples.read((IMAGES, masks), label="")
    assert (found.labels, found.notes) == (None, ())


@pytest.mark.parametrize("turned", [False, True])
def test_masks_may_have_a_channel_of_one_first_or_last(turned: bool) -> None:
    masks = torch.randint(0, 3, (12, 32, 32), generator=DRAW)
    with_channel = masks[..., None] if turned else masks[:, None]
    for found in (
        examples.read((IMAGES, with_channel)),
        examples.read([*zip(IMAGES, with_channel, strict=True)]),
        examples.read([*zip(IMAGES, with_channel.numpy(), strict=True)]),
        examples.read(loading.DataLoader([*zip(IMAGES, with_channel, strict=True)], batch_size=4, collate_fn=pair_up)),
    ):
        assert torch.equal(found.batch()["labels"], masks)


def test_a_loader_that_changes_images_or_drops_boxes_is_read_where_boxes_are_not_asked_for() -> None:
    boxes = [Boxes()[place] for place in range(12)]
    for collate in (pair_up, lambda batch: (torch.stack([image / 2 for image, _ in batch]), [one for _, one in batch])):
        found = examples.read(loading.DataLoader(boxes, batch_size=4, collate_fn=collate), label="")
        assert (len(found), found.targets, found.has_classes) == (12, (), False)
    masks = [(image, torch.zeros(32, 32, dtype=torch.long)) for image in IMAGES]
    half = examples.read(
        loading.DataLoader(masks, batch_size=4, collate_fn=lambda batch: {"pixel_values": IMAGES[:4] / 2}), label=""
    )
    assert (half.has_classes, torch.equal(half.batch()["inputs"][:4], IMAGES[:4] / 2)) == (False, True)
    with pytest.raises(DataError, match="makes other images, boxes or masks"):
        examples.read(
            loading.DataLoader(
                masks,
                batch_size=4,
                collate_fn=lambda batch: {"pixel_values": IMAGES[:4], "targets": torch.ones(4, 32, 32)},
            )
        )


@pytest.mark.parametrize("target", [{"annotation": {"object": []}}, {"image_id": 3, "boxes": torch.zeros(1, 4)}, {}])
def test_what_stands_in_a_dict_beside_images_and_is_no_boxes_is_told(target: dict[str, Any]) -> None:
    data = [(image, target) for image in IMAGES]
    told = f"gives {', '.join(target)} beside each image: a class is one number" if target else "has no box"
    with pytest.raises(DataError, match=told):
        examples.read(data)
    with pytest.raises(DataError, match=told):
        examples.read(loading.DataLoader(data, batch_size=4))
    assert len(examples.read(data, label="")) == 12


def test_a_mask_late_in_a_list_is_found_and_boxes_on_arrays_know_their_images() -> None:
    late = [(image, torch.zeros(32, 32) if place == 5 else None) for place, image in enumerate(IMAGES)]
    with pytest.raises(DataError, match="item 0 of the data has no mask, as others have"):
        examples.with_transform(examples.read(late), "none").batch()
    target = {"boxes": torch.tensor([[10.0, 1.0, 28.0, 12.0]]), "labels": torch.tensor([1])}
    found = examples.read([(np.zeros((16, 30, 3), np.uint8), target)] * 2)
    assert found.targets[0]["boxes"].tolist() == [[10.0, 1.0, 28.0, 12.0]], "within an image 30 wide"
    coco = [(image, [{"bbox": [1, 2, 3, 4]}]) for image in IMAGES]
    with pytest.raises(DataError, match="gives annotations as COCO's file has them"):
        examples.read(loading.DataLoader(coco, batch_size=3, collate_fn=pair_up))


def test_a_set_without_boxes_is_not_read_through_where_none_are_asked_for() -> None:
    asked = []

    class Counted(loading.Dataset[Any]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, place: int) -> Any:
            asked.append(place)
            return IMAGES[place % 12], {"image_id": place}

    assert len(examples.read(Counted(), label="")) == 200
    assert len(asked) < 50


def test_boxes_under_other_names_are_no_images_without_boxes() -> None:
    with pytest.raises(DataError, match="item 1 of the data has no boxes, as others have"):
        examples.read([Boxes()[1], (IMAGES[1], {"bboxes": torch.zeros(1, 4), "category": torch.ones(1)})])


def test_what_is_no_mask_may_stand_beside_images_where_no_labels_are_asked_for() -> None:
    points = [(image, torch.ones(17, 2, dtype=torch.long)) for image in IMAGES]
    found = examples.read(points, label="")
    assert (len(found), found.has_classes) == (12, False)
    some = [(image, place or None) for place, image in enumerate(IMAGES)]
    batches = [(IMAGES[:6], torch.ones(6, 17, 2)), (IMAGES[6:], torch.ones(6, 17, 2))]
    dicts = [{"image": image, "caption": "a"} for image in IMAGES]
    streamed = loading.DataLoader(Streamed(points), batch_size=3)
    loaders = [loading.DataLoader(points), loading.DataLoader(points, batch_size=3, collate_fn=pair_up), streamed]
    for source in (some, iter(points), iter(some), batches, iter(batches), iter(dicts), *loaders):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataWarning)
            found = examples.read(source, label="")
        assert (len(found), found.has_classes) == (12, False)


@pytest.mark.parametrize("first", ["__background__", "BG", "back-ground"])
def test_a_background_goes_by_many_names(first: str) -> None:
    assert boxed([1], [2], classes=[first, "a", "b"]).classes == ("a", "b")


def test_a_mask_of_32_bits_counts_65535_as_nothing_and_255_as_a_class() -> None:
    numbers = np.array([[0, 255], [300, 65535]], np.int32).repeat(16, 0).repeat(16, 1)
    found = examples.read([(image, Image.fromarray(numbers)) for image in IMAGES])
    values = examples.with_transform(found, "none").batch([0])["labels"].unique().tolist()
    assert values == [-100, 0, 255, 300]


def test_a_set_that_draws_now_and_then_is_found_out() -> None:
    class Last(Boxes):
        def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Any]]:
            image, target = super().__getitem__(place)
            return (image if place < 11 else torch.from_numpy(np.random.default_rng().random((3, 32, 32))), target)

    with pytest.raises(DataError, match="item 11 of the data is another each time it is asked for"):
        examples.read(Last())


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


def pets(folder: Path) -> None:
    """Six images as torchvision's OxfordIIITPet has them: three breeds, of which one is a cat, and masks."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    lines = []
    for place in range(6):
        name, kind = f"Breed_{place % 3}_{place}", place % 3
        Image.new("RGB", (9, 8), (40 * place, 0, 0)).save(folder / "images" / f"{name}.jpg")
        mask = Image.fromarray(np.full((8, 9), 1 + kind, np.uint8))
        mask.save(folder / "annotations" / "trimaps" / f"{name}.png")
        lines.append(f"{name} {kind + 1} {1 + (kind > 0)} 1\n")
    (folder / "annotations" / "trainval.txt").write_text("".join(lines))


def test_names_of_classes_are_those_of_what_is_read_alone(tmp_path: Path) -> None:
    pets(tmp_path / "oxford-iiit-pet")
    breeds = torchvision.datasets.OxfordIIITPet(str(tmp_path))
    assert len(examples.read(breeds).classes) == 3
    assert examples.read(loading.Subset(breeds, [0, 2])).classes == examples.read(breeds).classes
    for kind in ("segmentation", "binary-category"):
        data = torchvision.datasets.OxfordIIITPet(str(tmp_path), target_types=kind)
        assert examples.read(data).classes == (), "names of breeds"
        assert examples.read(loading.Subset(data, [0, 2])).classes == ()

    class Own(Masks):
        classes = ("ground", "thing")

    assert examples.read(Own()).classes == ("ground", "thing")


@pytest.mark.parametrize("key", ["boxes", "labels"])
def test_rows_of_several_lengths_are_named(key: str) -> None:
    good = {"boxes": [[1, 1, 5, 5], [2, 2, 6, 6]], "labels": [1, 1]}
    wrong = {**good, key: [[1, 1, 5, 5], [1, 2]]}
    said = "item 11 of the data has (boxes of shape|the label)"
    with pytest.raises(DataError, match=said):
        examples.read([*[(image, good) for image in IMAGES[:11]], (IMAGES[11], wrong)])
    marked = examples.read([(IMAGES[0], {**good, "iscrowd": [[0], [0, 1]]})])
    assert "crowds" not in marked.targets[0], "marks that are not one each are passed over"


def test_masks_of_either_byte_order_are_the_same() -> None:
    mask = np.arange(32 * 32).reshape(32, 32) % 3
    data = examples.read([(image, mask.astype(">i2")) for image in IMAGES])
    assert data.batch()["labels"].tolist() == [mask.tolist()] * 12


def test_the_one_image_with_boxes_is_found_wherever_it_stands_in_a_data_set() -> None:
    class Rare(loading.Dataset[Any]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Any]]:
            boxes = {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "labels": torch.tensor([1])}
            return IMAGES[0], {"image_id": place, **(boxes if place == 101 else {})}

    assert [place for place, target in enumerate(examples.read(Rare()).targets) if len(target["labels"])] == [101]


def test_a_box_of_a_negative_class_or_of_words_is_named() -> None:
    for target, line in (
        ({"boxes": torch.tensor([[0.0, 0, 3, 3]]), "labels": torch.tensor([-1])}, "has the label -1: labels of boxes"),
        ({"boxes": [["a", "b", "c", "d"]], "labels": [1]}, r"has the box \['a', 'b', 'c', 'd'\]: give four numbers"),
    ):
        with pytest.raises(DataError, match=line):
            examples.read([(Image.new("RGB", (8, 8)), target)])
