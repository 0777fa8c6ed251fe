"""Single examples of Python's, and those that are passed over once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    Dataset,
)  # fmt: skip

from image_data import Pairs
from pictures import draw
from secateur.data import examples
from secateur.errors import DataError, DataWarning


def test_floats_with_their_colours_last_are_turned_where_nothing_else_can_stand_there():
    numbers = np.random.default_rng(0).random((4, 8, 9, 3))
    data = examples.read([(image, 0) for image in numbers])
    assert torch.equal(
        examples.with_transform(data, "none").inputs[:], torch.from_numpy(numbers).permute(0, 3, 1, 2).float()
    )
    for shape in ((3, 8, 3), (16, 8, 1), (16, 9, 4)):
        assert examples.read([(np.zeros(shape), 0)]).inputs.shape == (1, *shape)


def test_opened_images_are_read_as_their_files_are(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (6, 7), dtype=np.uint16)
    coloured = Image.fromarray(numbers)
    opened = [coloured.convert(mode) for mode in ("RGB", "RGBA", "LA", "P", "1", "L")]
    opened += [Image.fromarray(deep), Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep / np.float32(65535))]
    opened[3].info["transparency"] = 0
    for place, image in enumerate(opened):
        file = tmp_path / f"{place}.{'png' if place < 6 else 'tif'}"
        image.save(file)
        read = [examples.with_transform(examples.read([one]), "none").inputs[0] for one in (image, Image.open(file))]
        assert torch.equal(*read), image.mode
        assert (
            torch.equal(
                read[0], examples.with_transform(examples.read([np.array(image.convert("RGB"))]), "none").inputs[0]
            )
            or place > 5
        )
    assert np.allclose(read[0], deep / 65535.0)


def test_a_pass_over_images_tells_their_sizes_and_parts_know_what_the_whole_knows():
    opened = []

    class Counted(Dataset):
        def __len__(self):
            return 300

        def __getitem__(self, place):
            opened.append(place)
            return Image.new("RGB", (8, 8), (place % 256, place // 256, 0)), place % 3

    data = examples.read(Counted())
    before = len(opened)
    assert {data.inputs.source.size(place) for place in range(300)} == {(8, 8)}
    assert len(opened) == before <= 330
    assert data.digest
    train, held = data.split()
    assert len(np.intersect1d(train.keys(), held.keys())) == 0
    assert len(opened) <= 2 * 330


def test_arrays_of_16_bits_are_shares_of_their_largest(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 3, 20, 20), dtype=np.uint16)
    kinds, shares = [0, 1] * 3, torch.from_numpy(deep.astype(np.float32)) / 65535
    last = np.ascontiguousarray(deep.transpose(0, 2, 3, 1))
    for images in (deep, last, torch.from_numpy(deep)):
        assert torch.equal(examples.read((images, kinds)).inputs, shares)
    for images in (deep, last):
        assert torch.equal(examples.read(list(zip(images, kinds, strict=True))).inputs[:], shares)
        assert torch.equal(examples.read(zip(images, kinds, strict=True)).inputs[:], shares)
    grey = examples.read(list(zip(deep[:, 0], kinds, strict=True)))
    assert torch.equal(grey.inputs[:], shares[:, :1])
    tokens = examples.read((deep[:, 0, 0], kinds))
    assert tokens.inputs.dtype == torch.int64, "rows of 16 bits may be tokens"
    np.savez(tmp_path / "deep.npz", inputs=last, labels=kinds)
    assert torch.equal(examples.read(tmp_path / "deep.npz").inputs, shares)
    small = (last >> 8).astype(np.uint8)
    with pytest.warns(
        DataWarning, match=r"of shape \[6, 20, 20, 3\] are read as \[N, H, W, C\] and become \[6, 3, 20, 20\]"
    ):
        assert examples.read((small, kinds)).inputs.shape == (6, 3, 20, 20)
    clips = examples.read((deep[:, :, None], kinds))
    assert torch.equal(clips.inputs, shares[:, :, None]), "of any shape, as bytes are"


class Drawn(Pairs):
    def __getitem__(self, place):
        return torch.rand(3, 8, 8), place % 2


def test_a_data_set_that_augments_is_the_same_each_time():
    first, second = examples.read(Drawn()), examples.read(Drawn())
    assert first.digest == second.digest
    assert torch.equal(first.inputs[2:3], second.inputs[2:3])


def read_plainly(source):
    return examples.with_transform(examples.read(source, label=""), "none").inputs[:]


@pytest.mark.parametrize("kind", [">f4", ">f8", ">u2", "<u2"])
def test_arrays_of_either_byte_order_are_the_same_numbers(kind):
    channels = 4 if "u" in kind else 3  # four stand last in whole numbers alone
    numbers = np.arange(6 * 5 * channels).reshape(6, 5, channels)
    given, own = numbers.astype(kind), numbers.astype(np.dtype(kind).newbyteorder("="))
    for form in (list, iter):
        data = examples.read(form([(given, 0)] * 2))
        assert data.inputs.source.size(0) == (5, 6)
        assert torch.equal(examples.with_transform(data, "none").inputs[:], read_plainly([own] * 2))


@pytest.mark.parametrize("kind", ["longdouble", "object", "U1", "datetime64[s]"])
def test_arrays_of_what_is_no_number_are_refused_in_a_line(kind):
    for form in (list, iter):
        with pytest.raises(
            DataError, match=r"item 0 of the data is an array of .*: give numbers such as uint8 or float32"
        ):
            examples.read(form([(np.zeros((4, 4)).astype(kind), 0)] * 2))


def test_rows_of_a_table_as_arrays_of_objects_are_pairs():
    pandas = pytest.importorskip("pandas")
    images = list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8))
    frame = pandas.DataFrame({"image": images, "label": [0, 1] * 3})
    assert examples.read(frame[["image", "label"]].to_numpy()).labels.tolist() == [0, 1] * 3
    assert examples.read(zip(frame["image"], frame["label"], strict=True)).labels.tolist() == [0, 1] * 3
    for given in (frame, frame["image"]):
        with pytest.raises(DataError, match=r"data is a (DataFrame|Series): give pairs, .*zip\(data\['image'\], "):
            examples.read(given)


def test_files_of_images_as_bytes_are_read_in_lists_as_where_they_are_passed_over(tmp_path):
    file = draw(tmp_path / "x.png", (30, 20))
    for image in (file.read_bytes(), {"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}):
        for form in (list, iter):
            data = examples.read(form([(image, 1)] * 3))
            assert data.inputs.source.size(0) == (30, 20)
            assert torch.equal(examples.with_transform(data, "none").inputs[:], read_plainly([Image.open(file)] * 3))
    for wrong, words in (
        (b"no image", "no image that can be read"),
        ({"bytes": None, "path": str(tmp_path / "none.png")}, "item 0 of the data is no image that can be read"),
        ({"height": 3}, "item 0 of the data is dict: give PIL images"),
        ({"bytes": None, "path": None}, "item 0 of the data is dict: give PIL images"),
    ):
        for form in (list, iter):
            with pytest.raises(DataError, match=words):
                examples.read(form([(wrong, 1)] * 3))


def test_images_that_were_closed_are_said_to_be(tmp_path):
    file = draw(tmp_path / "x.png")
    with Image.open(file) as lazy:
        pass
    loaded = Image.open(file)
    loaded.load()
    loaded.close()
    for image in (lazy, loaded):
        with pytest.raises(DataError, match=r"item 0 of the data is an image that was closed: .*load\(\)"):
            examples.read([(image, 0)] * 2)


def test_transparency_of_16_bits_is_left_out_as_that_of_bytes():
    deep = np.random.default_rng(0).integers(0, 65536, (4, 8, 9), dtype=np.uint16)
    for given in (deep, torch.from_numpy(deep), np.ascontiguousarray(deep.transpose(1, 2, 0))):
        assert torch.equal(read_plainly([given])[0], torch.from_numpy(deep[:3].astype(np.float32)) / 65535)
