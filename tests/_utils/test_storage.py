"""Files whole or not at all."""

import pytest
import torch

from secateur._utils import storage
from secateur.errors import DataError, RunError


def test_round_trip_of_tensors_text_and_shared_memory(tmp_path):
    base = torch.arange(6.0)
    storage.write(tmp_path / "a" / "file", {"whole": base, "same": base, "part": base[2:4], "none": base[:0]}, "words")
    tensors, text = storage.read(tmp_path / "a" / "file")
    assert text == "words"
    assert torch.equal(tensors["whole"], tensors["same"])
    assert tensors["part"].tolist() == [2, 3]
    assert tensors["none"].numel() == 0


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    storage.write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(tmp_path / "file", "new \ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    (tmp_path / "wall").write_text("")
    with pytest.raises(RunError, match="could not write"):
        storage.write_text(tmp_path / "wall" / "file", "new")


def test_what_a_kill_left_behind_is_overwritten(tmp_path):
    (tmp_path / ".file.part").write_text("half")
    storage.write_text(tmp_path / "file", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_pickles_and_foreign_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "pickle")
    with pytest.raises(DataError, match="damaged"):
        storage.read(tmp_path / "pickle")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(DataError, match="not written by secateur"):
        storage.read(tmp_path / "foreign")
    with pytest.raises(DataError, match="missing"):
        storage.read(tmp_path / "absent")


def test_digests_and_bits_tell_one_bit(tmp_path):
    storage.write(tmp_path / "a", {"x": torch.ones(3)})
    storage.write(tmp_path / "b", {"x": torch.ones(3)})
    storage.write(tmp_path / "c", {"x": torch.tensor([1.0, 1.0, 1.0000001])})
    assert storage.digest(tmp_path / "a") == storage.digest(tmp_path / "b") != storage.digest(tmp_path / "c")
    assert storage.bits(torch.ones(2, dtype=torch.bfloat16)) == bytes([0x80, 0x3F] * 2)
