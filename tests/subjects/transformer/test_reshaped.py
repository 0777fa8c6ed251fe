"""Networks whose sizes no config can say come back by `from_pretrained`, in an interpreter that has no secateur."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
    GPTJConfig,
    GPTJForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import secateur
from secateur import cli
from secateur.errors import ModelError, UnsupportedError
from secateur.runs import backends, cutting, exporting, memory_plan
from secateur.runs.backends.network import Network
from secateur.subjects.network import opening, pretrained
from secateur.subjects.network.traced import Traced, open_traced
from secateur.subjects.transformer import loading, reshaped, traced_cuts
from secateur.vocabulary import Selection
from strangers import run_without_secateur

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
WORDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 1], "num_encoder_blocks": 2, "num_attention_heads": [2, 4]}
STAGES |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "AutoModelForImageClassification": lambda: ViTForImageClassification(
        ViTConfig(**SIZES, image_size=16, patch_size=8)
    ),
    "AutoModelForSpeechSeq2Seq": lambda: WhisperForConditionalGeneration(
        WhisperConfig(**WORDS, **HEADS, d_model=16, encoder_layers=2, decoder_layers=1, max_source_positions=20,
                      num_mel_bins=8, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None)
    ),
    "AutoModelForSemanticSegmentation": lambda: SegformerForSemanticSegmentation(
        SegformerConfig(**STAGES, decoder_hidden_size=8)
    ),
    "AutoModelForSequenceClassification": lambda: BertForSequenceClassification(
        BertConfig(**SIZES, vocab_size=20, max_position_embeddings=20)
    ),
}  # fmt: skip
CODE = """
import os, torch
os.environ["HF_MODULES_CACHE"] = os.path.join(os.getcwd(), "modules")
exec(open("load.py").read())
inputs = torch.load("inputs.pt")
asked = {name: value for name, value in inputs.items() if name == model.main_input_name}
with torch.no_grad():
    logits = model.eval()(**inputs).logits
    words = model.generate(**asked, max_new_tokens=4, do_sample=False) if model.can_generate() else None
torch.save((logits, words), "found.pt")
"""


def cut_unevenly(folder: Path) -> Traced:
    """The network in a folder, its sites cut to unlike numbers."""
    subject = open_traced(opening.open_network(folder))
    free = [site for site in subject.units().free() if site.count > 2]
    keep = {site.name: np.arange(site.count) >= 1 + number % 2 for number, site in enumerate(free)}
    return subject.cut(Selection(keep, {}))[0]


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of layers is looked for first, which takes seconds and does not fit these cuts."""
    monkeypatch.setattr(traced_cuts, "rebuild", lambda subject, original: None)
    monkeypatch.setattr(traced_cuts, "describe_cut", lambda subject, original: None)


@pytest.mark.parametrize("automatic", MODELS)
def test_a_network_cut_in_no_whole_units_loads_anywhere(automatic: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[automatic]().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    cut, small = cut_unevenly(tmp_path / "model"), tmp_path / "small"
    assert pretrained.is_rebuilt(cut, str(tmp_path / "model"))
    Network().save(cut, small)
    assert {"config.json", "modeling_secateur.py", "preprocessor_config.json"} <= {one.name for one in small.iterdir()}
    line = Network().load_line(small, "small")
    assert f'{automatic}.from_pretrained("small", trust_remote_code=True)' in line
    (tmp_path / "load.py").write_text(line)
    inputs = dict(cut.inputs.kwargs)
    torch.save(inputs, tmp_path / "inputs.pt")
    run_without_secateur(CODE, tmp_path)
    logits, words = torch.load(tmp_path / "found.pt", weights_only=True)
    again = secateur.load(small)
    with torch.no_grad():
        for model in (cut.model.eval(), again):
            torch.testing.assert_close(model(**inputs).logits, logits)
        if words is not None:
            asked = {again.main_input_name: inputs[again.main_input_name]}
            assert torch.equal(again.generate(**asked, max_new_tokens=4, do_sample=False), words)
    assert isinstance(backends.of_source(str(small)), Network), "to every command"


def test_a_tensor_that_its_class_makes_anew_is_written_every_time(tmp_path: Path, monkeypatch) -> None:
    """Marian's sinusoids of fewer channels are others than those that were kept."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(0)
    config = MarianConfig(**WORDS | {"pad_token_id": 19}, **HEADS, d_model=16, encoder_layers=1, decoder_layers=1,
                          max_position_embeddings=20, decoder_start_token_id=19, forced_eos_token_id=None)  # fmt: skip
    MarianMTModel(config).save_pretrained(tmp_path / "model")
    cut = cut_unevenly(tmp_path / "model")
    assert cut.model.model.encoder.embed_positions.weight.shape[1] < 16
    Network().save(cut, tmp_path / "0")
    for number in range(2):
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / str(number), trust_remote_code=True)
        torch.testing.assert_close(again(**cut.inputs.kwargs).logits, cut.model(**cut.inputs.kwargs).logits)
        again.save_pretrained(tmp_path / str(number + 1))


@pytest.mark.wide
def test_such_a_folder_is_cut_again_exported_and_refused_by_recipes_on_texts(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    MODELS["AutoModelForSequenceClassification"]().save_pretrained(tmp_path / "model")
    Network().save(cut_unevenly(tmp_path / "model"), tmp_path / "small")
    assert cli.main(["prune", str(tmp_path / "small"), "--budget", "params=90%", "--out", str(tmp_path / "less")]) == 0
    before, after = (secateur.load(tmp_path / name) for name in ("small", "less"))
    assert sum(one.numel() for one in after.parameters()) < sum(one.numel() for one in before.parameters())
    assert "secateur" in json.loads((tmp_path / "less" / "config.json").read_text())
    exporting.export(tmp_path / "less", "onnx", tmp_path / "onnx")
    capsys.readouterr()
    words = ["run", "magnitude", str(tmp_path / "small"), "--budget", "params=90%", "--data", "x", "--out", "out"]
    assert cli.main(words) == 2
    assert "was cut as a network and in no whole units, and magnitude goes by layers" in capsys.readouterr().err


def test_buffers_that_no_file_holds_come_along(tmp_path: Path) -> None:
    """Relative positions of the heads that stay."""
    torch.manual_seed(0)
    config = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 4], image_size=16, patch_size=4, window_size=2)
    SwinForImageClassification(config).save_pretrained(tmp_path / "model")
    cut = cut_unevenly(tmp_path / "model")
    Network().save(cut, tmp_path / "small")
    again = secateur.load(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(again(**cut.inputs.kwargs).logits, cut.forward().logits)


def test_where_modules_went_or_outputs_differ_there_is_no_such_folder(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    MODELS["AutoModelForImageClassification"]().save_pretrained(tmp_path / "model")
    cut = cut_unevenly(tmp_path / "model")
    assert reshaped.build(cut) is not None
    monkeypatch.setattr(reshaped, "differences", lambda one, other: 1.0)
    assert reshaped.build(cut_unevenly(tmp_path / "model")) is None
    monkeypatch.undo()
    cut.model.vit.layers[1].layernorm_after = torch.nn.Identity()
    assert reshaped.build(cut) is None


def test_whether_there_is_such_a_folder_is_asked_once(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    MODELS["AutoModelForImageClassification"]().save_pretrained(tmp_path / "model")
    compared, asked = reshaped.differences, []

    def spy(*outputs: object) -> float:
        asked.append(outputs)
        return compared(*outputs)

    monkeypatch.setattr(reshaped, "differences", spy)
    shares = "vit.layers.0.mlp.*=50%"
    secateur.run(cutting.prune, tmp_path / "model", None, "params=80%", out=tmp_path / "small", shares=shares)
    assert (tmp_path / "small" / "modeling_secateur.py").is_file()
    assert len(asked) == 1
    cut = cut_unevenly(tmp_path / "model")
    reshaped.build(cut)
    weight = cut.model.vit.layernorm.weight
    with torch.no_grad():
        weight.mul_(2)
    made = reshaped.build(cut)
    assert made is not None
    assert torch.equal(made.vit.layernorm.weight, weight), "one and the same"
    weight.data = torch.ones_like(weight)
    made = reshaped.build(cut)
    assert made is not None
    assert torch.equal(made.vit.layernorm.weight, weight), "asked anew"


def test_to_ask_for_such_a_folder_takes_no_memory_for_weights(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    MODELS["AutoModelForImageClassification"]().save_pretrained(tmp_path / "model")
    cut = cut_unevenly(tmp_path / "model")
    loaded, built = PreTrainedModel.load_state_dict, []

    def spy(model: PreTrainedModel, *args: object, **kwargs: object) -> object:
        built.append({one.device.type for one in model.parameters() if one.dim() == 2})
        return loaded(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "load_state_dict", spy)
    made = reshaped.build(cut)
    assert built == [{"meta"}]
    assert made is not None
    assert not any(one.is_meta for one in (*made.parameters(), *made.buffers()))


def test_such_a_folder_is_planned_as_it_is_or_refused_and_a_damaged_one_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS["AutoModelForSequenceClassification"]().save_pretrained(tmp_path / "model")
    cut, small = cut_unevenly(tmp_path / "model"), tmp_path / "small"
    Network().save(cut, small)
    shapes = {name: one.shape for name, one in loading.outline_any(small).named_parameters()}
    assert shapes == {name: one.shape for name, one in cut.model.named_parameters()}
    for read in (memory_plan.estimate, loading.open_outline):
        with pytest.raises(UnsupportedError, match="was cut as a network and in no whole units"):
            read(small)
    said = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(said | {"secateur": {"shapes": {}}}))
    for load in (secateur.load, loading.outline_any):
        with pytest.raises(ModelError, match=r'"secateur" in config\.json lacks numbers, buffers'):
            load(small)


def test_tables_of_positions_in_half_precision_are_as_the_class_computes_them(tmp_path: Path, monkeypatch) -> None:
    """In single precision first: those of a GPT-J that were computed in half turn long texts otherwise."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(0)
    config = GPTJConfig(**WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=640, rotary_dim=8)
    GPTJForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    cut = cut_unevenly(tmp_path / "model")
    rebuilt = reshaped.build(cut)
    assert rebuilt is not None
    there = dict(cut.model.named_buffers())
    for name, buffer in rebuilt.named_buffers():
        torch.testing.assert_close(buffer, there[name], atol=0, rtol=0)
