"""A base with an adapter is what peft merges, and no adapter of another base is taken."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import updates_toy as toy
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.delta.delta import open_delta
from secateur.subjects.delta.merged import Merged
from secateur.subjects.delta.tensors import Checkpoint

LINEARS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapt(folder, out, kind="llama", **options):
    """A random adapter of the model in `folder`: the state that peft merges it to."""
    model = tiny.model(kind).from_pretrained(folder)
    torch.manual_seed(0)
    options = {"target_modules": LINEARS[kind], "r": 3, "lora_alpha": 5, "fan_in_fan_out": kind == "gpt2"} | options
    tuned = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **options))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
    tuned.save_pretrained(out)
    return tuned.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 7}}),
        ("llama", {"use_rslora": True, "modules_to_save": ["lm_head"]}),
        ("llama", {"use_dora": True}),
        ("gpt2", {}),
    ],
    ids=["patterns", "rslora, a whole module", "dora", "gpt2"],
)
def test_it_merges_as_peft_does(kind, options, tmp_path):
    before, _ = toy.folders(tmp_path, kind)
    wanted = adapt(before, tmp_path / "adapter", kind, **options)
    delta = open_delta(before, tmp_path / "adapter")
    assert delta.notes == ()
    changed = [name for name in delta.sites if not torch.equal(delta.tensor(name), delta.before.read(name))]
    assert changed == list(delta.sites)
    for name in delta.before.outlines():
        assert torch.allclose(delta.tensor(name), wanted[name], atol=2e-6), name
    assert any("lm_head" in name for name in delta.sites) == ("modules_to_save" in options)
    delta.save(tmp_path / "merged")
    assert torch.equal(Checkpoint(tmp_path / "merged").read(changed[0]), delta.tensor(changed[0]))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    before, after = toy.folders(tmp_path)
    adapt(before, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"is an adapter of .*before, whose weights are not those of .*after: give"):
        Merged(Checkpoint(after), tmp_path / "adapter")
    other, _ = toy.folders(tmp_path / "gpt2", "gpt2")
    said = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(said.read_text()) | {"base_model_name_or_path": "someone/elsewhere"}
    said.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"of another base \(someone/elsewhere\): it has factors of model.layers.0"):
        Merged(Checkpoint(other), tmp_path / "adapter")
    assert "names someone/elsewhere, which is not at hand" in Merged(Checkpoint(before), tmp_path / "adapter").notes[0]
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(iter(factors))
    save_file({**factors, name: torch.zeros(3, 7)}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"its model.layers.*weight is \[64, 7\], and .*before has \[64, 128\]"):
        Merged(Checkpoint(before), tmp_path / "adapter")
    del factors[name]
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="is damaged: it has lora_B of"):
        Merged(Checkpoint(before), tmp_path / "adapter")


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_of_a_tied_head_is_refused(options, tmp_path):
    before, _ = toy.folders(tmp_path, "gpt2")
    adapt(before, tmp_path / "adapter", "gpt2", **options)
    with pytest.raises(
        UnsupportedError, match=r"lm_head.weight, a tied head, .*wte.weight again: untie it, or merge_and"
    ):
        Merged(Checkpoint(before), tmp_path / "adapter")


def test_factors_of_embeddings_are_refused(tmp_path):
    before, _ = toy.folders(tmp_path)
    adapt(before, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(UnsupportedError, match="factors of linears alone are merged here"):
        Merged(Checkpoint(before), tmp_path / "adapter")
