"""Shelves: what is put on one is what is read from it, in parts; it has no name, and what can't be written is told."""

from __future__ import annotations

import gc
import os
import resource
import warnings

import numpy as np
import psutil
import pytest

import processes
from secateur.data import shelf as module
from secateur.data.shelf import Shelf, Texts, Writer, nearest
from secateur.errors import RunError

SPOKEN = ["one", "", "zwei — drei", "\U0001f333" * 3, "half \ud800 a pair", "a\nb\x00c", *map(str, range(3000))]


def written(folder) -> Texts:
    writer = Writer(folder)
    for start in range(0, len(SPOKEN), 700):
        writer.add(SPOKEN[start : start + 700])
    return writer.end()


def test_numbers_come_back_in_slices(tmp_path):
    shelf, numbers = Shelf(tmp_path, np.int32), np.arange(1000, dtype=np.int32) * 7
    for start in range(0, 1000, 300):
        shelf.add(numbers[start : start + 300])
        shelf.add(numbers[:0])
    assert len(shelf) == 1000
    for part in (slice(0, 1000), slice(299, 301), slice(np.int64(5), np.int64(5)), slice(990, 2000), slice(7, 3)):
        assert np.array_equal(shelf[part], numbers[part])
        assert shelf[part].dtype == np.int32
    shelf.add(numbers[:2])  # reading does not move the end
    assert shelf[1000:].tolist() == [0, 7]


def test_texts_come_back_one_by_one_in_slices_and_in_any_order(tmp_path):
    found = written(tmp_path)
    assert list(found) == SPOKEN
    assert [found[0], found[-1], found[4]] == [SPOKEN[0], SPOKEN[-1], SPOKEN[4]]
    for part in (slice(1, 6), slice(0, 0), slice(None, None, 2), slice(5, 0, -1), slice(3000, None)):
        assert found[part] == SPOKEN[part]
    places = np.random.default_rng(0).permutation(len(SPOKEN))[:50]
    some = found.take(places)
    assert list(some) == [SPOKEN[place] for place in places]
    assert some[3:9] == [SPOKEN[place] for place in places[3:9]]
    assert list(some.take([4, 2])) == [SPOKEN[places[4]], SPOKEN[places[2]]]
    assert (some.folder, len(some)) == (tmp_path, 50)
    with pytest.raises(IndexError):
        found[len(SPOKEN)]


def test_neighbours_are_read_at_once(tmp_path, monkeypatch):
    found, asked, real = written(tmp_path), [], os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda *given: asked.append(given) or real(*given))
    assert list(found) == SPOKEN
    assert len(asked) == -(-len(SPOKEN) // module.CHUNK)


def test_it_leaves_no_file(tmp_path):
    gc.collect()  # what other tests left open
    found = written(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(found[2:5]) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        files = psutil.Process().num_fds()
        del found
        gc.collect()
        assert psutil.Process().num_fds() == files - 1


def test_a_system_that_reads_less_than_was_asked_for(tmp_path, monkeypatch):
    found, real = written(tmp_path), os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda file, parts, at: real(file, [parts[0][:5]], at))
    assert found[0:6] == SPOKEN[:6]


def test_the_nearest_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert nearest(tmp_path) == nearest("new/out") == nearest("") == nearest("file") == tmp_path


def test_a_disk_that_is_full_or_can_not_be_written_is_told_in_a_line(tmp_path):
    def told():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(RunError, match=f"disk full while writing {tmp_path}: free some space"):
            Writer(tmp_path).add(["x" * 30_000])
        few = Writer(tmp_path)
        few.add(["x" * 19_000, "y" * 5_000])  # the last of it waits in a buffer
        with pytest.raises(RunError, match="disk full"):
            few.end()[1]

    child = processes.forked(told)
    assert child.wait() == 0, child.stderr
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(RunError, match="can't be written: choose a folder you may write to"):
            Shelf(tmp_path, np.int32)
