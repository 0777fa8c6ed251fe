"""Letterboxing and augmentation: images and their boxes stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import boxes, examples
from secateur.data.boxes import Annotation, Augmentation
from secateur.errors import DataError, InputError

GREY = pytest.approx(boxes.GREY / 255, abs=1e-3)


def scene(box=(8, 12, 24, 20), size=64, kind=0):
    """A dark image with one bright box, which can be found again in the pixels."""
    image = torch.zeros(3, size, size)
    left, top, right, bottom = box
    image[:, top:bottom, left:right] = 1.0
    return image, {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([kind])}


def seen(image):
    """x1, y1, x2, y2 of what is bright."""
    rows, columns = (image[0] > 0.75).any(1).nonzero(), (image[0] > 0.75).any(0).nonzero()
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


def annotated(tmp_path, sizes=((60, 40), (30, 50)), box=(10, 10, 20, 30)):
    rows = []
    for number, size in enumerate(sizes):
        image = Image.new("RGB", size, (0, 0, 0))
        image.paste((255, 255, 255), box)
        file = tmp_path / f"{number}.png"
        image.save(file)
        rows.append(Annotation(file, None, [list(box)], [0], said_in=tmp_path / "labels.json"))
    return boxes.collect(rows, ["thing"], tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((200, 100), ((32, 64), (0, 16))), ((10, 20), ((64, 32), (16, 0))), ((1000, 1), ((1, 64), (0, 31)))],
)
def test_images_are_placed_in_the_middle_in_proportion(given, wanted):
    assert boxes.place_in(given, (64, 64)) == wanted


def test_letterboxed_images_and_boxes_stay_together(tmp_path):
    found = annotated(tmp_path)
    images, targets = boxes.fit_images(found.images, found.targets, (96, 128))
    assert images.shape == (2, 3, 96, 128)
    for number, image in enumerate(images[:]):
        assert image[:, 0, 0].tolist() == [GREY] * 3 if number else True
        assert seen(image) == pytest.approx(targets[number]["boxes"][0].tolist(), abs=1.01)
    assert targets[0]["boxes"][0].tolist() == pytest.approx([128 / 60 * 10, 5 + 21.333, 128 / 60 * 20, 5 + 64], abs=0.6)


def test_images_of_one_size_stay_as_they_are_and_others_need_a_size(tmp_path):
    found = annotated(tmp_path, ((60, 40), (60, 40)))
    images, targets = boxes.fit_images(found.images, found.targets, None)
    assert images.shape == (2, 3, 40, 60)
    assert targets == found.targets
    found = annotated(tmp_path)
    with pytest.raises(DataError, match=r"1\.png is 30x50, 0\.png is 60x40: give a size .* such as --size 640"):
        boxes.fit_images(found.images, found.targets, None)


def test_letterboxed_images_of_another_size_are_other_data(tmp_path):
    found = annotated(tmp_path)
    digests = [boxes.fit_images(found.images, found.targets, size)[0].digest for size in ((64, 64), (64, 64), (96, 96))]
    assert digests[0] == digests[1] != digests[2]


def test_a_picture_of_more_than_eight_bits_is_letterboxed():
    found = boxes.letterbox(torch.ones(3, 10, 20), (32, 32))
    assert found.shape == (3, 32, 32)
    assert found[0, 0, 0].item() == GREY
    assert found[0, 16, 16].item() == 1.0


def batch(count=4):
    scenes = [scene((8 + 2 * n, 12, 24 + 4 * n, 20 + 6 * n), kind=n) for n in range(count)]
    return {"inputs": torch.stack([image for image, _ in scenes]), "targets": [target for _, target in scenes]}


def test_a_flip_moves_boxes():
    given = batch()
    flipped = Augmentation(flip=1.0)(given, np.random.default_rng(0))
    for image, target in zip(flipped["inputs"], flipped["targets"], strict=True):
        assert seen(image) == target["boxes"][0].tolist()
    assert flipped["targets"][0]["boxes"].tolist() == [[40, 12, 56, 20]]
    assert given["targets"][0]["boxes"].tolist() == [[8, 12, 24, 20]], "the batch stays as it was"


@pytest.mark.parametrize("zoom", [(0.6, 0.6), (0.8, 1.5), (1.5, 1.5)])
def test_jitter_moves_boxes(zoom):
    jitter, draw, count = Augmentation(zoom=zoom, flip=0.5), np.random.default_rng(0), 0
    for _ in range(20):
        found = jitter(batch(), draw)
        for image, target in zip(found["inputs"], found["targets"], strict=True):
            for box in target["boxes"]:
                assert seen(image) == pytest.approx(box.tolist(), abs=2.0)
                count += 1
    assert count > 40


def test_a_mosaic_shows_four_images_and_their_boxes():
    mosaic, draw, several = Augmentation(mosaic=1.0), np.random.default_rng(0), 0
    for _ in range(10):
        found = mosaic(batch(), draw)
        for image, target in zip(found["inputs"], found["targets"], strict=True):
            several += len(target["boxes"]) > 1
            inside = torch.zeros(64, 64, dtype=torch.bool)
            for left, top, right, bottom in target["boxes"].round().int().tolist():
                inside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = True
                assert image[0, (top + bottom) // 2, (left + right) // 2] > 0.5
            stray = (image[0] > 0.75) & ~inside
            assert stray.float().mean() < 0.05, "what is bright has a box, but for what was cut away"
    assert several > 20


def test_what_is_cut_away_has_no_box():
    image, target = scene((0, 0, 64, 8))
    canvas, moved = boxes._surround(image, target)
    _, left = boxes._crop(canvas, moved, [0.6, 0.5], 1.0, (64, 64), 0.2)
    assert left["boxes"].tolist() == pytest.approx(np.array([[0, 0, 64, 2]]))
    _, left = boxes._crop(canvas, moved, [0.61, 0.5], 1.0, (64, 64), 0.2)
    assert left["boxes"].shape == (0, 4)


def test_augmentation_is_a_function_of_the_seed_and_has_names():
    mosaic = boxes.augmentation("mosaic")
    one, other, third = (mosaic(batch(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one["inputs"], other["inputs"])
    assert not torch.equal(one["inputs"], third["inputs"])
    assert boxes.augmentation("none") is boxes.augmentation(None) is None
    with pytest.raises(
        InputError, match="transform=imagenet: images with boxes are letterboxed to --size, and take none"
    ):
        boxes.augmentation("imagenet")


def test_a_box_that_float32_can_not_tell_from_nothing_is_none():
    given = {"boxes": torch.tensor([[1.0, 1, 5, 5], [7.0, 1, 7.0 + 1e-9, 5]], dtype=torch.float64)}
    data = examples.read([(Image.new("RGB", (8, 8)), given | {"labels": torch.tensor([0, 0])})] * 2)
    assert data.targets[0]["boxes"].tolist() == [[1.0, 1, 5, 5]]


def test_images_without_boxes_are_augmented_too():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found = boxes.AUGMENTATIONS["mosaic"](
        {"inputs": torch.rand(4, 3, 32, 48), "targets": [empty] * 4}, np.random.default_rng(0)
    )
    assert found["inputs"].shape == (4, 3, 32, 48)
    assert all(target["boxes"].shape == (0, 4) for target in found["targets"])


def test_boxes_that_are_given_in_another_form_are_told_the_forms():
    rows = [boxes.Annotation(Path("item 0"), boxes=[[20.0, 20, 8, 8], [12.0, 12, 4, 4]], labels=[0, 0])]
    with pytest.raises(DataError, match=r"learned from \(2 of 2 without an area, left out\): COCO's are x, y, width"):
        boxes.clean(rows, [(32, 32)], Path("the data"))
    with pytest.raises(DataError, match="has no box that can be learned from: a detector needs some"):
        boxes.clean([boxes.Annotation(Path("item 0"))], [(32, 32)], Path("the data"))


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    row = Annotation(tmp_path / "a.png", None, [[1, 1, 2, 2]], [0], said_in=Path("labels.json"))
    with pytest.raises(DataError, match=r"a\.png is no image that can be read"):
        boxes.collect([row], ["thing"], tmp_path)
    with pytest.raises(DataError, match="names no image"):
        boxes.collect([], ["thing"], tmp_path)
