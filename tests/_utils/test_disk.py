from pathlib import Path

import numpy as np
import pytest

from secateur._utils import disk
from secateur.errors import RunError


def test_a_folder_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with disk.writing(tmp_path / "out") as folder:
            folder.mkdir()
            (folder / "file").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with disk.writing(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "here"))
    assert disk.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("SECATEUR_CACHE")
    assert disk.cache_folder() == Path.home() / ".cache" / "secateur"


@pytest.mark.parametrize("content", [None, b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_holds_no_object_reads_as_an_empty_one(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert disk.read_object(tmp_path / "a.json") == {}
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert disk.read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_array_that_finds_no_space_is_a_full_disk(tmp_path):
    with (
        pytest.raises(RunError, match=r"disk full while writing .*model: free some space"),
        disk.guard(tmp_path / "model"),
        Path("/dev/full").open("wb") as file,
    ):
        np.zeros(65536).tofile(file)  # as gguf's writer does


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error = ValueError("nothing of a disk")
    error.__cause__ = error
    assert not disk.is_disk_full(error)
