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


def two_columns(count=6):
    """A table with two columns of classes: a, b, c in `fine`, x and y in `label`."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fine": datasets.ClassLabel(names=["a", "b", "c"]),
            "label": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    pictures = [Image.new("RGB", (8, 8), (place, 0, 0)) for place in range(count)]
    columns = {"image": pictures, "fine": [n % 3 for n in range(count)], "label": [n % 2 for n in range(count)]}
    return datasets.Dataset.from_dict(columns, features)


def give(**columns):
    """A transform that gives tensors as `pixel_values`, and beside them what functions make of the rows."""
    return lambda rows: {
        "pixel_values": [torch.full((3, 4, 4), 0.5) for _ in rows["image"]],
        **{name: make(rows) for name, make in columns.items()},
    }


@pytest.mark.parametrize("label", ["fine", "typo"])
def test_a_label_that_is_named_is_one_that_the_transform_gives(label):
    rows = two_columns().with_transform(give(label=lambda rows: rows["label"]))
    with pytest.raises(DataError, match=f"transform gives it, has no key '{label}': it has (label|pixel_values)"):
        examples.read(rows, label=label)


def test_a_transform_that_takes_labels_of_another_column_has_no_names_of_the_first():
    rows = two_columns().with_transform(give(labels=lambda rows: rows["fine"]))
    data = examples.read(rows)
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2, 0, 1, 2], ())
    whole = two_columns().with_transform(give(labels=lambda rows: rows["label"], fine=lambda rows: rows["fine"]))
    assert examples.read(whole).classes == ("x", "y")
    assert examples.read(whole, label="fine").classes == ("a", "b", "c")


@pytest.mark.parametrize("key", ["labels", "mask"])
def test_masks_that_a_transform_gives_are_read_as_those_of_any_data_set(key):
    masks = [torch.full((4, 4), place % 3) for place in range(6)]
    rows = two_columns().with_transform(give(**{key: lambda rows: [masks[fine] for fine in rows["fine"]]}))
    for given in (rows, datasets.DatasetDict(train=rows)):
        data = examples.read(given)
        assert torch.equal(data.batch()["labels"], torch.stack(masks))
        assert (data.labels, data.classes) == (None, ()), "names of a column are those of no mask"


def test_boxes_that_a_transform_gives_are_read_as_those_of_any_data_set():
    box = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    change = give(
        boxes=lambda rows: [box for _ in rows["image"]],
        labels=lambda rows: [torch.tensor([fine + 1]) for fine in rows["fine"]],
    )
    data = examples.read(two_columns().with_transform(change))
    assert [target["labels"].tolist() for target in data.targets] == [[0], [1], [2]] * 2


def test_a_stream_of_unknown_columns_says_how_they_become_known():
    rows = two_columns().to_iterable_dataset().map(lambda row: {"image": row["image"]})
    with pytest.raises(DataError, match=r"columns of the table are not known, as after `map`.*features="):
        examples.read(rows)
    features = two_columns().features
    assert examples.read(two_columns().to_iterable_dataset().map(lambda row: row, features=features)).classes == (
        "x",
        "y",
    )


def test_a_column_of_text_that_is_called_image_is_none_beside_one_of_images():
    features = datasets.Features({"image": datasets.Value("string"), "photo": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": ["a.png"] * 2, "photo": [Image.new("RGB", (8, 8))] * 2}, features)
    assert examples.read(rows, label="").inputs.shape == (2, 3, 8, 8)


def test_labels_of_digits_are_names_and_told():
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4))] * 3, "label": ["10", "2", "1"]},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    with pytest.warns(DataWarning, match=r"strings of digits, '1', '10', .* names in alphabetical order.*int\(label\)"):
        data = examples.read(rows)
    assert data.classes == ("1", "10", "2")


def test_boxes_that_a_transform_gives_are_no_classes_though_their_labels_are_named():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 3, "label": [0, 1, 1]}, features=features)
    box = {"boxes": torch.tensor([[1.0, 1, 4, 4]]), "labels": torch.tensor([1])}
    shown = table.with_transform(
        lambda rows: {"image": rows["image"]} | {k: [v] * len(rows["image"]) for k, v in box.items()}
    )
    data = examples.read(shown, label="labels")
    assert data.labels is None
    assert len(data.targets) == 3
