"""Tables of `datasets` with images."""

from __future__ import annotations

import io
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from image_data import check, table
from secateur.data import examples, image_sources
from secateur.errors import DataError, DataWarning


def test_a_table_of_datasets(tmp_path):
    rows = table(tmp_path / "x")
    check(examples.read(rows), classes=("a", "b"))
    rows.save_to_disk(tmp_path / "saved")
    check(examples.read(tmp_path / "saved"), classes=("a", "b"))
    rows.to_parquet(tmp_path / "p.parquet")
    check(examples.read(tmp_path / "p.parquet"), classes=("a", "b"))
    both = datasets.DatasetDict({"train": rows, "validation": rows})
    assert image_sources.find_held_out(both) is rows
    both.save_to_disk(tmp_path / "both")
    assert image_sources.find_held_out(tmp_path / "both") == tmp_path / "both" / "validation"
    check(examples.read(tmp_path / "both"), classes=("a", "b"))
    check(examples.read(table(tmp_path / "y", named=False)), classes=("a", "b"))
    assert examples.read(rows, label="").labels is None
    with pytest.raises(DataError, match="the table has no column 'colour': it has label, image"):
        examples.read(rows, label="colour")
    with pytest.raises(DataError, match=r"no column of images: it has n; name one of type datasets\.Image"):
        examples.read(datasets.Dataset.from_dict({"n": [1]}))


def test_a_streamed_table_is_kept_as_it_is_encoded(tmp_path):
    check(examples.read(table(tmp_path).to_iterable_dataset()), classes=("a", "b"))


def test_a_table_with_a_transform_of_ones_own_is_what_that_makes_of_it(tmp_path):
    def shrink(rows):
        rows["pixel_values"] = [torch.from_numpy(np.array(one.resize((8, 8)))).permute(2, 0, 1) / 255.0 - 0.5
                                for one in rows.pop("image")]  # fmt: skip
        return rows

    data = examples.read(table(tmp_path).with_transform(shrink))
    assert data.inputs.shape == (6, 3, 8, 8)
    assert float(data.inputs[0].min()) < 0
    assert (data.labels.tolist(), data.classes) == ([0] * 3 + [1] * 3, ("a", "b"))
    plain = examples.read(table(tmp_path).with_transform(shrink), label="")
    assert (len(plain), plain.labels, plain.classes) == (6, None, ())


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("key", ["label", "labels"])
def test_a_transform_of_a_table_may_rename_its_labels_and_keep_its_images(tmp_path, key, adds):
    def change(rows):
        found = {"pixel_values": [torch.full((3, 4, 4), 0.25) for _ in rows["image"]], key: rows["label"]}
        return {"image": rows["image"], **found} if adds else found

    rows = table(tmp_path).with_transform(change)
    for given in (rows, datasets.DatasetDict(train=rows)):
        data = examples.read(given)
        assert (data.labels.tolist(), data.classes) == ([0] * 3 + [1] * 3, ("a", "b"))
        assert torch.equal(examples.with_transform(data, "none").inputs[:], torch.full((6, 3, 4, 4), 0.25))
    more = (
        table(tmp_path).remove_columns("label").with_transform(lambda rows: {**rows, "kind": [5] * len(rows["image"])})
    )
    assert examples.read(more, label="kind").labels.tolist() == [5] * 6


def test_columns_of_lists_are_arrays_or_refused_in_a_line():
    picture = Image.new("RGB", (8, 8))
    for kind, value in (("image", [picture]), ("string", ["a"]), ("binary", [b"a"])):
        inner = datasets.Image() if kind == "image" else datasets.Value(kind)
        rows = datasets.Dataset.from_dict({"image": [value]}, datasets.Features({"image": datasets.Sequence(inner)}))
        for given in (rows, rows.to_iterable_dataset()):
            with pytest.raises(DataError, match="is list: give PIL images, or arrays"):
                examples.read(given, label="")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    encoded = datasets.Dataset.from_dict({"image": [buffer.getvalue()] * 2, "label": [0, 1]})
    assert examples.read(encoded).inputs.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["Array3D", "Sequence"])
def test_arrays_of_a_table_are_the_numbers_that_it_says(form, streamed):
    numbers = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    kind = datasets.Array3D((8, 9, 3), "uint8")
    if form == "Sequence":
        kind = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("uint8"))))
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": list(numbers), "label": [0, 1, 0, 1]}, features=features)
    data = examples.read(rows.to_iterable_dataset() if streamed else rows)
    expected = torch.from_numpy(numbers).permute(0, 3, 1, 2) / 255.0
    assert torch.equal(examples.with_transform(data, "none").inputs[:], expected)
    assert data.labels.tolist() == [0, 1, 0, 1]


def test_the_column_of_images_is_the_one_that_is_called_so():
    features = datasets.Features({name: datasets.Image() for name in ("annotation", "image")})
    pictures = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
    data = examples.read(
        datasets.Dataset.from_dict({"annotation": pictures[:1], "image": pictures[1:]}, features), label=""
    )
    assert float(examples.with_transform(data, "none").inputs[0].min()) == 1.0


def test_a_table_whose_classes_have_another_name_says_so(tmp_path):
    columns = {"img": [Image.new("RGB", (4, 4))] * 3, "kind": ["a", "b", "a"], "objects": [[1], [2], [3]]}
    table = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    with pytest.warns(DataWarning, match=r"has no column label, .* without classes; it has kind, objects: name that"):
        assert image_sources.read_table(table).labels is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert image_sources.read_table(table, "").labels is None
        assert image_sources.read_table(table, "kind").classes == ("a", "b")
        assert image_sources.read_table(table.select_columns("img")).labels is None
