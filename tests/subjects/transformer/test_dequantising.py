"""Quantised checkpoints as a start: floats when they are read, cut on a CPU, plain folders when they are written."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.errors import DataWarning, ModelError, UnsupportedError
from secateur.methods import pruning
from secateur.recover.quantization import quantise
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.subjects import Transformer, open_subject
from secateur.subjects.network import opening, pretrained
from secateur.subjects.transformer import costs, dequantising, gguf_export, loading, packing, quantised
from secateur.vocabulary import Budget, Selection
from strangers import run_without_secateur
from subjects.tiny import without
from subjects.transformer.test_gguf_export import bytes_tokenizer
from subjects.transformer.test_quantised import wide

pytest.importorskip("torchao", reason="the extra `quantise`")
pytest.importorskip("compressed_tensors", reason="the extra `quantise`")

INSIDE = ["model.layers.0.self_attn", "model.layers.1.mlp"]
CODE = """
import json, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("small")
assert not hasattr(model.config, "quantization_config")
torch.save(model(torch.tensor([[3, 4, 5, 6]])).logits, "logits.pt")
"""


def write_int8(subject: Transformer, folder: Path) -> Transformer:
    model = copy.deepcopy(subject.model)
    _, left = quantise.weight_only(model, 8, within=INSIDE)
    rounded = quantised.with_model(subject, model)
    quantised.save_int8(rounded, folder, quantise.config(8), list(left))
    return rounded


def write_int4(subject: Transformer, folder: Path) -> Transformer:
    model = copy.deepcopy(subject.model)
    names, left = quantise.weight_only(model, 4, within=INSIDE)
    subject.save(folder)
    chosen = quantised.find_weights(subject.model, [f"{name}.weight" for name in names], folder)
    quantised.pack(folder, chosen, list(left), 4, partial(quantise.integers, bits=4), dense=False)
    return quantised.with_model(subject, model)


def write_fp8(subject: Transformer, folder: Path) -> Transformer:
    """As fine-grained FP8 checkpoints are: a scale for each block of 32 by 32 weights."""
    subject.save(folder)
    state, rounded = load_file(folder / "model.safetensors"), subject.copy()
    left = rounded.model.state_dict()
    for name in [name for name in state if any(name.startswith(inside) for inside in INSIDE)]:
        blocks = state[name].unfold(0, 32, 32).unfold(1, 32, 32)
        scale = blocks.abs().amax((2, 3)) / 448
        wide_scale = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
        state[name] = (state[name] / wide_scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale
        left[name].copy_(state[name].float() * wide_scale)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    ignored = [f"model.layers.{layer}.{part}" for layer, part in ((0, "mlp"), (1, "self_attn"))]
    how = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    config["quantization_config"] = {**how, "modules_to_not_convert": [*ignored, "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return rounded


@pytest.mark.parametrize("write", [write_int8, write_int4, write_fp8])
def test_a_quantised_folder_is_cut_and_loads_again_as_a_plain_one(write, tmp_path, monkeypatch):
    subject = wide()
    rounded = write(subject, tmp_path / "packed")
    with pytest.warns(DataWarning, match=r"were quantised \([\w-]+\) and are float32 from here on"):
        opened = open_subject(tmp_path / "packed")
    batch = subject.example(2, 7)
    with torch.no_grad():
        wanted = rounded.forward(batch).prediction
        assert (wanted - subject.forward(batch).prediction).abs().max() > 1e-4, "nothing was rounded"
        torch.testing.assert_close(opened.forward(batch).prediction, wanted, atol=2e-5, rtol=1e-4)
    assert all(
        weight.is_floating_point() and type(weight) is torch.nn.Parameter for weight in opened.model.parameters()
    )
    small, _ = opened.cut(Selection({f"layers.{layer}.neurons": without(96, *range(40)) for layer in range(2)}))
    small.save(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    run_without_secateur(CODE, tmp_path)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(found, small.model(torch.tensor([[3, 4, 5, 6]])).logits)


@pytest.mark.parametrize("kind", ["int8", "int4", "packed", "gguf"])
def test_what_prune_and_estimate_open_are_the_floats_too(kind, tmp_path, recwarn):
    subject = wide()
    place, wanted = tmp_path / "packed", subject
    if kind == "gguf":
        pytest.importorskip("gguf", reason="the extra `gguf`")
        subject.tokenizer = bytes_tokenizer()
        subject.model.resize_token_embeddings(len(subject.tokenizer))
        gguf_export.to_gguf(subject, place)
        place /= "model.gguf"
    elif kind == "packed":
        for layer in subject.model.model.layers:
            layer.mlp.down_proj.weight.data[:, ::2] = 0
        packing.save_packed(subject, place)
    else:
        wanted = (write_int8 if kind == "int8" else write_int4)(subject, place)
    assert pretrained.is_pretrained(place)
    weights = place if kind == "gguf" else next(place.glob("*.safetensors"))
    told = f"takes {weights.stat().st_size / 1e6:.3g} MB as it is stored, quantised or packed: sizes before the cut"
    assert (told in pretrained.describe_stored(place)) == (kind != "gguf"), "this GGUF file holds floats"
    outline = loading.open_outline(place)
    loading.check_outline(place)
    assert outline.model.num_parameters() == subject.model.num_parameters()
    traced = opening.open_network(place)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(traced.model(ids).logits, wanted.model(ids).logits, atol=2e-5, rtol=1e-4)
    how = {"rate": pruning.make_scorer("magnitude"), "scope": "local", "multiple": None, "even": True}
    _, small, _ = pruning.prune_subject(traced, Budget.parse("params=85%"), **how)
    assert pretrained.describes(small.model)
    Network().save(small, tmp_path / "small")
    assert (tmp_path / "small" / "tokenizer.json").exists() == (kind == "gguf")
    with torch.no_grad():
        torch.testing.assert_close(secateur.load(tmp_path / "small")(ids).logits, small.model(ids).logits)
    assert not pretrained.describe_stored(tmp_path / "small")
    assert "quantization" not in (tmp_path / "small" / "config.json").read_text()


def test_a_quantised_model_in_memory_becomes_floats_in_a_copy_that_shares_the_rest():
    subject = wide()
    model = copy.deepcopy(subject.model)
    quantise.weight_only(model, 4, within=INSIDE)
    tokens = subject.example(2, 7)["input_ids"]
    with torch.no_grad():
        wanted = model(tokens).logits
    with pytest.warns(DataWarning, match=r"were quantised \(torchao\) and are float32 from here on"):
        found = Language().make_floats(open_subject(model)).model
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, wanted, atol=2e-5, rtol=1e-4)
    assert all(type(weight) is torch.nn.Parameter for weight in found.parameters())
    assert found.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert any(type(weight) is not torch.nn.Parameter for weight in model.parameters()), "the caller's stays"
    assert dequantising.make_floats(found) is found
    found.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM has weights quantised by bitsandbytes"):
        dequantising.make_floats(found)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_in_memory_is_measured_as_it_is_and_cut_as_floats(bits, tmp_path):
    plain, model = wide(), copy.deepcopy(wide().model)
    quantise.weight_only(model, bits, within=INSIDE)
    start = open_subject(model, tokenizer=plain.tokenizer)
    start.head, start._source, start.layer_index = [], costs.Source(1, 2), (1, 3)
    rows = secateur.measure(start, plain, pairs=6, batch=1, length=4)
    sizes = {part: rows[part]["bytes"].value for part in ("model", "against")}
    matrices = [matrix for name, matrix in Language().matrices(plain).items() if name.startswith(tuple(INSIDE))]
    inside = sum(matrix.numel() for matrix in matrices)
    scales = sum(matrix.numel() // quantise.GROUP if bits == 4 else len(matrix) for matrix in matrices)
    assert sizes["against"] - sizes["model"] == 3 * inside - 5 * scales, "a byte each, and scales with zero points"
    assert rows["model"]["params"] == rows["against"]["params"]
    assert "speedup" in rows["both"] or rows.notes
    assert start.stored is None, "the caller's stays"
    with pytest.raises(
        UnsupportedError, match=r"^LlamaForCausalLM has weights .* \(Int.*\), which can't be written: "
    ) as e:
        start.save(tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()
    with pytest.warns(DataWarning, match=r"were quantised \(torchao\) and are float32 from here on"):
        assert secateur.inspect(model)["cost"]["bytes"] == sizes["against"]
    with pytest.warns(DataWarning, match="are float32 from here on"):
        floats = start.make_floats()
    assert (floats._source, floats.layer_index, floats.tokenizer) == (start._source, (1, 3), plain.tokenizer)
    selection = Selection({"layers.1.neurons": without(96, *range(40))})
    for act in (Transformer.cut, Transformer.silence):
        with pytest.warns(DataWarning, match="are float32 from here on"):
            found = act(start, selection)
        small, wanted = found[0] if isinstance(found, tuple) else found, act(floats, selection)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        state = wanted.model.state_dict()
        for name, tensor in small.model.state_dict().items():
            torch.testing.assert_close(tensor, state[name])


def test_ways_of_quantising_that_can_not_be_undone_here_are_named(tmp_path):
    wide().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"already quantised \(gptq\): give the model as it was before"):
        open_subject(tmp_path)


def test_floats_have_the_number_type_that_the_integers_stand_for_whatever_the_config_says():
    model = copy.deepcopy(wide().model).to(torch.bfloat16)
    quantise.weight_only(model, 8)
    with pytest.warns(DataWarning, match="are bfloat16 from here on"):
        found = dequantising.make_floats(model)
    assert {weight.dtype for weight in found.parameters()} == {torch.bfloat16}
