"""`secateur prune` on folders of transformers: what reads pixels, sound or texts, and comes back as a plain folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import secateur
import tiny
from secateur import cli
from secateur.errors import InputError
from secateur.methods import pruning
from secateur.runs import backends, cutting, exporting, measuring
from secateur.runs.backends.network import Network
from secateur.subjects.network import files, opening, pretrained
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import open_traced
from secateur.subjects.transformer import reshaped
from secateur.subjects.transformer.origin import Origin
from secateur.vocabulary import Budget, Selection
from strangers import run_without_secateur
from subjects.hybrids import make_hybrid

SMALL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "pixels": lambda: ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
                  patch_size=8, num_labels=3)
    ),
    "sound": lambda: WhisperForConditionalGeneration(
        WhisperConfig(**SMALL, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                      decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
                      num_mel_bins=16, decoder_start_token_id=1)
    ),
    "texts": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ),
    "two stacks": lambda: T5ForConditionalGeneration(
        T5Config(**SMALL, d_model=40, d_kv=8, d_ff=240, num_layers=1, num_heads=5, decoder_start_token_id=0)
    ),
}  # fmt: skip
CODE = """
import torch, transformers
from transformers import AutoConfig
kind = getattr(transformers, AutoConfig.from_pretrained("small").architectures[0])
model, report = kind.from_pretrained("small", output_loading_info=True)
assert not any(report.values()), report
torch.save(model.eval()(**torch.load("inputs.pt")).logits, "logits.pt")
"""

TRUSTED = """
import os, torch
os.environ["HF_MODULES_CACHE"] = os.getcwd()
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained("small", trust_remote_code=True).eval()
assert model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3).shape[1] > 1
torch.save(model(**torch.load("inputs.pt")).logits, "logits.pt")
"""


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_comes_back_as_a_plain_folder(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.save_pretrained(tmp_path / "model")
    for name in ("LICENSE", "COPYING", "USE_POLICY.md"):
        (tmp_path / "model" / name).write_text("as it is")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n")
    (tmp_path / "model" / "cut_map.json").write_text("{}")  # by which adapters of an earlier original are cut
    if kind == "pixels":
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    small = tmp_path / "small"
    budget = "channels=75%" if kind == "sound" else "params=75%"  # tokens and frames are most of so small a Whisper
    assert cli.main(["prune", str(tmp_path / "model"), "--budget", budget, "--out", str(small)]) == 0
    capsys.readouterr()
    for name in ("LICENSE", "COPYING", "USE_POLICY.md"):
        assert (small / name).read_text() == "as it is"
    card = (small / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "license: mit" in card
    assert "language:\n- en" in card
    assert '.from_pretrained("small")' in card
    assert Origin.read(small).name == str(tmp_path / "model"), "the result's own, by units of its class"
    assert (small / "preprocessor_config.json").is_file() == (kind == "pixels")
    torch.save(inputs := pretrained.make_inputs(model), tmp_path / "inputs.pt")
    run_without_secateur(CODE, tmp_path)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    again = secateur.load(small)
    assert type(again) is type(model)
    now, before = (sum(one.numel() for one in each.parameters()) for each in (again, model))
    assert now <= 0.8 * before
    with torch.no_grad():
        torch.testing.assert_close(found, again(**inputs).logits)
    assert isinstance(backends.of_source(str(small)), Network) == (kind in ("pixels", "sound"))
    opening.open_network(small).forward()
    if kind != "texts":
        exporting.export(small, "onnx", tmp_path / "onnx")
    if kind == "pixels":
        compare_with_the_original(small, tmp_path)


def compare_with_the_original(small: Path, place: Path) -> None:
    """Its folder is taken to be measured against, and to learn from."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(8, 3, 32, 32)).astype(np.float32), rng.integers(0, 3, 8)
    np.savez(place / "images.npz", inputs=inputs, labels=labels)
    rows = measuring.measure(small, place / "model", place / "images.npz", batch=4, pairs=6)
    assert "probability_loyalty" in rows["both"]
    secateur.distill(small, place / "model", place / "images.npz", place / "taught", steps=1, batch=4)
    assert type(secateur.load(place / "taught")) is ViTForImageClassification


def test_a_model_of_text_and_image_is_given_both() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = {**sizes, "vocab_size": 64}, {**sizes, "image_size": 16, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    assert set(pretrained.make_inputs(model)) == {"input_ids", "pixel_values"}
    assert set(pretrained.make_inputs(MODELS["texts"]())) == {"input_ids", "use_cache"}


def test_a_model_of_several_parts_is_run_without_a_cache_and_kept_as_a_program(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = LlamaConfig(**SMALL, **sizes), CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=60))
    inputs = pretrained.make_inputs(model.eval())
    assert inputs["use_cache"] is False
    files.write_program(tmp_path, model, Example.of(inputs))
    assert (tmp_path / "model.pt2").is_file()


def test_what_torch_can_not_export_is_kept_without_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    MODELS["pixels"]().save_pretrained(tmp_path / "model")
    subject = opening.open_network(tmp_path / "model")
    monkeypatch.setattr(pretrained, "describes", lambda model: False)
    monkeypatch.setattr(reshaped, "build", lambda subject: None)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: tmp_path.missing)
    Network().save(subject, tmp_path / "small")
    assert not (tmp_path / "small" / "model.pt2").exists()
    assert Network().load_line(tmp_path / "small", "small") == 'import secateur\n\nmodel = secateur.load("small")'
    assert type(secateur.load(tmp_path / "small")) is ViTForImageClassification


def test_sounds_are_drawn_in_the_layout_that_the_class_takes() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    patches = {"max_length": 24, "num_mel_bins": 8, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    by_frames = transformers.Wav2Vec2BertConfig(**sizes, feature_projection_input_dim=6, vocab_size=8)
    models = [
        transformers.ASTModel(transformers.ASTConfig(**sizes, **patches)),  # [B, T, bins] of one T
        transformers.Wav2Vec2BertModel(by_frames),
        transformers.EncodecModel(transformers.EncodecConfig(num_filters=2, hidden_size=8, codebook_size=8)),
    ]
    shapes = []
    for model in models:
        inputs = pretrained.make_inputs(model.eval())
        model(**inputs)
        shapes.append(tuple(inputs[model.main_input_name].shape))
    assert shapes == [(2, 24, 8), (2, 200, 6), (2, 1, 16000)]


def test_the_shape_of_tokens_gives_tokens() -> None:
    model = MODELS["two stacks"]().eval()
    subject = opening.open_network(model, "3x8")
    assert subject.inputs.kwargs["input_ids"].shape == (3, 8)
    subject.forward()
    with pytest.raises(InputError, match=r"takes tokens \[B, T\], and not inputs of \[1, 3, 8\]"):
        opening.open_network(model, "1x3x8")


def test_a_config_does_not_go_before_the_network() -> None:
    """A cut that keeps less than half of what the plain one keeps of a site is not taken for its config."""
    wide, thin = (Selection({"a": np.arange(64) < count, "b": np.ones(8, bool)}, {}) for count in (40, 6))
    assert cutting._is_balanced(Selection({"a": np.arange(64) < 20}, {}), wide)
    assert not cutting._is_balanced(thin, wide)


def test_what_no_config_and_no_file_describes_is_kept_as_a_network(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reshaped, "build", lambda subject: None)
    torch.manual_seed(0)
    MODELS["pixels"]().save_pretrained(tmp_path / "model")
    shares = "vit.layers.0.mlp.*=50%"
    for name in ("LICENSE", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text("{}")
    secateur.run(cutting.prune, tmp_path / "model", None, "params=75%", out=tmp_path / "small", shares=shares)
    assert {"LICENSE", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "small").iterdir()}
    assert json.loads((tmp_path / "small" / "cut.json").read_text())["built_by"] == str(tmp_path / "model")
    assert not (tmp_path / "small" / "config.json").exists()
    assert secateur.load(tmp_path / "small") is not None


def test_a_cut_that_was_evened_for_a_config_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sites keep other numbers than their own, and where no config says what is left all the same."""
    torch.manual_seed(0)
    MODELS["pixels"]().save_pretrained(tmp_path / "model")
    subject = opening.open_network(tmp_path / "model")
    how = {"rate": pruning.make_scorer("magnitude"), "scope": "global", "prove": False, "multiple": 1}
    selection, _, cut = pruning.prune_subject(subject, Budget.parse("params=75%"), even=True, **how)
    own, _, plain = pruning.prune_subject(subject, Budget.parse("params=75%"), even=False, **how)
    moved = [name for name in own.keep if own.keep[name].sum() != selection.keep[name].sum()]
    assert moved
    told = f"by scores alone {len(moved)} of {len(own.keep)} would keep other numbers"
    assert [told in " ".join(one.notes) for one in (cut, plain)] == [True, False]
    monkeypatch.setattr(pretrained, "describes", lambda model: False)
    monkeypatch.setattr(reshaped, "build", lambda subject: None)
    (row,) = secateur.run(cutting.prune, tmp_path / "model", None, "params=75%", out=tmp_path / "small")
    assert row.cut is not None
    assert any("the result is no plain folder, and secateur.load opens it" in note for note in row.cut.notes)


@pytest.mark.parametrize("even", [True, False])
def test_a_result_with_a_modelling_file_is_not_said_to_be_unloadable(tmp_path: Path, even: bool) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 64}
    marks = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **marks)).save_pretrained(tmp_path / "model")
    (row,) = secateur.run(cutting.prune, tmp_path / "model", None, "params=80%", out=tmp_path / "small", even=even)
    assert row.cut is not None
    assert (tmp_path / "small" / "modeling_secateur.py").is_file()
    assert sum("from_pretrained loads it with trust_remote_code=True" in note for note in row.cut.notes) == 1
    assert not [note for note in row.cut.notes if "from_pretrained won't load" in note]


def test_a_text_model_of_unequal_layers_is_compared_with_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS["texts"]().save_pretrained(tmp_path / "model")
    secateur.run(cutting.prune, tmp_path / "model", None, "params=75%", out=tmp_path / "small", even=False)
    rows = measuring.measure(tmp_path / "small", tmp_path / "model", batch=2, pairs=6)
    assert rows["model"]["params"].value < rows["against"]["params"].value


def test_what_no_config_describes_loads_by_a_modelling_file_where_whole_units_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    marks = {"decoder_start_token_id": 2, "forced_eos_token_id": 2}
    model = BartForConditionalGeneration(BartConfig(**SMALL, **sizes, **heads, **marks)).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("as it is")
    traced = opening.open_network(tmp_path / "model")
    ours = next(name for name in traced.units().sites if "encoder.layers.0.fc1" in name)
    cut, _ = traced.cut(Selection({ours: np.arange(24) < 16}, {}))
    Network().save(cut, tmp_path / "small")
    assert (tmp_path / "small" / "LICENSE").read_text() == "as it is"
    assert "trust_remote_code=True" in Network().load_line(tmp_path / "small", "small")
    assert Origin.read(tmp_path / "small").name == str(tmp_path / "model")
    torch.save(inputs := pretrained.make_inputs(model), tmp_path / "inputs.pt")
    run_without_secateur(TRUSTED, tmp_path)
    with torch.no_grad():
        wanted = secateur.load(tmp_path / "small")(**inputs).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), wanted)
    subject = opening.open_network(tmp_path / "small")
    torch.testing.assert_close(subject.forward().logits, wanted)


MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3_5": (
        "linear_attn.out_proj",
        {
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 16,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "RecurrentGemma": (
        "temporal_block.linear_out",
        {"num_hidden_layers": 2, "block_types": ["recurrent", "attention"]},
    ),
}
"""Output linear of a mixer, and settings with which it has four heads: key heads, and blocks of an RG-LRU.

All values are as many numbers as a chunk of tokens of the delta rule, 64.
"""
CACHED = """
import os, torch
os.environ["HF_MODULES_CACHE"] = os.path.join(os.getcwd(), "modules")
exec(open("load.py").read())
inputs = torch.load("inputs.pt")
model.eval()
with torch.no_grad():
    cached, anew = (
        model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, anew), (cached, anew)
    torch.save((model(**inputs).logits, cached), "found.pt")
"""


@pytest.mark.parametrize("name", MIXERS)
def test_heads_of_a_mixer_are_cut_as_those_of_any_network_and_load_anywhere(name: str, tmp_path: Path) -> None:
    out, settings = MIXERS[name]
    make_hybrid(name, **settings).save_pretrained(tmp_path / "model")
    subject = open_traced(opening.open_network(tmp_path / "model"))
    sites = [
        site for site, group in subject.groups().items()
        if any(member.module.endswith(out) and member.axis == "weight[1]" for member in group.members)
    ]  # fmt: skip
    units = subject.units()
    assert {units[site].count for site in sites} == {4}
    keep = {site: np.arange(4) != turn % 4 for turn, site in enumerate(sites)}
    cut, receipt = subject.cut(Selection(keep))
    assert set(receipt.removed.values()) == {(1, 4)}
    Network().save(cut, tmp_path / "small")
    (tmp_path / "load.py").write_text(Network().load_line(tmp_path / "small", "small"))
    torch.save(inputs := dict(cut.inputs.kwargs), tmp_path / "inputs.pt")
    run_without_secateur(CACHED, tmp_path)
    logits, words = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(subject.silence(Selection(keep)).forward().logits, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cut.model.eval()(**inputs).logits, logits)
        again = secateur.load(tmp_path / "small").eval()
        assert torch.equal(again.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False), words)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    MODELS["texts"]().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    MODELS["texts"]().save_pretrained(tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    capsys.readouterr()
    for source, words in (
        ("empty", "names none"),
        ("st", "secateur run magnitude"),
        ("cut", "is damaged or truncated"),
        ("./no", "there is no './no': give a function"),
        ("no", "'no' is no folder here, and the Hub gave no model"),
    ):
        place = source if source.endswith("no") else str(tmp_path / source)
        assert cli.main(["prune", place, "--budget", "params=75%", "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "several"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4}, True),
        ({"model_type": "mixtral"}, True),  # of which it has eight by default
        ({"model_type": "mixtral", "num_local_experts": 1}, False),
        ({"model_type": "llama4", "text_config": {"num_local_experts": 4}}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "nothing known"}, False),
    ],
)
def test_experts_are_told_by_the_config_of_a_folder_or_a_hub_id_without_network(tmp_path, monkeypatch, config, several):
    kept = tmp_path / "cache" / "models--someone--tiny"
    (kept / "snapshots" / "0123").mkdir(parents=True)
    (kept / "snapshots" / "0123" / "config.json").write_text(json.dumps(config))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pretrained.has_experts("someone/tiny") is several
    assert pretrained.has_experts(kept / "snapshots" / "0123") is several
    assert not pretrained.has_experts("someone/else")
    assert not pretrained.has_experts(tmp_path)


def test_whether_recipes_take_a_model_as_a_whole(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    BartConfig(**sizes, **heads, architectures=["BartForConditionalGeneration"]).save_pretrained(tmp_path / "bart")
    assert not pretrained.is_taken(str(tmp_path / "bart")), "2 heads of 16 numbers each, and 4 of 8 in its decoder"
    tiny.folder("llama", tmp_path / "llama")
    assert pretrained.is_taken(str(tmp_path / "llama"))


def test_a_classifier_that_asks_for_the_end_of_a_text_gets_one() -> None:
    """It takes its decoder's tokens from its encoder's, and none of their own."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = transformers.BartForSequenceClassification(BartConfig(vocab_size=64, eos_token_id=7, **sizes, **heads))
    inputs = pretrained.make_inputs(model.eval())
    assert "decoder_input_ids" not in inputs
    assert (inputs["input_ids"] == 7).sum(1).tolist() == [1, 1]
    assert model(**inputs).logits.shape == (2, 3)


def test_drawn_tokens_stand_for_no_image() -> None:
    """Of a vocabulary so small one was drawn by chance, and the model refused an image that was not there."""
    config = transformers.Gemma3Config(text_config={"vocab_size": 16}, image_token_id=5)
    tokens = pretrained._draw_tokens(config, (8, 64), torch.Generator().manual_seed(0))
    assert 5 not in tokens
    assert 3 <= int(tokens.min()) < int(tokens.max()) < 16
