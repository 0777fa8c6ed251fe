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
from secateur.data import examples
from secateur.errors import DataWarning


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
