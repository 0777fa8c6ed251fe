"""JSON files of a checkpoint: read, or refused by name."""

from __future__ import annotations

import json

import pytest

from secateur._utils import checkpoints
from secateur.errors import ModelError


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "..", 5, None])
def test_an_index_names_plain_files(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}))
    assert checkpoints.read_index(index) == {"x": "a.safetensors", "y": "a.safetensors"}
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": name}}))
    with pytest.raises(ModelError, match="it names no files of this folder"):
        checkpoints.read_index(index)


@pytest.mark.parametrize("text", [b"{", "{}".encode("utf-16"), b"[" * 100_000])
def test_a_file_that_is_no_json_is_damaged(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        checkpoints.read_json(tmp_path / "config.json")
