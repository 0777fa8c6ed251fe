"""Images that lie on the disk: every format, nothing read before it is asked for, damaged files named in a line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pictures import class_folder, draw, mixed_folder
from secateur.data import examples, images, transforms
from secateur.data.examples import Examples, with_transform
from secateur.data.images import Files, Images
from secateur.errors import DataError


def column(folder, **declared):
    paths = sorted(path for path in folder.rglob("*") if images.is_image(path))
    return Images(Files(paths), transforms.read(**declared) if declared else None)


def test_images_of_unequal_sizes_become_inputs_of_one(tmp_path):
    data = column(class_folder(tmp_path), transform="imagenet", size=32)
    assert data.shape == (12, 3, 32, 32)
    assert data.dtype == torch.float32
    assert torch.equal(data[2:4], data[[2, 3]])
    assert torch.equal(data[torch.tensor([3])][0], data[3])
    assert torch.equal(data[:1, 0], data[0][:1])
    assert data[1, 0, 0, 0] == data[1][0, 0, 0]
    assert data[5:5].shape == (0, 3, 32, 32)
    assert torch.equal(data.take([7, 1]).take([1])[:], data[[1]])


def test_taking_reads_nothing(tmp_path, monkeypatch):
    data = column(class_folder(tmp_path), size=16)
    monkeypatch.setattr(images, "decode", None)
    assert len(data.take(range(4)).take([0, 2])) == 2


def test_every_kind_of_file_is_read(tmp_path):
    data = column(mixed_folder(tmp_path))
    turned, grey, palette, clear, deep = (data.original(place) for place in range(5))
    assert turned.size == (20, 60)
    assert data.source.size(0) == (20, 60)
    assert {picture.mode for picture in (turned, grey, palette, clear)} == {"RGB"}
    assert deep.shape == (3, 20, 30)
    assert deep.dtype == torch.float32
    assert deep[0, 10, 0].item() == pytest.approx(0.5, abs=0.01), "16 bits do not saturate"
    assert column(tmp_path, size=16)[:].isfinite().all()


def test_floats_beyond_their_range_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 7.0, np.float32)).save(tmp_path / "a" / "1.tif")
    with pytest.raises(DataError, match=r"1\.tif has values from 7 to 7: give 8 or 16 bits, or floats between 0 and 1"):
        column(tmp_path)[:]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_files_are_named_before_any_is_decoded(tmp_path, suffix):
    class_folder(tmp_path)
    file = draw(tmp_path / "a" / f"cut{suffix}", (300, 200))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"cut{suffix} is no image that can be read \(.*\): remove it$"):
        column(tmp_path).keys()
    (tmp_path / "b" / "none.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cut.*: remove it; so are 1 more of 14$"):
        column(tmp_path).keys()


def test_what_a_camera_writes_behind_an_image_damages_nothing(tmp_path):
    file = draw(tmp_path / "a" / "1.jpg")
    file.write_bytes(file.read_bytes() + bytes(9000))
    assert len(column(tmp_path).keys()) == 1


def test_keys_are_those_of_equal_files_and_the_digest_of_all(tmp_path):
    class_folder(tmp_path)
    draw(tmp_path / "b" / "copy.jpg", (40, 30), 0)
    data = column(tmp_path, size=16)
    keys = data.keys()
    assert len(np.unique(keys)) == 12
    assert data.take([3]).keys() == keys[3]
    assert data.digest == column(tmp_path, size=16).digest
    assert data.digest != column(tmp_path, size=17).digest
    assert data.digest != data.take(range(12)).digest


def test_augmented_inputs_are_a_function_of_the_draw_and_the_place(tmp_path):
    data = column(class_folder(tmp_path), transform="imagenet", size=16)
    before = torch.get_rng_state()
    drawn = data.read([4, 5], [1, 2])
    assert torch.equal(torch.get_rng_state(), before), "training's own chance is left alone"
    assert torch.equal(drawn, data.read([4, 5], [1, 2]))
    assert torch.equal(drawn[1:], data.take([5]).read([0], [1, 2]))
    assert not torch.equal(drawn, data.read([4, 5], [1, 3]))
    assert not torch.equal(drawn, data[[4, 5]])


def test_a_transform_that_fails_is_named_with_the_image(tmp_path):
    def fail(picture):
        raise ValueError("no such thing")

    with pytest.raises(DataError, match=r"transform=.*fail failed on .*000\.jpg \(ValueError: no such thing\)"):
        column(class_folder(tmp_path), transform=fail)[:1]


def test_images_of_one_size_and_other_channels_are_told_apart_by_these():
    items = [(torch.rand(3, 8, 9), 0), (torch.rand(1, 8, 9), 1), (torch.rand(3, 8, 10), 1)]
    found = examples.read(items).inputs
    words = "item 1 of the data has 1 channel, item 0 of the data has 3 channels: give all images the same channels"
    with pytest.raises(DataError, match=words):
        found[:2]
    with pytest.raises(
        DataError, match="item 2 of the data is 10x8, item 0 of the data is 9x8: bring all images to one"
    ):
        found[[0, 2]]


def test_what_nobody_declares_is_the_models_or_refused(tmp_path):
    data = column(class_folder(tmp_path / "all"))
    model = nn.Sequential(nn.Identity())
    with pytest.raises(DataError, match=r"photos holds images of unequal sizes \(40x30, 50x40\), and the model"):
        images.declare(data, model, name="photos")
    model[0].pretrained_cfg = {"input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    assert images.declare(data, model).shape == (12, 3, 24, 24)
    assert images.declare(data, model, (3, 16, 20)).shape == (12, 3, 16, 20)
    sized = images.declare(column(tmp_path / "all", size=8), model)
    assert sized.shape == (12, 3, 8, 8)
    assert sized.transform.mean == (0.5,) * 3
    equal = images.declare(column(class_folder(tmp_path / "equal", sizes=(20,))), nn.Identity())
    assert equal.shape == (12, 3, 20, 20)
    assert equal.transform.identity


def test_an_image_costs_the_bytes_of_its_file(tmp_path):
    """Images of unequal sizes do not all take as much as the first, whatever inputs they become."""
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    Image.effect_noise((64, 64), 80).save(tmp_path / "1.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    data = Examples(Images(Files(paths)), torch.tensor([0, 1]))
    sizes = [float(path.stat().st_size) for path in paths]
    assert data.costs()["bytes"].tolist() == sizes
    assert with_transform(data, None, 8).take([1]).costs()["bytes"].tolist() == sizes[1:]
