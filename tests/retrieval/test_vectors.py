"""Vectors on the disk: found again, bounded, and done without where the file is not to be used."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.retrieval import encoders
from secateur.retrieval.vectors import VectorFile

PROBE = np.array([1.0, 2.0], dtype=np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    return tmp_path / "vectors"


def rows(*numbers):
    return {f"text {number}": np.array([number, -number], dtype=np.float32) for number in numbers}


def test_what_was_written_is_there_for_the_next_process():
    VectorFile.open("one", PROBE).write(rows(1, 2))
    found = VectorFile.open("one", PROBE + 1e-5).read(["text 1", "text 3"])
    assert {text: vector.tolist() for text, vector in found.items()} == {"text 1": [1.0, -1.0]}
    assert VectorFile.open("other", PROBE).read(["text 1"]) == {}
    assert VectorFile.open("one", PROBE).read(["text 1"], "query") == {}


@pytest.mark.parametrize("probe", [PROBE + 1, np.ones(3, np.float32), PROBE + np.float32([9e-4, -9e-4])])
def test_an_encoder_that_was_changed_finds_nothing(probe):
    VectorFile.open("one", PROBE).write(rows(1))
    assert VectorFile.open("one", probe).read(["text 1"]) == {}


def test_a_process_with_old_weights_writes_nothing_that_one_with_new_ones_reads():
    old, new = VectorFile.open("one", PROBE), VectorFile.open("one", PROBE + 1)
    old.write(rows(1))
    assert new.read(["text 1"]) == VectorFile.open("one", PROBE + 1).read(["text 1"]) == {}
    new.write(rows(2))
    assert old.read(["text 2"]) == {}
    assert old.read(["text 1"]).keys() == {"text 1"}


def test_what_was_not_asked_for_the_longest_leaves_first():
    kept = VectorFile.open("one", PROBE, most=10 * 8)
    for number in range(10):
        kept.write(rows(number))
    kept.read(["text 0"])
    kept.write(rows(10))
    texts = [f"text {number}" for number in range(11)]
    assert kept.read(texts).keys() == set(texts) - {"text 1", "text 2"}


def test_a_damaged_file_is_made_anew_and_a_folder_that_is_closed_is_done_without(cache):
    kept = VectorFile.open("one", PROBE)
    kept.path.write_bytes(b"no file of SQLite" * 100)
    again = VectorFile.open("one", PROBE)
    again.write(rows(1))
    assert len(again.read(["text 1"])) == 1
    again.path.unlink()
    again.path.mkdir()
    closed = VectorFile.open("one", PROBE)
    closed.write(rows(1))
    assert closed.off
    assert closed.read(["text 1"]) == {}


def test_an_encoder_by_name_reads_a_text_once_for_all_processes(monkeypatch):
    seen = []

    def embed(texts):
        seen.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    monkeypatch.setattr(encoders, "encoder", lambda source, device="", precision="": embed)
    for _ in range(2):
        encoders._REMEMBERED.pop(embed, None)  # what a new process knows
        found = encoders.open_remembering("a/model")(["one", "three"])
        assert found.tolist() == [[3.0, 1.0], [5.0, 1.0]]
    assert [text for text in seen if len(text) < 9] == ["one", "three"]
