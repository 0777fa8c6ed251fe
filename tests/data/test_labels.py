"""Labels: classes, numbers, or a line that says why they are neither; the same of every reader."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal

import datasets
import numpy as np
import pytest

from secateur.data import tables, texts
from secateur.data.labels import Labels
from secateur.data.survey import survey
from secateur.errors import DataError

NAN = float("nan")
PARTLY = "{noun} 3 of {name} has no label in 'kind', as 2 of 5 have none: label them or drop them"
NESTED = (
    "{noun} 2 of {name} has the label {shown} in 'kind', more than one value: give one class for each, a name or a "
    "whole number"
)
BROKEN = "{noun} 2 of {name} has the label {shown} in 'kind': classes are names or whole numbers, so give such labels"
FLAWED = {
    "partly": (["a", "b", None, "a", None], PARTLY),
    "numbers": ([1, 2, None, 2, None], PARTLY),
    "nested": ([["B"], ["B", "O"], ["O"], ["O"], ["B", "I"]], NESTED.replace("2", "1").replace("{shown}", "['B']")),
    "real": ([1.0, 0.37, 2.5, 0.37, 3.0], BROKEN.replace("{shown}", "0.37")),
}


@pytest.mark.parametrize(
    ("given", "classes", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        ([3, 1, 3], [3, 1, 3], ()),
        ([3.0, 1, np.int64(3)], [3, 1, 3], ()),
        ([Decimal(2), True], [2, 1], ()),
        (["x", 0.5], [1, 0], ("0.5", "x")),
        ([10**20, 1], [1, 0], ("1", "100000000000000000000")),
        ([None, NAN], None, ()),
    ],
)
def test_whole_numbers_are_classes_and_what_is_no_number_is_a_name(given, classes, names):
    found = Labels(given).end("few", "kind")
    assert (found.names, found.numbers, found.flaw) == (names, None, "")
    assert found.classes is None if not classes else found.classes.tolist() == classes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", NAN, None, "c"], PARTLY),
        ([0.5, 1, NAN, 2, None], PARTLY),
        (["a", {"id": 1}, None], NESTED.replace("{shown}", "{'id': 1}")),
        (["a", np.arange(2), "b"], NESTED.replace("{shown}", "array([0, 1])")),
        (["a", ["a long name"] * 9, "b"], NESTED.replace("{shown}", str(["a long name"] * 9)[:40] + "...")),
        ([1, float("inf")], BROKEN.replace("{shown}", "inf")),
        ([1, 1e300], BROKEN.replace("{shown}", "1e+300")),
        ([1, Decimal("0.5")], BROKEN.replace("{shown}", "Decimal('0.5')")),
    ],
)
def test_what_is_wrong_is_told_in_a_line(given, message):
    found = Labels(given).end("few", "kind")
    assert found.flaw == message.replace("{noun}", "text").replace("{name}", "few")
    assert (found.classes, found.names) == (None, ())
    assert (found.numbers is None) == ("whole numbers, so" not in message)


@pytest.fixture
def every(tmp_path, monkeypatch):
    """What each reader makes of labels."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def of(labels):
        rows = [{"text": f"text {number}", "kind": label} for number, label in enumerate(labels)]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        table = tables.read(datasets.Dataset.from_list(rows), label="kind")
        return {
            "read": texts.read(path, label="kind"),
            "list": texts.read(rows, label="kind"),
            "survey": survey(path, label="kind"),
            "shelf": survey(path, label="kind", shelf=tmp_path),
            "table": table,
            "of a table": table.corpus(),
        }

    return of


@pytest.mark.parametrize("case", FLAWED)
def test_every_reader_tells_what_is_wrong(every, case):
    labels, message = FLAWED[case]
    found = every(labels)
    for reader, one in found.items():
        noun, name = ("row", "table") if "table" in reader else ("text", one.name)
        assert one.flaw == message.replace("{noun}", noun).replace("{name}", name), reader
        assert (one.labels, one.classes) == (None, ())
        assert len(one.take([0, 1])) == 2
    for reader in ("read", "list", "shelf", "of a table"):
        part = found[reader].take([3, 1])
        assert part.flaw == found[reader].flaw
        assert part.numbers == ([0.37, 0.37] if case == "real" else None)
        with pytest.raises(DataError) as caught:
            part.labelled({"a": 0, "b": 1}, 2)
        assert str(caught.value) == part.flaw
    assert found["survey"].take([1]).flaw == found["survey"].flaw
    assert found["survey"].digest == found["read"].digest == found["shelf"].digest


def test_numbers_are_of_what_was_read(every):
    one, other = every([0.5, 1.5]), every([0.5, 2.5])
    assert one["read"].numbers == one["shelf"].numbers == one["of a table"].numbers == [0.5, 1.5]
    assert all(one[reader].digest != other[reader].digest for reader in one)
    assert one["read"].take([0]).digest == other["read"].take([0]).digest != one["read"].take([1]).digest


def test_whole_floats_are_classes_for_every_reader(every):
    for reader, one in every([2.0, 1.0, 2.0]).items():
        assert list(one.labels) == [2, 1, 2], reader
        assert (one.classes, one.flaw) == ((), "")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_column_that_was_named_and_is_not_there_is_told(tmp_path, suffix):
    path, rows = tmp_path / f"l{suffix}", [{"text": "one", "label": "a", "none": None}] * 2
    whole = datasets.Dataset.from_list(rows)
    {".jsonl": whole.to_json, ".parquet": whole.to_parquet, ".csv": whole.to_csv}[suffix](path)
    for read in (tables.read,) if suffix == ".csv" else (tables.read, texts.read, survey):
        with pytest.raises(DataError, match=r"^l\.\w+ has no column 'lable': it has label, text, none$"):
            read(path, label="lable")
        assert read(path, label="").labels is None
    with pytest.raises(DataError, match="table has no column 'lable'"):
        tables.read(whole, label="lable")
    if suffix != ".csv":
        assert texts.read(path, label="none").labels is None, "it is there, and holds none"


@pytest.mark.parametrize("read", [texts.read, survey])
def test_a_column_that_was_named_and_is_not_there_is_told_of_rows_in_memory_and_streams(read):
    rows = [{"text": "one"}, {"text": "two", "label": "a", "kind": None}]
    table = datasets.Dataset.from_list(rows[::-1])
    streamed = table.to_iterable_dataset()
    for given in (rows, iter(rows), streamed, streamed.map(dict), table):
        with pytest.raises(DataError, match=r"^texts has no column 'lable': it has label, text, kind$"):
            read(given, label="lable")

    def unread():
        yield pytest.fail("the columns are known: no row has to be read")

    known = datasets.IterableDataset.from_generator(unread, features=table.features)
    with pytest.raises(DataError, match="has no column 'lable': it has label, text, kind"):
        read(known, label="lable")
    for label in ("kind", "", "label"):
        assert read(rows, label=label).labels is None
    assert read([{"text": "one"}], label="label").labels is None, "nobody has named it"
    assert read(["one", "two"], label="kind").labels is None, "texts alone have no columns"


def test_a_misspelt_column_of_a_data_set_of_the_hub_is_told_at_its_first_row(monkeypatch):
    taken = []

    def load_dataset(*_, **__):
        for number in itertools.count():
            taken.append(number)
            yield {"text": f"text {number}", "label": number % 2}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for read in (texts.read, survey):
        with pytest.raises(DataError, match=r"^data set owner/name has no column 'lable': it has label, text$"):
            read("hub:owner/name", label="lable")
    assert taken == [0, 0]
    assert texts.read("hub:owner/name", limit=2, label="label").labels == [0, 1]
