"""A training set is opened from what a user has, and saved as an index."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pictures import class_folder, mask_folder
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, DataWarning
from secateur.runs.backends import dataset
from secateur.runs.backends.dataset import Datasets
from secateur.subjects import ExampleSet
from secateur.vocabulary import Selection


def test_a_set_is_opened_cut_and_saved_as_an_index_which_is_opened_again(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.zeros((6, 2), np.float32), labels=np.arange(6) % 2)
    whole = Datasets().open(tmp_path / "data.npz")
    small, _ = whole.cut(Selection({"examples": np.arange(6) < 2}))
    assert Datasets().open(small) is small
    assert Datasets().digest(small) == Datasets().digest(whole) == whole.source.digest
    (tmp_path / "index").mkdir()
    Datasets().save(small, tmp_path / "index")
    assert Datasets().saved_in(tmp_path / "index")
    assert not Datasets().saved_in(tmp_path)
    assert len(ExampleSet.load(dataset.read_rows(tmp_path / "data.npz"), tmp_path / "index")) == 2


def test_of_a_dict_its_train_split_or_its_rows_are_read():
    columns = {"text": ["one", "two"]}
    for data in (columns, {"train": columns, "test": {"text": ["three"]}}):
        assert list(dataset.read_rows(data, held=True).texts) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "texts"),
    [("rows.txt", True), ("rows.jsonl", True), ("rows.csv", False), ("data.npz", False), ("hub:owner/name", True),
     ("net.py:build", False), (["a text"], True), (iter(["a text"]), True)],
)  # fmt: skip
def test_what_holds_texts_is_told_by_its_name(name, texts):
    assert dataset.holds_texts(name, "text") is texts
    assert dataset.is_stream(name) is (not isinstance(name, str | list))


@pytest.mark.parametrize("note", ["notes.txt", "metadata.jsonl"])
def test_notes_beside_images_are_no_texts_to_prune(tmp_path, note):
    class_folder(tmp_path, 6)
    for kind in "ab":
        (tmp_path / kind / note).write_text('{"text": "what a camera said"}\n', "utf-8")
    with pytest.warns(DataWarning, match=f"{tmp_path.name} holds 6 images and 2 texts: the images are read"):
        data = dataset.read_rows(tmp_path)
    assert isinstance(data, Examples)
    assert len(data) == 6


def test_texts_with_fewer_pictures_beside_them_are_texts(tmp_path):
    class_folder(tmp_path, 2)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a text\n", "utf-8")
    assert dataset.holds_texts(tmp_path, "text")


def test_names_of_classes_beside_masks_are_no_texts_to_prune(tmp_path):
    mask_folder(tmp_path, 4)
    data = dataset.read_rows(tmp_path)
    assert isinstance(data, Examples)
    assert data.masks is not None


class Once:
    """It knows its length, and each of its passes goes on where the last one stopped, as a bar around a generator."""

    def __init__(self, rows):
        self.rows, self.size = iter(rows), len(rows)

    def __len__(self):
        return self.size

    def __iter__(self):
        return self.rows


@pytest.mark.parametrize("held", [False, True])
def test_what_is_passed_over_once_is_read_from_its_first_example_on(held):
    assert len(dataset.read_rows(Once(["one two", "three", "four"]), held=held)) == 3
    pairs = [(np.full((8, 8, 3), number, np.uint8), number % 2) for number in range(4)]
    read = dataset.read_rows(Once(pairs), held=held)
    assert read.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "chat", [{"prompt": "one", "completion": "two"}, {"messages": [{"role": "user", "content": "one"}]}]
)
@pytest.mark.parametrize("shown", [False, True])
def test_chats_of_datasets_are_texts_as_those_of_lists_are(chat, shown):
    datasets = pytest.importorskip("datasets")
    image = {"image": Image.new("RGB", (8, 8))} if shown else {}
    table = datasets.Dataset.from_list([{**chat, **image}] * 3)
    for source in (table, table.to_iterable_dataset()):
        read = dataset.read_rows(source, held=True)
        assert isinstance(read, Corpus)
        assert len(read.texts) == 3


def test_strings_without_a_dimension_are_refused_in_a_line():
    with pytest.raises(DataError, match="a single value, one: give an array with a row for each example"):
        dataset.read_rows(np.array("one"))
