"""Surveys: the columns of a corpus that is never held, equal to those of one that is."""

from __future__ import annotations

import gc
import json
import weakref

import datasets
import numpy as np
import pytest

from secateur.data import texts
from secateur.data.shelf import CHUNK, Texts
from secateur.data.survey import survey
from secateur.errors import DataError


def written(tmp_path, labels):
    rows = [{"text": f"text {i % 7}" + "!" * (i % 3), "label": labels[i % len(labels)]} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("labels", [["b", "a", "c"], [2, 0], [None, "a"], ["x", 1]])
def test_columns_are_those_of_the_corpus_read_whole(tmp_path, labels):
    path = written(tmp_path, labels)
    found, whole = survey(path, counts={"tokens": lambda some: [len(text) for text in some]}), texts.read(path)
    assert (found.name, found.digest, found.classes, len(found)) == (whole.name, whole.digest, whole.classes, 40)
    assert (found.labels is None) == (whole.labels is None)
    assert found.labels is None or found.labels.tolist() == whole.labels
    for measure, column in whole.costs().items():
        assert np.array_equal(found.costs()[measure], column)
    assert found.costs()["tokens"].tolist() == [len(text) for text in whole.texts]
    assert np.array_equal(found.keys(), whole.keys())
    assert np.array_equal(found.keys(normalised=True), whole.keys(normalised=True))


def test_texts_are_passed_over_once_and_let_go():
    class Text(str):
        """A text of which it can be told whether it is still held."""

        __slots__ = ("__weakref__",)

    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    most, given = 0, 0

    def stream():
        nonlocal most, given
        for number in range(10 * CHUNK):
            one = Text(f"text {number}")
            alive.add(one)
            given += 1
            if number % CHUNK == 7:
                gc.collect()
                most = max(most, len(alive))
            yield one

    found = survey(stream())
    assert given == len(found) == 10 * CHUNK
    assert 0 < most <= 2 * CHUNK


def test_a_streamed_data_set_is_a_corpus():
    rows = datasets.Dataset.from_dict({"body": ["one", " ", "two two"], "kind": ["x", "y", "x"]})
    for source in (rows, rows.to_iterable_dataset()):
        found = survey(source, column="body", label="kind")
        assert len(found) == 2  # blank texts are passed over, as ever
        assert found.classes == ("x",)
        assert found.costs()["words"].tolist() == [1, 2]


def test_what_is_taken_is_columns():
    part = survey(["a", "b b", "c"]).take([2, 1])
    assert part.costs()["words"].tolist() == [1, 2]
    assert len(part) == 2


def test_what_can_not_be_used_is_refused_in_a_line(tmp_path):
    with pytest.raises(DataError, match="texts holds no text"):
        survey([])
    with pytest.raises(DataError, match="row 2 has no text in 'text': it has body"):
        survey([{"text": "a"}, {"body": "b"}])
    with pytest.raises(DataError, match="does not exist"):
        survey(tmp_path / "none.txt")


def test_texts_on_a_shelf_are_a_corpus_that_is_told_of(tmp_path):
    path = written(tmp_path, ["b", "a", "c"])
    count = {"tokens": lambda some: [len(text) for text in some]}
    found, whole, plain = survey(path, counts=count, shelf=tmp_path), texts.read(path), survey(path, counts=count)
    assert isinstance(found, texts.Corpus)
    assert isinstance(found.texts, Texts)
    assert (list(found.texts), found.labels) == (list(whole.texts), whole.labels)
    assert (found.name, found.digest, found.classes) == (whole.name, whole.digest, whole.classes)
    assert found.costs().keys() == {"bytes", "words", "tokens"}
    for measure, column in plain.costs().items():
        assert np.array_equal(found.costs()[measure], column)
    for how in (False, True):
        assert np.array_equal(found.keys(normalised=how), whole.keys(normalised=how))
    part, other = found.take([5, 3, 30]), whole.take([5, 3, 30])
    assert isinstance(part.texts, Texts)
    assert (list(part.texts), part.labels, part.digest) == (other.texts, other.labels, other.digest)
    assert np.array_equal(part.costs()["words"], other.costs()["words"])
    assert list(tmp_path.iterdir()) == [path]
