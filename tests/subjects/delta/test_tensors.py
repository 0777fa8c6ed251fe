"""Tensors read and written one at a time."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
import updates_toy as toy
from secateur.errors import InputError, ModelError
from secateur.subjects.delta.tensors import Checkpoint, InMemory, Outline, write


def test_a_file_is_what_safetensors_reads(tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.int8),
        "half": torch.randn(3, 5).bfloat16(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "turned": torch.randn(4, 3).T,
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
    }
    source = InMemory(tensors)
    write(tmp_path / "x.safetensors", source.outlines(), source.read)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # without which transformers refuses the file
    with pytest.raises(InputError, match=r"odd is torch.int8 \[3\] in place of float32 \[3\]"):
        write(tmp_path / "y", {"odd": Outline(torch.float32, (3,))}, source.read)


def test_a_checkpoint_in_several_files_is_one(tmp_path):
    before, after = map(Checkpoint, toy.folders(tmp_path))
    assert len(set(after.places.values())) > 1
    assert before.outlines() == {name: after.outlines()[name] for name in before.outlines()}
    for name, tensor in toy.states()[1].items():
        assert torch.equal(after.read(name), tensor)
    assert before.digest() != after.digest()


def test_what_holds_no_tensors_is_refused(tmp_path):
    tiny.model("llama").config.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="bare"):
        Checkpoint(tmp_path / "bare")
    toy.folders(tmp_path)
    (tmp_path / "before" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="is damaged or truncated"):
        Checkpoint(tmp_path / "before")
