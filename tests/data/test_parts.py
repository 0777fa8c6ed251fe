"""Parts of data sets by the names of their files."""

from pathlib import Path

import pytest

from pictures import draw
from secateur.data import image_sources, masks, parts
from secateur.errors import DataError


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("train.jsonl", "train"),
        ("train2017.tar", "train"),
        ("imagenet1k-validation-00.tar", "validation"),
        ("val-000.tar", "validation"),
        ("dev.jsonl", "validation"),
        ("valid/x.jsonl", "validation"),
        ("Test/train.jsonl", "test"),
        ("squad_test.jsonl", "test"),
        ("training.jsonl", None),
        ("latest.jsonl", None),
        ("tests/x.txt", None),
        ("data-000.tar", None),
        ("val_0.tar", "validation"),
        ("my_data_test.jsonl", "test"),
        ("wiki.train.tokens", "train"),
        ("imagenet-val-00-of-64.tar.gz", "validation"),
        ("train-clean.jsonl", "train"),
        ("how to train a dog.txt", None),
        ("dev diary.txt", None),
        ("a talk-test.txt", None),
        ("how-to-train-a-dog.txt", None),
        ("test\u00e9.txt", None),
    ],
)
def test_a_part_is_a_word_at_an_end_of_the_name_or_a_folder(name, part):
    assert parts.part_of(Path(name)) == part


def test_parts_are_told_apart_beside_train_alone():
    root = Path("test")
    train, other, val, test = files = [root / name for name in ("train.txt", "more.txt", "dev.txt", "test.txt")]
    assert parts.tell_apart(files) == {"train": [train, other], "validation": [val], "test": [test]}
    assert parts.find_held_out(root, files) == Path("test:validation")
    assert parts.find_held_out(root, [train, test]) == Path("test:test")
    assert parts.find_held_out(Path("test:train"), files) is None
    for alike in ([other, test], [train, other], [test], []):
        assert parts.tell_apart(alike) == {}
        assert parts.find_held_out(root, alike) is None


def test_the_part_that_is_read_is_told():
    files = [Path("x/train-0.txt"), Path("x/train-1.txt"), Path("x/test.txt")]
    note = "x holds files of several parts by their names, train (2), test (1): train is read"
    assert parts.choose(Path("x"), files) == (files[:2], (note,))
    assert parts.choose(Path("x:test"), files)[0] == files[2:]
    assert parts.choose(Path("x"), files[:2]) == (files[:2], ())
    with pytest.raises(DataError, match="x holds no files of a part validation: it has train, test; give those"):
        parts.choose(Path("x:dev"), files)


def test_a_part_is_asked_for_after_a_colon(tmp_path):
    assert parts.split_name(tmp_path / "data:val") == (tmp_path / "data", "validation")
    assert parts.split_name(tmp_path / "data:extra") == (tmp_path / "data:extra", None)
    assert parts.split_name(Path(".:test")) == (Path(), "test")
    (tmp_path / "a:test").mkdir()
    assert parts.split_name(tmp_path / "a:test") == (tmp_path / "a:test", None)


@pytest.mark.parametrize("name", parts.HELD_OUT)
def test_parts_to_measure_on_are_called_alike_wherever_they_are_looked_for(tmp_path, name):
    if name not in ("eval", "evaluation", "testing"):  # of files these may be words as any
        assert parts.part_of(Path(name, "x.jsonl")) not in (None, "train")
        assert parts.part_of(Path(f"{name}.jsonl")) == parts.part_of(Path(f"imagenet-{name}-00.tar"))
    for part in ("train", name):
        draw(tmp_path / "classes" / part / "a" / "1.png")
        draw(tmp_path / "pixels" / part / "images" / "1.png")
        draw(tmp_path / "pixels" / part / "masks" / "1.png", mode="L")
    assert image_sources.find_held_out(tmp_path / "classes") == tmp_path / "classes" / name
    assert masks.find_held_out(tmp_path / "pixels") == tmp_path / "pixels" / name
