"""Indices opened again where only some kinds of data can be read."""

from __future__ import annotations

import numpy as np
import pytest

import secateur
import tiny
from secateur.data import examples
from secateur.errors import DataError
from secateur.methods import indices


@pytest.fixture
def places(tmp_path, monkeypatch):
    tiny.training_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    secateur.prune_data("data.npz", "examples=50%", "out", seed=3)
    return tmp_path


def read(source, *, text, label):
    return examples.read(source, label=label)


def test_only_indices_are_indices(places):
    assert not any(map(indices.is_index, (places, places / "data.npz", "data.npz", ["a text"], 3, None)))
    assert all(map(indices.is_index, ("out", "out/examples=50%", places / "out" / "examples=50%" / "index.npz")))


def test_the_data_is_read_by_who_opens_the_index(places):
    found = indices.open_index("out/examples=50%", read)
    assert len(found) == 30
    assert found.source.digest == examples.read("data.npz").digest
    assert indices.open_index(found, read) is found
    with pytest.raises(DataError, match="is of data read with label='label', not 'other': leave label out"):
        indices.open_index("out/examples=50%", read, label="other")


def test_other_data_is_refused(places):
    np.savez("data.npz", inputs=np.zeros((4, 2), np.float32), labels=np.arange(4))
    with pytest.raises(DataError, match=r"is of the data data.npz: .*give the data that it was made of"):
        indices.open_index("out/examples=50%", read)
