"""What a checkpoint's tensors are called in the model that its config describes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import updates_toy as toy
from secateur.errors import ModelError
from secateur.subjects.delta.naming import Names, match
from secateur.subjects.delta.tensors import Checkpoint


def test_names_are_found_with_and_without_prefix_and_a_tied_head_is_its_embedding(tmp_path):
    before, _ = toy.folders(tmp_path, "gpt2")
    names = Names(before)
    assert names.find("h.0.ln_1.weight") == names.find("transformer.h.0.ln_1.weight") == "transformer.h.0.ln_1.weight"
    assert names.find("h.0.attn.bias") is None
    assert names.twin("lm_head.weight") == "transformer.wte.weight"
    assert names.twin("wte.weight") is names.twin("h.0.attn.bias") is None
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError):
        Names(tmp_path / "bare")


def test_one_checkpoint_is_read_under_the_names_of_the_other(tmp_path):
    before, after = toy.folders(tmp_path, "gpt2")
    state = {name.removeprefix("transformer."): one for name, one in load_file(before / "model.safetensors").items()}
    extra = {"h.0.attn.bias": torch.ones(2, 2), "lm_head.weight": state["wte.weight"].clone()}
    save_file(state | extra, before / "model.safetensors", {"format": "pt"})
    renamed, apart = match(Checkpoint(before), Checkpoint(after))
    assert apart == {}
    assert renamed.outlines().keys() == Checkpoint(after).outlines().keys()
    assert torch.equal(renamed.read("transformer.h.0.ln_1.weight"), state["h.0.ln_1.weight"])
    assert renamed.digest() == Checkpoint(before).digest()
    assert match(Checkpoint(after), Checkpoint(before))[1] == {"h.0.attn.bias": "", "lm_head.weight": "wte.weight"}
