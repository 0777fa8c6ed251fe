"""Masks beside images: where they are found, how they move with their images, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pictures import class_folder, mask_folder
from secateur.data import examples, masks, transforms
from secateur.errors import DataError, InputError
from secateur.runs.backends.network import Network
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced


def test_a_folder_of_images_and_masks_is_read_with_its_names(tmp_path):
    mask_folder(tmp_path, 5)
    data = examples.with_transform(examples.read(tmp_path), "none", "24x32", workers=0)
    assert (len(data), data.per_pixel, data.has_classes, data.labels) == (5, True, True, None)
    assert data.classes == ("ground", "red", "green")
    batch = data.take([3, 1]).batch()
    assert batch["inputs"].shape == (2, 3, 24, 32)
    assert batch["labels"].shape == (2, 24, 32)
    assert batch["labels"].dtype == torch.int64
    assert set(batch["labels"].unique().tolist()) <= {masks.IGNORED, 0, 2}
    # The square is red where the mask says so: the mask lies where the image does.
    first = data.take([0]).batch()
    assert float(first["inputs"][0, 0][first["labels"][0] == 1].mean()) > 0.8
    assert float(first["inputs"][0, 0][first["labels"][0] == 0].mean()) < 0.3
    assert examples.read(tmp_path, label="").has_classes is False
    counts = data.masks.count_classes(data.inputs)
    assert len(counts) == 3
    assert counts[1] == 3 * 256


def agreement(inputs, labels):
    """Share of pixels that are bright where the mask has a square, and dark where it has none."""
    inside = (labels == 1) | (labels == 2)
    bright = inputs.amax(1) > 0.55
    return float((inside == bright)[labels >= 0].float().mean())


@pytest.mark.parametrize("augment", ["crop", "shift"])
def test_in_training_a_mask_moves_by_the_draws_of_its_image(tmp_path, augment):
    mask_folder(tmp_path, 4)
    declared = transforms.Transform("own", (24, 24), augment=augment)
    data = examples.with_transform(examples.read(tmp_path), declared, workers=0)
    draws = [data.batch([0, epoch]) for epoch in range(4)]
    assert not torch.equal(draws[0]["labels"], draws[1]["labels"])
    together = [agreement(batch["inputs"], batch["labels"]) for batch in draws]
    apart = [agreement(draws[n]["inputs"], draws[n - 1]["labels"]) for n in range(4)]
    assert min(together) > 0.9, together  # edges are mixed in images, and in masks they are not
    assert max(apart) < 0.9, apart
    assert torch.equal(data.batch([0, 2])["labels"], draws[2]["labels"])
    if augment == "shift":
        black = draws[0]["inputs"].sum(1) == 0
        assert (draws[0]["labels"][black] == masks.IGNORED).float().mean() > 0.9, "what comes in has no class"


def test_workers_read_the_same_masks(tmp_path):
    mask_folder(tmp_path, 9)
    feeds = [examples.batches(examples.with_transform(examples.read(tmp_path), "imagenet", 24, workers=workers),
                              batch=3, seed=1) for workers in (0, 2)]  # fmt: skip
    for step in range(6):
        one, other = (feed[step] for feed in feeds)
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("layout", ["parts inside", "parts outside"])
def test_the_part_to_measure_on_is_found(tmp_path, layout):
    mask_folder(tmp_path, 4, held=2)
    if layout == "parts outside":
        for kind in ("images", "masks"):
            for part in ("train", "val"):
                shutil.copytree(tmp_path / part / kind, tmp_path / "other" / kind / part)
        tmp_path = tmp_path / "other"
        (tmp_path / "classes.txt").write_text("ground\nred\ngreen\n")
    held = examples.find_held_out(tmp_path)
    assert (len(examples.read(tmp_path)), len(examples.read(held))) == (4, 2)
    assert examples.read(held).classes == ("ground", "red", "green")
    assert masks.find_held_out(held) is None


def test_masks_of_0_and_255_alone_have_two_classes(tmp_path):
    mask_folder(tmp_path, 2)
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 1, 255, 0).astype(np.uint8)).save(file)
    data = examples.with_transform(examples.read(tmp_path), "none", 24, workers=0)
    assert set(data.batch()["labels"].unique().tolist()) == {0, 1}
    assert any("255 is read as class 1" in note for note in data.notes)


def test_a_value_that_two_classes_do_not_have_is_refused_where_a_later_mask_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "_SAMPLE", 2)  # the first and the last
    mask_folder(tmp_path, 3)
    for number in (0, 2):
        file = tmp_path / "masks" / f"{number:03}.png"
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 1, 255, 0).astype(np.uint8)).save(file)
    data = examples.with_transform(examples.read(tmp_path), "none", 24, workers=0)
    with pytest.raises(DataError, match=r"001.png holds the value 2, and masks .* hold 0 and 255 alone"):
        data.batch()


@pytest.mark.parametrize(
    ("value", "words"), [(3, "holds the label 3: .* 3 classes, 0 to 2"), (-1, "holds the label -1")]
)
def test_a_label_that_is_no_class_of_the_network_is_refused_where_it_is_read(tmp_path, value, words):
    mask_folder(tmp_path, 2)
    file = tmp_path / "masks" / "001.png"
    drawn = np.asarray(Image.open(file)).astype(np.int32)
    drawn[8, 8] = value
    file.unlink()
    Image.fromarray(drawn).save(file.with_suffix(".tif"))  # numbers of 32 bits, where 255 is void as well
    data = examples.with_transform(examples.read(tmp_path), "none", 24, workers=0)
    data = replace(data, masks=data.masks.limit(3))
    assert set(data.take([0]).batch()["labels"].unique().tolist()) <= {masks.IGNORED, 0, 1, 2}
    with pytest.raises(DataError, match=f"001.tif {words}"):
        data.batch()


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
def test_255_is_no_class_of_a_small_network_in_masks_of_any_depth(tmp_path, bits):
    mask_folder(tmp_path, 2)
    for file in (tmp_path / "masks").iterdir():
        drawn = np.asarray(Image.open(file)).astype(bits)
        drawn[:4] = 255
        Image.fromarray(drawn).save(file)
    data = examples.with_transform(examples.read(tmp_path), "none", 24, workers=0)
    fitted = Network().fit_data(data, Traced(nn.Conv2d(3, 3, 1).eval(), Example((torch.zeros(1, 3, 24, 24),))))
    assert set(fitted.batch()["labels"].unique().tolist()) <= {masks.IGNORED, 0, 1, 2}
    with pytest.raises(DataError, match="has the label 2: the model has 2 classes"):
        Network().fit_data(data, Traced(nn.Conv2d(3, 2, 1).eval(), Example((torch.zeros(1, 3, 24, 24),))))


def test_images_without_masks_are_left_out_and_said(tmp_path):
    mask_folder(tmp_path, 3)
    (tmp_path / "masks" / "001.png").rename(tmp_path / "masks" / "001_mask.png")
    (tmp_path / "masks" / "002.png").unlink()
    data = examples.read(tmp_path)
    assert len(data) == 2
    assert "1 images" in data.notes[0]


def test_what_can_be_no_mask_is_refused_in_a_line(tmp_path):
    mask_folder(tmp_path, 2)
    file = tmp_path / "masks" / "001.png"
    grey = Image.open(file)
    grey.resize((8, 8)).save(file)
    with pytest.raises(DataError, match=r"001.png is 8x8, its image .*001.png is"):
        examples.with_transform(examples.read(tmp_path), "none", 24, workers=0).batch()
    grey.convert("RGB").save(file)
    with pytest.raises(DataError, match="is in RGB: give masks whose pixels are numbers"):
        examples.read(tmp_path)
    for one in (tmp_path / "masks").iterdir():
        one.unlink()
    grey.save(tmp_path / "masks" / "000.jpg")
    with pytest.raises(DataError, match="JPEG does not keep numbers"):
        examples.read(tmp_path)
    grey.save(tmp_path / "masks" / "001.png")
    with pytest.raises(InputError, match="moves no masks"):
        examples.with_transform(examples.read(tmp_path), lambda image: image).batch()


def test_class_folders_are_still_class_folders(tmp_path):
    class_folder(tmp_path)
    assert masks.find_pair(tmp_path) is None
    assert examples.read(tmp_path).labels is not None


def test_another_mask_is_other_data(tmp_path):
    mask_folder(tmp_path, 3)
    before = examples.with_transform(examples.read(tmp_path), "none", 24)
    assert before.take([0, 1]).digest != before.digest
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "images", copied / "images")
    shutil.copytree(tmp_path / "masks", copied / "masks")
    Image.fromarray(np.asarray(Image.open(copied / "masks" / "000.png")) * 0).save(copied / "masks" / "000.png")
    after = examples.with_transform(examples.read(copied), "none", 24)
    assert after.digest != before.digest
    assert after.files_digest != before.files_digest
    before.save(tmp_path / "all.npz")
    assert examples.read(tmp_path / "all.npz").labels.shape == (3, 24, 24)
