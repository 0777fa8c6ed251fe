"""`secateur prune` on folders of transformers: what reads pixels, sound or texts, and comes back as a plain folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import secateur
from secateur import cli
from secateur.runs import backends, cutting
from secateur.runs.backends.network import Network
from secateur.subjects.network import opening, pretrained
from strangers import run_without_secateur

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
        T5Config(**SMALL, d_model=40, d_kv=8, d_ff=80, num_layers=1, num_heads=5, decoder_start_token_id=0)
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


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_comes_back_as_a_plain_folder(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("as it is")
    if kind == "pixels":
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    small = tmp_path / "small"
    budget = "channels=75%" if kind == "sound" else "params=75%"  # tokens and frames are most of so small a Whisper
    assert cli.main(["prune", str(tmp_path / "model"), "--budget", budget, "--out", str(small)]) == 0
    capsys.readouterr()
    assert (small / "LICENSE").read_text() == "as it is"
    assert (small / "preprocessor_config.json").is_file() == (kind == "pixels")
    torch.save(inputs := pretrained.make_inputs(model), tmp_path / "inputs.pt")
    run_without_secateur(CODE, tmp_path)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    again = pretrained.open_pretrained(small)
    now, before = (sum(one.numel() for one in each.parameters()) for each in (again, model))
    assert now <= 0.8 * before
    with torch.no_grad():
        torch.testing.assert_close(found, again(**inputs).logits)
    assert isinstance(backends.of_source(str(small)), Network) == (kind in ("pixels", "sound"))
    opening.open_network(small).forward()


def test_what_no_config_describes_is_kept_as_a_network_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS["pixels"]().save_pretrained(tmp_path / "model")
    shares = "vit.layers.0.mlp.*=50%"
    secateur.run(cutting.prune, tmp_path / "model", None, "params=75%", out=tmp_path / "small", shares=shares)
    assert json.loads((tmp_path / "small" / "cut.json").read_text())["built_by"] == str(tmp_path / "model")
    assert not (tmp_path / "small" / "config.json").exists()
    assert secateur.load(tmp_path / "small") is not None


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    MODELS["texts"]().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    capsys.readouterr()
    for source, words in (("empty", "names none"), ("cut", "is damaged or truncated"), ("./no", "no model at")):
        place = source if source.startswith(".") else str(tmp_path / source)
        assert cli.main(["prune", place, "--budget", "params=75%", "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert len(said.strip().splitlines()) == 1
