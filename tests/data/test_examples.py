"""Examples: each form they come in, what is refused, and batches that are functions of the seed and their number."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, RunError


def picture(path, value, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_arrays(tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, inputs=np.full((3, 1, 2, 2), 255, np.uint8), labels=np.array([0, 2, 1], np.int8))
    data = examples.read(file)
    assert data.inputs.shape == (3, 1, 2, 2)
    assert data.inputs.dtype == torch.float32
    assert float(data.inputs.max()) == 1.0
    assert data.labels.tolist() == [0, 2, 1]
    assert data.labels.dtype == torch.int64
    assert data.digest == examples.read(file).digest
    assert data.digest != data.take([1, 0, 2]).digest


def test_the_array_of_classes_may_be_named(tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, inputs=np.zeros((3, 2), np.float32), labels=[0, 2, 1], coarse=[0, 1, 1])
    assert examples.read(file, label="coarse").labels.tolist() == [0, 1, 1]
    assert examples.read(file, label="labels").labels.tolist() == [0, 2, 1]
    assert examples.read(file, label="").labels is None
    np.savez(tmp_path / "one.npz", inputs=np.zeros((3, 2), np.float32), label=[0, 1, 1])
    assert examples.read(tmp_path / "one.npz").labels.tolist() == [0, 1, 1]
    assert examples.read(tmp_path / "one.npz", label="").labels is None
    with pytest.raises(DataError, match=r"data\.npz has no array 'corse': it has coarse, labels, inputs$"):
        examples.read(file, label="corse")
    picture(tmp_path / "set" / "red" / "1.png", 200)
    assert examples.read(tmp_path / "set").labels.tolist() == [0]
    assert examples.read(tmp_path / "set", label="").labels is None
    with pytest.raises(DataError, match=r"set has no array of classes to be named, so label='colour' says nothing"):
        examples.read(tmp_path / "set", label="colour")


def test_boxes_in_arrays(tmp_path):
    np.savez(
        tmp_path / "scenes.npz", inputs=np.zeros((3, 3, 8, 8), np.float32), boxes=[[0, 0, 2, 2], [1, 1, 3, 4]],
        box_labels=[4, 5], box_image=[2, 0],
    )  # fmt: skip
    data = examples.read(tmp_path / "scenes.npz")
    assert [len(target["boxes"]) for target in data.targets] == [1, 0, 1]
    assert data.targets[0]["boxes"].tolist() == [[1, 1, 3, 4]]
    assert data.targets[1]["boxes"].shape == (0, 4)
    batch = examples.batches(data, batch=3)[0]
    assert len(batch["targets"]) == 3
    assert examples.count(batch) == {"examples": 3}
    with pytest.raises(DataError, match="augmentation"):
        examples.batches(data, batch=3, augment=lambda inputs, draw: inputs)


SCENES = ({"boxes": torch.tensor([[0.5, 0, 2, 2], [1, 1, 3, 4]]), "labels": torch.tensor([4, 5])},
          {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)})  # fmt: skip
STORED = {
    "classes": Examples(torch.randn(5, 1, 2, 3), torch.tensor([1, 0, 1, 1, 0]), (), ("Katze", "狗"), "pets"),
    "numbers": Examples(torch.arange(6).reshape(3, 2)),
    "boxes": Examples(torch.rand(2, 3, 8, 8), None, SCENES, tuple("abcdef")),
}


@pytest.mark.parametrize("kind", STORED)
def test_what_is_saved_is_read_as_it_is(tmp_path, kind):
    data = STORED[kind].take([1, 0])
    data.save(tmp_path / "new" / "data.npz")
    again = examples.read(tmp_path / "new" / "data.npz")
    assert again.digest == data.digest
    assert torch.equal(again.inputs, data.inputs)
    assert again.classes == data.classes
    assert [target["boxes"].tolist() for target in again.targets] == [t["boxes"].tolist() for t in data.targets]
    first = (tmp_path / "new" / "data.npz").read_bytes()
    again.save(tmp_path / "data.npz")
    assert (tmp_path / "data.npz").read_bytes() == first, "the same examples write the same bytes"


@pytest.mark.parametrize(
    ("given", "found"),
    [("8,24", (8, 24)), ((8, 24.5), (8, 24.5)), (" 5% , 15%", (0.05, 0.15)), (["5%", "0.15"], (0.05, 0.15))],
)
def test_sizes_of_boxes_are_sides_or_shares(given, found):
    assert examples.sides(given) == pytest.approx(found)


@pytest.mark.parametrize("wrong", ["8", "24,8", "8,8", "0,8", "5%,15", "8,big", (1, 2, 3), (-1, 4), "8,inf", "nan,8"])
def test_sizes_of_boxes_that_part_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="give two rising sides of squares"):
        examples.sides(wrong)


def test_sizes_of_boxes_go_with_the_data(tmp_path):
    plain = STORED["boxes"]
    data = dataclasses.replace(plain, sizes=(8, 24))
    data.save(tmp_path / "data.npz")
    again = examples.read(tmp_path / "data.npz")
    assert again.sizes == data.take([0]).sizes == (8.0, 24.0)
    assert again.digest == data.digest != plain.digest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            Examples(torch.zeros(2, 2, dtype=torch.float64), name="wide"),
            "wide has inputs of float64, .* give float32 or",
        ),
        (Examples(torch.zeros(2, 2, dtype=torch.uint8)), "inputs of uint8"),
        (Examples(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int32)), "labels of int32, .* give int64"),
    ],
)
def test_what_would_be_read_as_something_else_is_not_saved(tmp_path, data, words):
    with pytest.raises(DataError, match=words):
        data.save(tmp_path / "data.npz")
    assert not list(tmp_path.iterdir())


def test_a_file_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    STORED["classes"].save(tmp_path / "data.npz")
    before = (tmp_path / "data.npz").read_bytes()

    def half(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examples.np, "savez", half)
    with pytest.raises(RunError, match="disk full while writing"):
        STORED["numbers"].save(tmp_path / "data.npz")
    assert (tmp_path / "data.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("classes", [np.array([1, 2]), np.array([["a"]])])
def test_classes_that_are_no_names_are_refused(tmp_path, classes):
    np.savez(tmp_path / "data.npz", inputs=np.zeros((2, 2), np.float32), labels=[0, 1], classes=classes)
    with pytest.raises(DataError, match="an array `classes` that is no list of names: give strings, or leave it out"):
        examples.read(tmp_path / "data.npz")


def test_a_folder_of_classes(tmp_path):
    for name, value in (("cat/b.png", 51), ("cat/a.jpg", 0), ("dog/c.png", 255)):
        picture(tmp_path / "pets" / name, value)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    data = examples.read(tmp_path / "pets")
    assert data.inputs.shape == (3, 3, 4, 6)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.inputs[1, 0, 0, 0] == pytest.approx(0.2)


def test_a_folder_in_the_form_of_coco(tmp_path):
    picture(tmp_path / "images" / "one.png", 9)
    picture(tmp_path / "images" / "two.png", 9)
    boxes = [
        {"image_id": 7, "bbox": [1, 1, 2, 2], "category_id": 30, "iscrowd": 0},
        {"image_id": 7, "bbox": [0, 0, 6, 4], "category_id": 20, "iscrowd": 1},
        {"image_id": 8, "bbox": [2, 2, 0, 3], "category_id": 20, "iscrowd": 0},  # COCO itself has such
    ]
    data = {
        "images": [{"id": 7, "file_name": "one.png"}, {"id": 8, "file_name": "two.png"}],
        "annotations": boxes,
        "categories": [{"id": 30, "name": "bird"}, {"id": 20, "name": "cow"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    found = examples.read(tmp_path)
    assert found.classes == ("cow", "bird")
    assert found.targets[0]["boxes"].tolist() == [[1, 1, 3, 3]]
    assert found.targets[0]["labels"].tolist() == [1]
    assert len(found.targets[1]["boxes"]) == 0
    data["images"][0]["file_name"] = "../../secret.png"
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="outside of"):
        examples.read(tmp_path)


def test_a_function_of_the_users(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def data():\n    return [[0.5, 1.0], [2.0, 3.0]], [1, 0]\n\ndef bad():\n    return 3\n"
    )
    data = examples.read(f"{tmp_path}/mine.py:data")
    assert data.inputs.tolist() == [[0.5, 1.0], [2.0, 3.0]]
    assert data.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="gave int: expected Examples"):
        examples.read(f"{tmp_path}/mine.py:bad")


def test_json_that_is_not_of_coco_stands_beside_images_of_classes(tmp_path):
    picture(tmp_path / "cat" / "a.png", 1)
    for content in ('{"format": 1, "results": []}', "[1]"):
        (tmp_path / "notes.json").write_text(content)
        assert examples.read(tmp_path).classes == ("cat",)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match=r"all\.json is not in COCO's form"):
        examples.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.npz", b"PK\x03\x04 cut off", "can't be read as .npz, it is no archive, or one that was cut short"),
        ("data.npz", b"", "can't be read as .npz, it is empty"),
        ("array.npz", None, "can't be read as .npz, it is no archive"),
        ("data.npz", None, "no array `inputs`"),
        ("data.csv", b"1,2", "no .npz file, no folder of images and no function: give one of them$"),
        ("texts.txt", b"a b", "give one of them, or texts to a recipe on language models"),
        ("none.npz", b"", "there is no data at"),
        ("pets/cat/a.png", b"not an image", "is no image that can be read"),
        ("pets", None, "holds no images in folders"),
        ("coco/a.json", b'{"images": []}', "is not in COCO's form"),
        ("coco/a.json", b'{"images": [', "a.json is no JSON that can be read"),
        ("objects.npz", None, "without unpickling"),
        ("nan.npz", None, "holds NaN or infinity"),
        ("empty.npz", None, "holds no example"),
        ("uneven.npz", None, "one each"),
    ],
)
def test_what_can_not_be_used_is_refused_in_a_line(tmp_path, name, content, words):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "pets":
        file.mkdir()
    elif content is not None and name != "none.npz":
        file.write_bytes(content)
    elif name == "data.npz":
        np.savez(file, pictures=np.zeros(3))
    elif name == "array.npz":
        with file.open("wb") as out:
            np.save(out, np.zeros((2, 2), np.float32))  # what is one array, a .npy
    elif name == "objects.npz":
        np.savez(file, inputs=np.array([{}, {}], object))
    elif name == "nan.npz":
        np.savez(file, inputs=np.full((2, 2), np.nan, np.float32))
    elif name == "empty.npz":
        np.savez(file, inputs=np.zeros((0, 2), np.float32))
    elif name == "uneven.npz":
        np.savez(file, inputs=np.zeros((3, 2), np.float32), labels=np.zeros(2, int))
    with pytest.raises(DataError, match=words):
        examples.read(tmp_path / name.split("/")[0] if "/" in name else file)


WHOLE = "classes are whole numbers from 0; their names go into `classes`"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 0.5, 1], f"the label 0.5 (example 1): {WHOLE}"),
        ([np.nan, 0, 1], f"the label nan (example 0): {WHOLE}"),
        ([0, 1, np.inf], "the label inf (example 2)"),
        ([0, 1, 1e16], "the label 1e+16 (example 2)"),
        (["cat", "dog", "cat"], "the label 'cat' (example 0)"),
        (np.array([1, 2, 3], complex), "the label (1+0j) (example 0)"),
        (np.array([1, 2, 2**63], np.uint64), "the label 9223372036854775808 (example 2)"),
        (np.float32(0.5), f"the label 0.5: {WHOLE}"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused_in_a_line(tmp_path, labels, words):
    np.savez(tmp_path / "a.npz", inputs=np.zeros((3, 2), np.float32), labels=labels)
    with pytest.raises(DataError, match=re.escape(f"a.npz has {words}")):
        examples.read(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.uint8, np.int16])
def test_whole_numbers_of_any_kind_are_labels(tmp_path, kind):
    np.savez(tmp_path / "a.npz", inputs=np.zeros((3, 2), np.float32), labels=np.array([2, 0, 1], kind))
    assert examples.read(tmp_path / "a.npz").labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            np.array(["a", "b"]),
            "inputs that are no array of numbers (can't convert np.ndarray of type numpy.str_): give one",
        ),
        (np.float32(3), "inputs of a single number: give an array of real numbers, a row for each example"),
        (np.zeros((2, 2), np.complex64), "inputs of complex64: give an array of real numbers"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused_in_a_line(tmp_path, inputs, words):
    np.savez(tmp_path / "a.npz", inputs=inputs)
    with pytest.raises(DataError, match=re.escape(f"a.npz has {words}")) as refused:
        examples.read(tmp_path / "a.npz")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[[1.0], [2.0]], [0, 0.5]", "the label 0.5 (example 1)"),
        ("[[1.0], [2.0]], torch.tensor([0, 0.5])", "the label 0.5 (example 1)"),
        ("[[1.0], [2.0]], [[0], [0, 1]]", f"labels that are no array: {WHOLE}"),
        ("[[1.0], [2.0, 3.0]], [0, 1]", "inputs that are no array of numbers (expected sequence of length 1"),
        ("Examples(torch.zeros(2, 2), torch.tensor([0, 0.5]), name='own')", "own has the label 0.5 (example 1)"),
    ],
)
def test_what_a_function_gives_is_read_as_strictly(tmp_path, given, words):
    made = f"import torch\nfrom secateur.data.examples import Examples\n\ndef data():\n    return {given}\n"
    (tmp_path / "mine.py").write_text(made)
    with pytest.raises(DataError, match=re.escape(words)):
        examples.read(f"{tmp_path}/mine.py:data")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"boxes": [[0, 0, 2, 2], [3, 1, 3, 4]]}, r"the box \[3.0, 1.0, 3.0, 4.0\] on input 2: give x1, y1, x2, y2"),
        ({"boxes": [[0, 0, np.nan, 2], [1, 1, 3, 4]]}, r"the box \[0.0, 0.0, nan, 2.0\] on input 0"),
        ({"box_labels": [4, -1]}, "the label -1 on input 2: labels count from 0"),
        ({"box_labels": [4, 0.5]}, r"the label 0.5 \(box 1\): classes are whole numbers"),
        ({"box_image": [0, 1.5]}, r"the image 1.5 \(box 1\): box_image counts the inputs from 0"),
        ({"boxes": [["a"] * 4, ["b"] * 4]}, "boxes that can't be used"),
        ({"box_image": [0, 3]}, "boxes on images 0 to 3: there are images 0 to 2"),
        ({"box_image": [-1, 1]}, "boxes on images -1 to 1"),
    ],
)
def test_boxes_that_are_none_are_refused_in_a_line(tmp_path, changed, words):
    given = {"boxes": [[0, 0, 2, 2], [1, 1, 3, 4]], "box_labels": [4, 5], "box_image": [0, 2]}
    np.savez(tmp_path / "boxes.npz", inputs=np.zeros((3, 3, 8, 8), np.float32), **{**given, **changed})
    with pytest.raises(DataError, match=words):
        examples.read(tmp_path / "boxes.npz")


def test_arrays_in_a_list_or_a_column_that_are_no_images_are_read_as_one_array_of_them():
    pd = pytest.importorskip("pandas")
    drawn = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
    column = pd.Series(list(drawn), index=range(3, 9))
    rows, series, volumes = drawn[:, :, 0, 0], drawn[:, :, :, 0], drawn[:, :, :, [0, 1, 2, 0, 1]]
    whole = [rows, *(one.astype(kind) for one in (rows, series, volumes) for kind in (np.float32, np.int64))]
    for one, labels in ((one, np.arange(6)) for one in whole):
        for given in (list(one), tuple(one), pd.Series(list(one), index=range(3, 9))):
            again = examples.read((given, list(labels)))
            assert torch.equal(again.inputs, examples.read((one, labels)).inputs)
            assert again.inputs.dtype == examples.read((one, labels)).inputs.dtype
    assert examples.read((column, pd.Series(range(6)))).inputs.shape == (6, 3, 8, 9)
    data = examples.read(([*torch.rand(6, 5, 4, 4)], [*torch.arange(6)]))
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, ">u2", ">f4"])
@pytest.mark.parametrize("sizes", [((8, 9),) * 4, ((8, 9), (7, 9)) * 2], ids=["one size", "several"])
def test_images_in_a_list_are_those_of_pairs_whatever_their_sizes(kind, sizes):
    pd = pytest.importorskip("pandas")
    drawn = np.random.default_rng(0)
    floats, several = np.dtype(kind).kind == "f", len(set(sizes)) > 1
    for more in ((3,), (4,), (1,), ()) if several or not floats else ():  # floats of one size may be anything
        images = [drawn.integers(0, 256, (*size, *more)).astype(kind) for size in sizes]
        pairs = examples.read(list(zip(images, [0, 1, 0, 1], strict=True)))
        for given in (images, tuple(images), pd.Series(images, index=range(3, 7))):
            data = examples.read((given, [0, 1, 0, 1]))
            assert len(data.digest) == 64
            assert data.digest == pairs.digest
            for place in range(4):
                assert torch.equal(data.inputs[place : place + 1], pairs.inputs[place : place + 1])
            assert examples.with_transform(data, size=4).inputs.shape == (4, data.inputs.shape[1], 4, 4)
    images = [drawn.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    mask, where = np.zeros(sizes[0], np.uint8), "masks of the data hold 0 and 255 alone"
    mask[0] = 255
    if len(set(sizes)) == 1:
        for read in (examples.read((images, [mask] * 4)), examples.read([(one, mask) for one in images])):
            assert read.batch()["labels"].unique().tolist() == [0, 1]
            assert any(where in note for note in read.notes)
    assert examples.read((images, ["a", "b", "a", "b"])).classes == ("a", "b")


def test_images_of_bytes_are_shares_beside_those_of_floats():
    data = examples.read(([np.full((4, 4), 255, np.uint8), np.ones((4, 4), np.float32)], [0, 1]))
    assert data.inputs[:].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "shape", [(3, 8, 9), (8, 9, 3), (10, 5, 3), (8, 9), (7,)], ids=["normalised", "colours", "points", "series", "row"]
)
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_numbers_of_one_size_in_a_list_are_what_their_array_is(shape, kind):
    rows = np.random.default_rng(0).standard_normal((4, *shape)).astype(kind)
    whole = examples.read((rows, np.arange(4)))
    for given in (list(rows), [*torch.from_numpy(rows)]):
        data = examples.read((given, [0, 1, 2, 3]))
        assert torch.equal(data.inputs, whole.inputs)
        assert data.inputs.dtype == whole.inputs.dtype
    two = examples.read(((rows[0], torch.tensor(0)), (rows[1], torch.tensor(1)))) if len(shape) > 1 else None
    assert two is None or two.labels.tolist() == [0, 1]


def test_bytes_of_two_channels_are_no_batch_of_two():
    pairs = [np.zeros((2, 6, 6), np.uint8)] * 4
    data = examples.read((pairs, [0, 1, 0, 1]))
    assert isinstance(data.inputs, torch.Tensor)
    assert data.inputs.shape == (4, 2, 6, 6)


def test_arrays_may_go_backwards_and_have_any_byte_order():
    drawn = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 9), dtype=np.uint8)
    for one, other in (
        (drawn[:, ::-1], drawn[:, ::-1].copy()), (drawn.astype(">u2"), drawn.astype(np.uint16)),
        (drawn.astype(">f4"), drawn.astype(np.float32)),
    ):  # fmt: skip
        assert torch.equal(examples.read((one, np.arange(4))).inputs, examples.read((other, np.arange(4))).inputs)


def test_files_in_bytes_are_images_beside_lists():
    pd = pytest.importorskip("pandas")
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (10, 20, 30)).save(file, "PNG")
    for one in (file.getvalue(), {"bytes": file.getvalue(), "path": None}):
        for given in ([one, one], pd.Series([one, one])):
            data = examples.read((given, [0, 1]))
            assert data.inputs.shape == (2, 3, 5, 6)
            assert data.labels.tolist() == [0, 1]


def test_two_examples_in_a_tuple_are_examples_and_two_parts_are_told_apart():
    one, other = Image.new("L", (4, 4), 9), Image.new("L", (4, 4), 200)
    for given in (((one, 0), (other, 1)), ({"image": one, "label": 0}, {"image": other, "label": 1})):
        assert examples.read(given).labels.tolist() == [0, 1]
    vectors = ((torch.rand(7), torch.rand(7)), (torch.tensor(0), torch.tensor(1)))
    assert examples.read(vectors).inputs.shape == (2, 7)
    part = (torch.rand(4, 3, 4, 4), [0, 1, 0, 1])
    for given in (
        (part, part), ((part[0], torch.zeros(4)),) * 2, (TensorDataset(torch.rand(3, 2)),) * 2,
        (([one, other], [0, 1]), ([one, other], [0, 1])), ((np.fromiter([one, other], object), np.arange(2)),) * 2,
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"the data is two parts: give {'train'"):
            examples.read(given)


def test_what_is_no_data_is_told_of_in_a_line():
    with pytest.raises(DataError, match=r"the data is a single value, 3\.0: give an array with a row"):
        examples.read(np.array(3.0))
    with pytest.raises(DataError, match="data is a dict of training, validation: parts are called train and"):
        examples.read({"training": [1], "validation": [2]})
    with pytest.raises(DataError, match=r"a dict of nothing: parts .* columns are given as pairs, such as zip\("):
        examples.read({})


def test_none_of_pandas_is_no_label():
    pd = pytest.importorskip("pandas")
    for kind in ("Int64", "string"):
        labels = pd.Series([0, 1, None] if kind == "Int64" else ["a", "b", None], dtype=kind)
        with pytest.raises(DataError, match="image 3 of the data has no label"):
            examples.read((pd.Series([Image.new("L", (4, 4))] * 3), labels))


def test_images_in_a_list_and_their_labels_in_another_are_read_as_pairs():
    pictures = [Image.new("RGB", (8, 6), (40 * place, 0, 0)) for place in range(4)]
    pairs = examples.read(list(zip(pictures, [0, 1, 0, 1], strict=True)))
    for labels in ([0, 1, 0, 1], torch.tensor([0, 1, 0, 1]), np.array([0, 1, 0, 1])):
        data = examples.read((pictures, labels))
        assert torch.equal(data.inputs[:], pairs.inputs[:])
        assert data.labels.tolist() == [0, 1, 0, 1]
    assert examples.read((tuple(pictures), ("cat", "dog") * 2)).classes == ("cat", "dog")
    assert examples.read((pictures, None)).labels is None
    assert examples.read((pictures, [0, 1, 0, 1]), label="").labels is None
    with pytest.raises(DataError, match="the data has 4 inputs and 2 labels: one each"):
        examples.read((pictures, [0, 1]))
    sized = examples.read(([torch.rand(3, 6, 8), torch.rand(3, 5, 8)], [0, 1]))
    assert examples.with_transform(sized, size=4).inputs.shape == (2, 3, 4, 4)
    masked = examples.read((pictures, [np.eye(6, 8, dtype=np.uint8) * 255] * 4))
    assert masked.batch()["labels"].unique().tolist() == [0, 1]
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}
    for images in (torch.rand(4, 3, 6, 8), [*torch.rand(4, 3, 6, 8)], pictures):
        assert len(examples.read((images, [target] * 4)).targets) == 4
    with pytest.raises(DataError, match="may be two examples with masks or images and their masks: give lists"):
        examples.read(((pictures[0].convert("L"),) * 2, (pictures[1].convert("L"),) * 2))


def test_the_splits_of_a_dict_are_what_is_learned_from_and_what_is_measured_on(tmp_path):
    picture(tmp_path / "photos" / "a" / "1.png", 10)
    pairs = [(torch.full((3, 4, 6), place / 20), place % 2) for place in range(5)]
    arrays = (torch.rand(6, 3, 4, 6), torch.arange(6) % 2)
    for part in (pairs, arrays, examples.read(arrays), tmp_path / "photos", str(tmp_path / "photos")):
        for splits in ({"train": part, "validation": pairs[:2]}, {"test": pairs[:2], "train": part}):
            assert torch.equal(examples.read(splits).inputs[:], examples.read(part).inputs[:])
            assert examples.find_held_out(splits) == pairs[:2]
        assert examples.find_held_out({"train": part}) is None
    assert examples.find_held_out({"train": pairs, "eval": pairs[:1], "test": pairs[:2]}) == pairs[:2]
    for name in ("eval", "evaluation", "testing"):
        assert examples.find_held_out({"train": pairs, name: pairs[:2]}) == pairs[:2]
    assert examples.find_held_out({"train": pairs, "validation": None, "test": pairs[:2]}) == pairs[:2]
    for splits in ({"test": pairs}, {"train": None, "test": pairs}):
        with pytest.raises(DataError, match=r"the data has the splits .*test and no train: give one of them"):
            examples.read(splits)
    with pytest.raises(DataError, match="data is a dict of other: parts are called train"):
        examples.read({"other": pairs})
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef data():\n    part = (torch.rand(4, 2), [0, 1] * 2)\n"
        "    return {'train': part, 'test': part}\n"
    )
    (note,) = examples.read(f"{tmp_path}/mine.py:data").notes
    assert note.endswith("mine.py:data gives train, test, of which train is read: give held-out data by itself")


def test_boxes_and_labels_come_in_pairs():
    target = {"boxes": torch.zeros(2, 4), "labels": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(DataError, match=r"boxes of shape \[2, 4\] and 1 labels for input 0"):
        examples.Examples(torch.zeros(1, 3, 4, 4), None, (target,))


def test_images_of_two_sizes_are_refused(tmp_path):
    picture(tmp_path / "a" / "1.png", 0)
    picture(tmp_path / "a" / "2.png", 0, size=(5, 4))
    data = examples.read(tmp_path)
    with pytest.raises(DataError, match=r"2\.png is 5x4, .*1\.png is 6x4: bring all images to one size"):
        data.inputs[:]


def test_split_is_disjoint_complete_and_repeats():
    data = Examples(torch.arange(20.0)[:, None], torch.arange(20))
    train, held = data.split(0.25, seed=3)
    assert (len(train), len(held)) == (15, 5)
    assert sorted([*train.labels.tolist(), *held.labels.tolist()]) == list(range(20))
    assert data.split(0.25, seed=3)[1].labels.tolist() == held.labels.tolist()
    assert data.split(0.25, seed=4)[1].labels.tolist() != held.labels.tolist()
    with pytest.raises(DataError, match="too few to hold any out"):
        data.take([0]).split()


def test_batches_are_a_function_of_seed_and_number():
    data = Examples(torch.arange(10.0)[:, None], torch.arange(10))
    feed = examples.batches(data, batch=4, seed=1)
    assert len(feed) == 2
    assert examples.batches(data, batch=4, seed=1)[5]["labels"].tolist() == feed[5]["labels"].tolist()
    first = [label for batch in feed for label in batch["labels"].tolist()]
    assert len(set(first)) == 8
    assert first != [label for batch in (feed[2], feed[3]) for label in batch["labels"].tolist()]
    assert feed[0]["inputs"].shape == (4, 1)
    assert len(examples.batches(data, batch=64)[3]["labels"]) == 10  # all there is
    assert feed[5]["labels"].tolist() == feed.places(5).tolist()
    with pytest.raises(IndexError):
        feed[-1]


def test_augmentation_is_drawn_anew_and_repeats():
    data = Examples(torch.zeros(8, 2))

    def noise(inputs, draw):
        return inputs + torch.from_numpy(draw.random(inputs.shape, np.float32))

    feed = examples.batches(data, batch=4, augment=noise)
    assert not torch.equal(feed[0]["inputs"], feed[1]["inputs"])
    assert torch.equal(feed[3]["inputs"], examples.batches(data, batch=4, augment=noise)[3]["inputs"])


def test_a_limit_holds_for_every_pass_over_whatever_is_taken():
    data = Examples(torch.arange(6.0)[:, None], torch.tensor([0, 1] * 3))
    assert examples.limit(data, None) is data
    limited = examples.limit(data, 2)
    assert limited.digest == data.digest
    assert [len(part["inputs"]) for part in limited.in_order(256)] == [2, 2, 2]
    assert [len(part["inputs"]) for part in limited.in_order(1)] == [1] * 6
    train, _ = limited.split(seed=0)
    assert len(next(iter(train.in_order(256)))["inputs"]) == 2
    assert len(next(iter(examples.limit_as(data, train).in_order(256)))["inputs"]) == 2
    assert examples.limit_as(data, data) is data


def test_batches_in_order_hold_each_example_once():
    data = Examples(torch.arange(5.0)[:, None], labels=torch.arange(5))
    parts = list(data.in_order(2))
    assert [part["labels"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part["inputs"] for part in parts]), data.inputs)


def coco_folder(root):
    """Two images of unequal sizes with a box each."""
    for name, size in (("one.jpg", (60, 40)), ("two.jpg", (30, 50))):
        picture(root / name, 9, size)
    rows = [{"id": n, "image_id": n, "category_id": 17, "bbox": [2, 2, 12, 12]} for n in (1, 2)]
    images = [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}]
    data = {"images": images, "annotations": rows, "categories": [{"id": 17, "name": "cat"}]}
    (root / "labels.json").write_text(json.dumps(data))
    return root


def test_images_with_boxes_are_letterboxed_when_they_are_asked_for(tmp_path):
    root = coco_folder(tmp_path / "set")
    whole = examples.read(root)
    with pytest.raises(DataError, match=r"two\.jpg is 30x50, one\.jpg is 60x40: give a size .* such as --size 640"):
        examples.letterbox(whole)
    data = examples.with_transform(whole, size="48x64")
    assert examples.letterbox(data, (99, 99)) is data
    assert (data.ids, data.classes, data.name) == ((17,), ("cat",), "set")
    assert data.inputs.shape == (2, 3, 48, 64)
    assert data.targets[1]["boxes"][0].tolist() == pytest.approx([19.5, 2, 31, 13.5], abs=0.6)
    other, file = (examples.with_transform(examples.read(one), size=64) for one in (root, root / "labels.json"))
    assert data.digest != other.digest == file.digest
    with pytest.raises(InputError, match=r"size=1x28x28: images with boxes have three channels"):
        examples.with_transform(whole, size="1x28x28")
    with pytest.raises(InputError, match=r"transform=imagenet: images with boxes .* take none, flip, jitter, mosaic"):
        examples.with_transform(whole, "imagenet")
    with pytest.raises(InputError, match=r"size=64: images with boxes in arrays are taken as they are"):
        examples.with_transform(STORED["boxes"], size=64)
    assert examples.with_transform(STORED["boxes"], "flip").augment is not None


def test_training_sees_images_with_boxes_augmented_and_measuring_does_not(tmp_path):
    root = coco_folder(tmp_path / "set")
    plain, moved = (examples.with_transform(examples.read(root), name, 64) for name in (None, "mosaic"))
    feeds = [examples.batches(data, batch=2, seed=3) for data in (plain, moved)]
    assert not torch.equal(feeds[0][0]["inputs"], feeds[1][0]["inputs"])
    assert torch.equal(feeds[1][0]["inputs"], examples.batches(moved, batch=2, seed=3)[0]["inputs"])
    assert not torch.equal(feeds[1][0]["inputs"], feeds[1][1]["inputs"])
    first, same = (next(iter(data.in_order(2))) for data in (plain, moved))
    assert torch.equal(first["inputs"], same["inputs"])
    assert plain.digest == moved.digest


@pytest.mark.parametrize("seed", range(4))
def test_what_validates_has_examples_of_each_class(seed):
    rare = Examples(torch.arange(40.0)[:, None], torch.tensor([0] * 36 + [1] * 4), stratified=True)
    made = examples.batches(rare, batch=8, seed=seed)
    rest, held = made.hold_out(0.1)
    assert sorted(held.data.labels.tolist()) == [0] * 4 + [1]
    assert sorted([*rest.data.inputs[:, 0].tolist(), *held.data.inputs[:, 0].tolist()]) == list(range(40))
    for places, part in zip(made.places_apart(0.1), (rest, held), strict=True):
        assert torch.equal(rare.take(places).inputs, part.data.inputs)


def test_what_validates_stays_near_its_share_where_classes_are_many():
    pairs = Examples(torch.arange(40.0)[:, None], torch.arange(40) // 2, stratified=True)
    rest, held = examples.batches(pairs, batch=8).hold_out(0.1)
    assert (len(rest.data), len(held.data)) == (36, 4)
