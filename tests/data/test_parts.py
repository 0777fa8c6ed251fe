"""Parts of data sets by the names of their files."""

from pathlib import Path

import pytest

from secateur.data import parts


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
    ],
)
def test_a_part_is_a_whole_word_of_the_name_or_a_folder(name, part):
    assert parts.part_of(Path(name)) == part


def test_parts_are_told_apart_beside_train_alone():
    root = Path("test")
    train, other, val, test = (root / name for name in ("train.txt", "more.txt", "dev.txt", "test.txt"))
    found = parts.tell_apart([train, other, val, test], root)
    assert found == {"train": [train, other], "validation": [val], "test": [test]}
    assert parts.find_held_out(found) == "validation"
    assert parts.find_held_out(parts.tell_apart([train, test], root)) == "test"
    assert parts.tell_apart([other, test], root) == {}
    assert parts.tell_apart([train, other], root) == {}
    assert parts.find_held_out({}) is None


def test_a_part_is_asked_for_after_a_colon(tmp_path):
    assert parts.split_name(tmp_path / "data:val") == (tmp_path / "data", "validation")
    assert parts.split_name(tmp_path / "data:extra") == (tmp_path / "data:extra", None)
    (tmp_path / "a:test").mkdir()
    assert parts.split_name(tmp_path / "a:test") == (tmp_path / "a:test", None)
