"""What encoders of sounds read, and such encoders cut as families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCTC

from secateur import cli, run
from secateur.errors import UnsupportedError
from secateur.measure import size
from secateur.subjects import open_subject
from secateur.subjects.transformer import loading
from secateur.vocabulary import Selection


@pytest.mark.parametrize("name", ["Hubert", "Wav2Vec2"])
def test_an_encoder_of_sounds_is_cut_and_counted_by_the_frames_that_it_reads(tmp_path: Path, name: str) -> None:
    """Its convolution over positions is in groups, in whose order its channels stand: they stay."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        conv_dim=[16, 16], conv_kernel=[40, 20], conv_stride=[40, 20], num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    subject = open_subject(getattr(transformers, f"{name}ForCTC")(config).eval())
    assert subject.units().cost()["params"] == sum(p.numel() for p in subject.model.parameters())
    batch = subject.example(2, 9)
    assert (subject.kind, subject.source.tokens if subject.source else 0) == ("encoder", 16000 // 800)
    assert subject.units(batch=2).cost()["flops"] == size.flops(subject.model, batch)
    gone = {"layers.0.heads": np.arange(4) > 0, "layers.1.neurons": np.arange(48) < 24, "ffn": np.arange(2) > 0}
    keep = Selection(gone)
    small, _ = subject.cut(keep)
    given = small.forward(batch).prediction
    torch.testing.assert_close(given, subject.silence(keep).forward(batch).prediction, rtol=1e-4, atol=1e-5)
    assert small.units(batch=2).cost()["flops"] == size.flops(small.model, batch)
    small.save(tmp_path)
    loaded = AutoModelForCTC.from_pretrained(tmp_path, trust_remote_code=True).eval()
    torch.testing.assert_close(loaded(**batch).logits, given)
    fewer, _ = subject.cut(Selection({"layers": np.arange(2) > 0}))  # as many as there are convolutions
    assert (fewer.model.config.conv_dim, fewer.model.config.num_hidden_layers) == ([16, 16], 1)
    with pytest.raises(UnsupportedError, match="reads input_values, and texts have none"):
        subject.check_texts()


@pytest.mark.parametrize("name", ["HubertForCTC", "WhisperForConditionalGeneration", "ViTForImageClassification"])
def test_recipes_that_learn_from_texts_refuse_its_folder_before_weights_are_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = getattr(transformers, name)
    kind.config_class(architectures=[name]).save_pretrained(tmp_path / "model")  # and no weights
    (tmp_path / "texts.txt").write_text("a\nb\n")
    words = ["run", "minitron", str(tmp_path / "model"), "--budget", "params=50%", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--data", str(tmp_path / "texts.txt")]) == 2
    told = capsys.readouterr().err
    assert "reads sounds or images, and minitron works on texts: take a recipe on networks" in told
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_sounds_is_cut_by_itself_and_their_encoder_is_no_model_of_its_own(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=16, max_target_positions=24,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).encoder.save_pretrained(tmp_path / "encoder")
    for read in (open_subject, loading.read_any):
        with pytest.raises(UnsupportedError, match="holds a WhisperEncoder, a part that no automatic class"):
            read(tmp_path / "encoder")
    transformers.WhisperForCausalLM(config).save_pretrained(tmp_path / "decoder")
    subject = open_subject(tmp_path / "decoder")
    assert subject.kind == "decoder"
    assert {"layers.0.heads", "layers.1.neurons"} <= subject.units().sites.keys()


def test_a_recipe_on_networks_takes_a_model_of_sounds_by_its_folder(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10, vocab_size=8, num_labels=3,
        classifier_proj_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperForAudioClassification(config).save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(0)
    frames = draw.normal(size=(60, 8, 20)).astype(np.float32)
    np.savez(tmp_path / "frames.npz", inputs=frames, labels=np.arange(60) % 3)
    (row,) = run(
        "rethinking_pruning_value", str(tmp_path / "model"), str(tmp_path / "frames.npz"), "channels=75%",
        out=tmp_path / "out", epochs=1, scratch="none", batch=20,
    )  # fmt: skip
    assert row.after["params"].value < row.before["params"].value
    assert row.after["accuracy"].value >= 0
