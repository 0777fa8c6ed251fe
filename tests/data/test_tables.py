"""Tables: each form they come in, classes, digests of content, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from secateur.data import tables
from secateur.data.shelf import Texts
from secateur.errors import DataError

ROWS = {"text": ["a cat", "a dog", "A  cat!", "a dog"], "label": ["pet", "pet", "wild", "pet"], "page": [1, 2, 3, 4]}


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_dict(ROWS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_form_is_the_same_table(rows, tmp_path):
    whole = tables.read(rows)
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "split"))
    rows.to_csv(str(tmp_path / "rows.csv"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    rows.to_json(str(tmp_path / "rows.jsonl"))
    for name in ("saved", "split", "rows.csv", "rows.parquet", "rows.jsonl"):
        assert tables.is_table(tmp_path / name)
        read = tables.read(tmp_path / name)
        assert read.digest == whole.digest
        assert read.name == name
        assert list(read.texts) == ROWS["text"]
    assert tables.is_table(rows)
    assert not tables.is_table(tmp_path)
    assert not tables.is_table(["a text"])


def test_classes_are_named_or_counted(rows):
    table = tables.read(rows)
    assert (table.labels, table.classes) == ([0, 0, 1, 0], ("pet", "wild"))
    assert (tables.read(rows, label="page").labels, tables.read(rows, label="page").classes) == ([1, 2, 3, 4], ())
    assert tables.read(rows.remove_columns("label")).labels is None
    kinds = datasets.ClassLabel(names=["wild", "pet", "none"])
    typed = tables.read(rows.cast_column("label", kinds))
    assert (typed.labels, typed.classes) == ([1, 1, 0, 1], ("wild", "pet", "none"))


def test_what_is_taken_is_rows_as_they_were(rows):
    part = tables.read(rows).take([3, 0])
    assert part.rows[0] == {"text": "a dog", "label": "pet", "page": 4}
    assert part.labels == [0, 0]
    assert part.digest != tables.read(rows).digest
    assert part.digest == tables.read(datasets.Dataset.from_dict({k: [v[3], v[0]] for k, v in ROWS.items()})).digest


def test_costs_and_keys(rows):
    table = tables.read(rows)
    assert table.costs()["words"].tolist() == [2, 2, 2, 2]
    assert table.costs()["bytes"][0] == len('{"label": "pet", "page": 1, "text": "a cat"}')
    assert len(np.unique(table.keys())) == 3
    assert len(np.unique(table.keys(normalised=True))) == 2
    bare = tables.read(rows, text="none")
    assert bare.texts is None
    assert set(bare.costs()) == {"bytes"}
    assert len(np.unique(bare.keys())) == 4
    with pytest.raises(DataError, match="has no column 'none'"):
        bare.keys(normalised=True)


def test_what_can_not_be_used_is_refused_in_a_line(rows, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    (tmp_path / "rows.xlsx").write_text("?")
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "untrained"))
    for place, words in (
        (tmp_path / "none.csv", "there is no table at"),
        (tmp_path / "bad.jsonl", "can't be read as a table"),
        (tmp_path / "rows.xlsx", "is no table: give a folder"),
        (tmp_path / "untrained", "has the splits test and no train"),
        (rows.select([]), "holds no row"),
        (rows.to_iterable_dataset(), "is of IterableDataset"),
    ):
        with pytest.raises(DataError, match=words) as refused:
            tables.read(place)
        assert "\n" not in str(refused.value)


def test_the_library_prints_nothing_of_a_file_that_can_not_be_read(tmp_path, capfd):
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    (tmp_path / "ragged.csv").write_text("text,label\none,1\ntwo,2,3,4\n")
    (tmp_path / "fine.csv").write_text("text,label\none,1\n")
    with pytest.raises(DataError, match=r"ragged\.csv can't be read as a table: "):
        tables.read(tmp_path / "ragged.csv")
    assert len(tables.read(tmp_path / "fine.csv")) == 1
    told = capfd.readouterr()
    assert told.out + told.err == ""
    assert not datasets.are_progress_bars_disabled(), "as it was"
    assert datasets.logging.get_verbosity() == level


def test_its_texts_are_a_corpus_that_is_read_from_the_table(rows, tmp_path):
    table = tables.read(rows.select([3, 0, 1, 2]))
    held, lazy = table.corpus(), table.corpus(tmp_path)
    assert isinstance(lazy.texts, Texts)
    assert held.texts == list(lazy.texts) == ["a dog", "a cat", "a dog", "A  cat!"]
    assert lazy.texts[1:3] == ["a cat", "a dog"]
    assert list(lazy.take([3, 0]).texts) == ["A  cat!", "a dog"]
    assert lazy.digest == held.digest == table.digest
    assert lazy.labels == held.labels == table.labels
    assert lazy.classes == ("pet", "wild")


def test_rows_without_a_text_are_told():
    some = datasets.Dataset.from_dict({"text": ["one", None], "page": [1, 2]})
    with pytest.raises(DataError, match=r"table has None and no text in 'text' of row 2: drop the row"):
        tables.read(some).corpus()
    with pytest.raises(DataError, match=r"has 1 and no text in 'page' of row 1"):
        tables.read(some, text="page").corpus()
    with pytest.raises(DataError, match=r"has no column 'body' for a model to read: name it with --text"):
        tables.read(some, text="body").corpus()
