"""WebDataset shards."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from PIL import Image

from image_data import check, shards
from secateur.data import examples
from secateur.errors import DataError, DataWarning


@pytest.mark.parametrize("json_labels", [False, True])
def test_shards(tmp_path, json_labels):
    shards(tmp_path, json_labels)
    classes = ("a", "b") if json_labels else ()
    for source in (tmp_path, f"{tmp_path}/data-*.tar", f"{tmp_path}/data-{{000..001}}.tar"):
        check(examples.read(source), classes=classes)
    assert len(examples.read(tmp_path / "data-000.tar")) == 3
    with pytest.raises(DataError, match=r"there is no shard .*data-002\.tar"):
        examples.read(f"{tmp_path}/data-{{000..002}}.tar")
    (tmp_path / "data-000.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"data-000\.tar can't be read as \.tar"):
        examples.read(tmp_path)


def picture(level=0):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def test_a_shard_that_was_cut_off_anywhere_is_refused(tmp_path):
    file = pack(tmp_path / "x.tar", {f"{n}.{kind}": picture() if kind == "png" else b"1" for n in range(3)
                                     for kind in ("cls", "png")})  # fmt: skip
    whole = file.read_bytes()
    ends = 6 * 1024
    for cut in (4 * 1024, 4 * 1024 + 100, 4 * 1024 + 512, 4 * 1024 + 513, ends, ends + 100):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"x\.tar .*(cut off|unexpected end of data).*whole"):
            examples.read(file)
    file.write_bytes(whole[:4096] + b"x" * 4096)
    with pytest.raises(DataError, match="cut off or damaged"):
        examples.read(file)
    for packed in (gzip.compress(whole), gzip.compress(whole)[:100]):
        file.write_bytes(packed)
        with pytest.raises(DataError, match="give it uncompressed and whole"):
            examples.read(file)
    file.write_bytes(whole[: ends + 512])
    assert len(examples.read(file)) == 3


def test_a_label_of_shards_that_is_named_wins_and_is_there(tmp_path):
    members = {}
    for place in range(4):
        members |= {
            f"{place}.cls": b"7",
            f"{place}.json": b'{"fine": %d, "class": 3}' % place,
            f"{place}.png": picture(),
        }
    file = pack(tmp_path / "x.tar", members)
    assert examples.read(file).labels.tolist() == [7] * 4
    assert examples.read(file, label="fine").labels.tolist() == [0, 1, 2, 3]
    assert examples.read(file, label="cls").labels.tolist() == [7] * 4
    assert examples.read(file, label="").labels is None
    with pytest.raises(DataError, match=r"x\.tar:0 has no label 'klass': it has .*class.*fine"):
        examples.read(file, label="klass")
    alone = pack(tmp_path / "y.tar", {name: content for name, content in members.items() if "cls" not in name})
    with pytest.warns(
        DataWarning, match="has no label in .cls, .json or .txt, and is read without classes; it has fine, class: n"
    ):
        assert examples.read(alone).labels is None


def test_of_several_images_of_one_name_the_plain_one_is_read(tmp_path):
    members = {}
    for place in range(3):
        members |= {f"{place}.cls": b"1", f"{place}.depth.png": picture(0), f"{place}.png": picture(255)}
    data = examples.read(pack(tmp_path / "x.tar", members))
    assert float(examples.with_transform(data, "none").inputs[:].min()) == 1
    alone = pack(tmp_path / "y.tar", {name: content for name, content in members.items() if "depth" in name})
    assert len(examples.read(alone)) == 3


def test_names_with_dots_that_make_one_example_of_many_are_refused(tmp_path):
    file = pack(tmp_path / "x.tar", {f"img.{place:03}.png": picture() for place in range(5)})
    with pytest.raises(
        DataError, match=r"5 images of the one name img .*: for WebDataset a name ends at its first dot"
    ):
        examples.read(file)


def numbered(*labels, ending="cls"):
    return {name: content for place, label in enumerate(labels)
            for name, content in ((f"{place}.png", picture(place)), (f"{place}.{ending}", label))}  # fmt: skip


def test_numbers_in_files_of_classes_are_numbers_with_a_sign_or_a_point_too(tmp_path):
    for labels in ([b"-1", b"0", b"10", b"2"], [b"-1.0", b"0.0", b"10.", b"2.0"]):
        data = examples.read(pack(tmp_path / "x.tar", numbered(*labels)))
        assert data.labels.tolist() == [-1, 0, 10, 2]
        assert data.classes == ()


def test_examples_without_an_image_that_is_read_are_told_and_their_masks_are_no_images(tmp_path):
    more = {"7.heic": b"x", "7.MASK.png": picture(9), "7.cls": b"1", "8.npy": b"x", "8.cls": b"1"}
    data = examples.read(pack(tmp_path / "x.tar", numbered(b"0") | more))
    assert data.labels.tolist() == [0]
    assert data.notes == ("2 examples of x.tar are left out, without an image that is read: 7.heic, 8.npy",)


def test_hidden_files_of_a_shard_are_passed_over(tmp_path):
    hidden = {"./._0.png": b"x", "./0.PNG": picture(), "./._0.cls": b"x", "./0.CLS": b"5", "./.DS_Store": b"x"}
    assert examples.read(pack(tmp_path / "x.tar", hidden)).labels.tolist() == [5]


def test_one_name_twice_and_two_shards_in_one_are_refused(tmp_path):
    file = pack(tmp_path / "x.tar", numbered(b"0"))
    (tmp_path / "two.tar").write_bytes(file.read_bytes() * 2)
    with pytest.raises(DataError, match=r"two\.tar goes on after its end, as two \.tar files in one do: give each"):
        examples.read(tmp_path / "two.tar")
    with tarfile.open(file, "a") as tar:
        for name in ("1.png", "1.cls", "1.png"):
            info = tarfile.TarInfo(name)
            tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match=r"x\.tar has the file 1\.png twice: give each example a name of its own"):
        examples.read(file)


def test_files_of_one_name_in_two_folders_are_two_examples(tmp_path):
    members = {"a/0.png": picture(1), "b/0.png": picture(2), "b/0.cls": b"1", "a/0.cls": b"0"}
    with pytest.raises(DataError, match=r"image 1 of x\.tar has no label in 'cls'"):
        examples.read(pack(tmp_path / "x.tar", members))


def test_where_a_class_may_stand_is_said(tmp_path):
    other = pack(tmp_path / "x.tar", numbered(b"0", b"1", ending="index"))
    with pytest.warns(DataWarning, match=r"x\.tar has no label in \.cls, .*; it has index: name that of the classes"):
        assert examples.read(other).labels is None
    assert examples.read(other, label="index").labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"no label 'png': it has index"):  # an image is none
        examples.read(other, label="png")
    assert examples.read(pack(tmp_path / "bare.tar", {"cat/0.png": picture(1)}), label="").labels is None
    folders = pack(tmp_path / "y.tar", {"cat/0.png": picture(1), "dog/0.png": picture(2)})
    with pytest.warns(DataWarning, match="images lie in folders such as cat: unpack them"):
        examples.read(folders)
    wrong = pack(tmp_path / "z.tar", {"0.png": picture(1), "0.json": b'{"label": [1, 2]}'})
    with pytest.raises(DataError, match=r"z\.tar has the label \[1, 2\] in 'label', more than one"):
        examples.read(wrong)
