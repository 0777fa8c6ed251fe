"""Files of a checkpoint: found by its index, read one tensor at a time, replaced whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from secateur._utils import checkpoints
from secateur.errors import ModelError
from secateur.subjects.transformer import files


def test_tensors_are_found_walked_and_read(tmp_path):
    parts = {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.zeros(3), "z": torch.ones(1)}}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    table = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    assert files.find_tensors(tmp_path) == {tensor: tmp_path / name for tensor, name in table.items()}
    files.write_index(tmp_path, table, 24)
    assert files.find_tensors(tmp_path) == {tensor: tmp_path / name for tensor, name in table.items()}
    assert [name for name, _ in files.walk_tensors(sorted(tmp_path.glob("*.safetensors")))] == ["x", "y", "z"]
    assert torch.equal(dict(files.read_tensors({"y": tmp_path / "b.safetensors"}))["y"], torch.zeros(3))
    files.replace_file(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert torch.equal(dict(files.walk_tensors([tmp_path / "a.safetensors"]))["x"], torch.zeros(2))
    for wrong, said in (({"x": "../a.safetensors"}, "names no files"), ({"x": "c.safetensors"}, "lacks c.safetensors"),
                        ({"w": "a.safetensors"}, "lacks w")):  # fmt: skip
        files.write_index(tmp_path, wrong, 0)
        with pytest.raises(ModelError, match=said):
            files.find_tensors(tmp_path)


def test_a_configuration_is_changed_in_place_and_a_damaged_one_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"b": 1, "a": 2}')
    files.update_config(tmp_path, {"b": 3})
    assert (tmp_path / "config.json").read_text() == json.dumps({"a": 2, "b": 3}, indent=2) + "\n"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        checkpoints.read_json(tmp_path / "config.json")
