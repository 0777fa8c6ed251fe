"""Quantised models as they stand on the disk."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from secateur.errors import MissingExtraError, ModelError, NumericalError
from secateur.recover.quantization import quantise
from secateur.subjects import open_streamed, open_subject
from secateur.subjects.transformer import quantised
from subjects.tiny import make, padded, run

pytest.importorskip("torchao", reason="the extra `quantise`")
pytest.importorskip("compressed_tensors", reason="the extra `quantise`")


def quantise_copy(subject, bits):
    model = copy.deepcopy(subject.model)
    names, left = quantise.weight_only(model, bits, within=["model.layers.0.self_attn", "model.layers.1.self_attn"])
    return quantised.with_model(subject, model), names, list(left)


def wide():
    """A Llama whose inputs are multiples of a group."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return open_subject(LlamaForCausalLM(LlamaConfig(vocab_size=61, num_hidden_layers=2, **shape)).eval())


def test_eight_bits_stand_as_integers_with_a_scale_for_each_row(tmp_path):
    subject, names, left = quantise_copy(make("llama"), 8)
    quantised.save_int8(subject, tmp_path, quantise.config(8), left)
    found = load_file(tmp_path / "model.safetensors")
    stem = names[0]
    assert found[f"{stem}._weight_qdata"].dtype == torch.int8
    assert found[f"{stem}._weight_scale"].shape == (found[f"{stem}._weight_qdata"].shape[0], 1)
    assert f"{stem}.weight" not in found
    assert found["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()[f"{stem}.weight"])["_type"] == "Int8Tensor"
    again = open_subject(tmp_path, quantised=True)
    batch = padded(subject)
    torch.testing.assert_close(run(again, batch), run(subject, batch), atol=1e-5, rtol=1e-5)
    assert again.stored.bits == 8
    assert again.stored.bytes == (tmp_path / "model.safetensors").stat().st_size


def packed(subject, folder, bits, *, dense=False):
    """Every attention of two layers in integers; returns the model that they stand for, and the linears' names."""
    student, names, left = quantise_copy(subject, bits)
    subject.save(folder)
    chosen = quantised.find_weights(subject.model, [f"{name}.weight" for name in names], folder)
    quantised.pack(folder, chosen, left, bits, partial(quantise.integers, bits=bits), dense=dense)
    return student, names


def test_four_bits_stand_eight_to_a_word(tmp_path):
    subject, names = packed(wide(), tmp_path, 4)
    found = load_file(tmp_path / "model.safetensors")
    stem = names[0]
    assert found[f"{stem}.weight_packed"].dtype == torch.int32
    assert found[f"{stem}.weight_packed"].shape == (64, 64 // 8)
    assert found[f"{stem}.weight_scale"].shape == (64, 64 // quantise.GROUP)
    assert found[f"{stem}.weight_shape"].tolist() == [64, 64]
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert "lm_head" in config["ignore"]
    assert "model.layers.0.mlp.up_proj" in config["ignore"]
    again = open_subject(tmp_path, quantised=True)
    batch = padded(subject)
    torch.testing.assert_close(run(again, batch), run(subject, batch), atol=1e-5, rtol=1e-5)
    assert again.stored.bits == 4


def test_the_original_is_untouched(tmp_path):
    subject = make("llama")
    student, _, left = quantise_copy(subject, 8)
    quantised.save_int8(student, tmp_path, quantise.config(8), left)
    assert not hasattr(subject.model.config, "quantization_config")
    assert type(subject.model.model.layers[0].self_attn.q_proj.weight) is torch.nn.Parameter


def test_quantised_weights_are_not_streamed(tmp_path):
    subject, _, left = quantise_copy(make("llama"), 8)
    quantised.save_int8(subject, tmp_path, quantise.config(8), left)
    with pytest.raises(ModelError, match=r"already quantised \(torchao\)"):
        open_streamed(tmp_path)


def test_without_compressed_tensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors.compressors.pack_quantized.helpers", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[quantise\]"):
        packed(wide(), tmp_path, 4)


def test_what_is_not_in_the_files_or_reads_back_otherwise_is_refused(tmp_path, monkeypatch):
    subject = wide()
    subject.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if "layers.1.self_attn.v" not in name}  # noqa: SIM118
    save_file(kept, tmp_path / "less.safetensors", {"format": "pt"})
    (tmp_path / "less.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.self_attn\.v_proj\.weight: save the model again"):
        quantised.find_weights(subject.model, ["model.layers.1.self_attn.v_proj.weight"], tmp_path)
    library = quantised._compressed_tensors()
    rightly = library.pack
    library.pack = lambda integers, bits: rightly(integers.abs(), bits)
    monkeypatch.setattr(quantised, "_compressed_tensors", lambda: library)
    with pytest.raises(NumericalError, match=r"q_proj\.weight is not the same after packing"):
        packed(wide(), tmp_path / "wrong", 8)
