"""Folders of images with classes, parts of data sets, and names of the Hub."""

from __future__ import annotations

import datasets
import pytest
from PIL import Image

from image_data import check, shards, table
from pictures import class_folder, draw
from secateur.data import examples, image_sources
from secateur.errors import DataError


def test_folders_of_train_and_val(tmp_path):
    class_folder(tmp_path / "all" / "train", 6)
    class_folder(tmp_path / "all" / "val", 2)
    check(examples.read(tmp_path / "all"), classes=("a", "b"))
    assert image_sources.find_held_out(tmp_path / "all") == tmp_path / "all" / "val"
    class_folder(tmp_path / "vehicles" / "train" / "..", 4)
    assert image_sources.find_held_out(tmp_path / "vehicles") is None, "classes may be called so"


def test_images_lie_deeper_in_the_folder_of_their_class(tmp_path):
    draw(tmp_path / "a" / "x" / "1.png")
    draw(tmp_path / "b" / "2.png")
    draw(tmp_path / ".hidden" / "3.png")
    data = examples.read(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert data.classes == ("a", "b")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("training", "testing"), "holds testing, training, parts of a data set and no classes: say --data .*training "
                                  "--held-out .*testing"),
        (("train",), "holds train, parts of a data set and no classes: say --data .*train"),
        (("flowers",), "holds the one folder flowers, with folders of images: say --data .*flowers"),
    ],
)  # fmt: skip
def test_parts_of_a_data_set_are_not_read_as_classes(tmp_path, names, said):
    for name in names:
        class_folder(tmp_path / name, 4)
    with pytest.raises(DataError, match=said):
        examples.read(tmp_path)
    assert examples.read(tmp_path / names[0]).classes == ("a", "b")


def test_classes_may_be_called_as_parts(tmp_path):
    draw(tmp_path / "train" / "1.png")
    draw(tmp_path / "test" / "2.png")
    assert examples.read(tmp_path).classes == ("test", "train")


def test_images_whose_form_is_not_read_are_told(tmp_path):
    class_folder(tmp_path, 4)
    assert not examples.read(tmp_path).notes
    (tmp_path / "a" / "phone.HEIC").write_bytes(b"x")
    (note,) = examples.read(tmp_path).notes
    assert note == f"1 images of {tmp_path.name} are left out, for their form is not read: phone.HEIC"


def test_a_class_without_images_is_told(tmp_path):
    class_folder(tmp_path, 4)
    (tmp_path / "c").mkdir()
    data = examples.read(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.notes == (f"1 of 3 folders of {tmp_path.name} hold no image: c",)


def test_images_of_one_folder_are_said_to_be_of_one_class(tmp_path):
    draw(tmp_path / "photos" / "1.png")
    (note,) = examples.read(tmp_path).notes
    assert note == f"all images of {tmp_path.name} are of one class, for classes are its folders: photos"


def test_images_without_folders_are_refused(tmp_path):
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match="holds no images in folders named by class"):
        examples.read(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "tar"])
def test_parts_that_files_are_named_for_are_never_merged(tmp_path, ending):
    folder = tmp_path / "data"
    shards(folder)
    if ending == "parquet":
        rows = table(tmp_path / "x")
        for name, file in (("train-00000-of-00001", "data-000.tar"), ("test-00000-of-00001", "data-001.tar")):
            rows.select(range(3)).to_parquet(folder / f"{name}.parquet")
            (folder / file).unlink()
    else:
        (folder / "data-000.tar").rename(folder / "train-000.tar")
        (folder / "data-001.tar").rename(folder / "test-000.tar")
    held = image_sources.find_held_out(folder)
    assert str(held) == f"{folder}:test"
    for source, part in ((folder, "train"), (held, "test"), (f"{folder}:test", "test")):
        data = examples.read(source)
        assert len(data) == 3
        assert data.notes == (f"data holds files of several parts by their names, train (1), test (1): {part} is read",)
    assert image_sources.find_held_out(held) is None
    with pytest.raises(DataError, match="no files of a part validation"):
        examples.read(f"{folder}:val")
    (alone,) = folder.glob(f"test*.{ending}")
    assert len(examples.read(alone)) == 3, "a file that was named is read"


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        if name == "nobody/nothing":
            raise ConnectionError("offline")
        return table(tmp_path / str(len(asked)))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    check(examples.read("owner/flowers"), classes=("a", "b"))
    check(examples.read("hub:owner/flowers:plain:test"), classes=("a", "b"))
    assert asked == [("owner/flowers", None, "train"), ("owner/flowers", "plain", "test")]
    with pytest.raises(DataError, match="there is no data at nobody/nothing, nor could it be loaded from the Hub"):
        examples.read("nobody/nothing")


def test_the_folder_above_annotations_of_voc_is_named(tmp_path):
    voc = tmp_path / "voc" / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages"):
        (voc / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(voc / "JPEGImages" / "1.png")
    for place in (tmp_path / "voc", tmp_path / "voc" / "VOCdevkit"):
        with pytest.raises(
            DataError, match=r"holds annotations of Pascal VOC in .*VOC2007, and no classes: say --data"
        ):
            image_sources.read_folder(place)


def test_a_column_may_be_called_as_a_part_is():
    assert not image_sources.is_splits({"image": [1], "label": [0], "test": [2]})
    for source in ({"train": 1}, {"test": 1, "val": 2}, {"train": 1, "extra": 2}):
        assert image_sources.is_splits(source)


def test_shards_that_are_packed_are_to_be_unpacked(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no images in folders .*: unpack x\.tar\.gz, or give path/class"):
        examples.read(tmp_path)
