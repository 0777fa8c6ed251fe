"""Encoders with a decoder, and decoders of theirs alone: derived, cut, saved as folders that transformers loads."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from secateur import cli, inspect
from secateur.data import texts
from secateur.errors import UnsupportedError
from secateur.measure import size
from secateur.runs.backends.language import Language
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks, shapes
from secateur.subjects.transformer.encoder_decoder import EncoderDecoder
from secateur.subjects.transformer.subject import count_positions
from secateur.vocabulary import Selection

SPECIAL = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
BART = SPECIAL | {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "T5": SPECIAL | {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2},
    # A table of positions in each layer, where T5 has one for all.
    "UMT5": SPECIAL | {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2},
    "Bart": BART | {"max_position_embeddings": 32, "forced_eos_token_id": None},
    "Whisper": BART
    | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    | {"suppress_tokens": None, "begin_suppress_tokens": None},
}


@cache
def make(name: str) -> EncoderDecoder:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES[name])
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():  # norms of one and biases of zero hide what they do
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    subject = open_subject(model)
    assert isinstance(subject, EncoderDecoder)
    return subject


def pick(subject: EncoderDecoder, kind: str) -> dict[str, np.ndarray]:
    """Every other unit of a kind, in other places from layer to layer."""
    sites = [site for site in subject.units().sites.values() if site.kind == kind]
    return {site.name: np.arange(site.count) % 2 == place % 2 for place, site in enumerate(sites)}


@pytest.mark.parametrize("name", SIZES)
def test_a_cut_equals_silencing_and_loads_without_secateur(name: str, tmp_path: Path) -> None:
    """Heads differ by layer, one sub-block of each kind is gone, the first attention among them."""
    subject = make(name)
    sites = subject.units().sites
    assert {"layers.0.heads", "layers.3.heads", "layers.3.cross.heads", "layers.4.neurons", "cross"} <= set(sites)
    assert "layers.0.cross.heads" not in sites
    every = np.arange(5)
    gone = {"attention": every > 0, "cross": every != 4, "ffn": every != 2}
    keep = Selection({**pick(subject, "heads"), **pick(subject, "neurons"), **gone})
    small, _ = subject.cut(keep)
    batch = subject.example(2, 9)
    given = small.forward(batch).prediction
    torch.testing.assert_close(given, subject.silence(keep).forward(batch).prediction, rtol=1e-4, atol=1e-5)
    count = sum(parameter.numel() for parameter in small.model.parameters())
    assert subject.units().cost(keep.keep)["params"] == small.units().cost()["params"] == count
    for one in (subject, small):  # a sound has as many frames as it has, whatever the length of the text
        inputs, predicted = one.arguments(batch), one.units(batch=2, length=9).cost()
        assert predicted["flops"] == size.flops(one.model, inputs)
    assert subject.units(batch=2, length=9).cost()["kv_cache"] == size.kv_cache_bytes(subject.model, inputs)
    small.save(tmp_path)
    assert subject.forward(subject.example(3, 9)).prediction.shape == (3, 9, 61)
    auto = AutoModelForSpeechSeq2Seq if name == "Whisper" else AutoModelForSeq2SeqLM
    loaded = auto.from_pretrained(tmp_path, trust_remote_code=True).eval()
    inputs = dict(small.arguments(batch))
    torch.testing.assert_close(loaded(**inputs).logits, small.model(**inputs).logits)
    source = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 1}
    written = [loaded.generate(**source, **options, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)
    again = open_subject(tmp_path)
    assert again.widths() == small.widths()
    heads = Selection({"layers.1.heads": np.arange(small.widths()[1].heads) == 1})  # of a result, too
    change = again.cut(heads)[0].forward(batch).prediction - again.silence(heads).forward(batch).prediction
    assert change.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_what_a_config_can_say_is_a_plain_folder(name: str, tmp_path: Path) -> None:
    subject = make(name)
    neurons = {site: np.arange(len(keep)) < 32 for site, keep in pick(subject, "neurons").items()}
    small, _ = subject.cut(Selection({**neurons, "layers": np.array([True, False, True, True, False])}))
    small.save(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert small.layer_index == (0, 2, 3)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    inputs = small.arguments(subject.example(2, 9))
    torch.testing.assert_close(loaded(**inputs).logits, small.model(**inputs).logits)


def test_a_result_is_cut_again() -> None:
    """As many heads in all layers, and fewer than the table of positions that they share has."""
    subject = make("T5")
    sites = subject.units().sites.values()
    heads, _ = subject.cut(Selection({site.name: np.arange(4) > 1 for site in sites if site.kind == "heads"}))
    keep = Selection({site.name: np.arange(64) < 32 for site in sites if site.kind == "neurons"})
    batch = subject.example(2, 9)
    small, silenced = heads.cut(keep)[0].forward(batch), heads.silence(keep).forward(batch)
    torch.testing.assert_close(small.prediction, silenced.prediction, rtol=1e-4, atol=1e-5)


def test_the_prediction_is_of_the_token_behind_and_padding_changes_nothing() -> None:
    subject = make("Bart")
    batch = {"input_ids": torch.arange(16).reshape(2, 8) + 3, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    given = subject.forward(batch, hidden=True)
    assert given.causal
    assert len(given.hidden) == 6
    assert count_positions(subject.model) == 32
    plain = subject.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).logits  # shifted by the class
    torch.testing.assert_close(given.prediction[:, :-1], plain[:, 1:])
    padded = {name: torch.nn.functional.pad(tensor, (0, 2)) for name, tensor in batch.items()}
    torch.testing.assert_close(subject.forward(padded).prediction[:, :7], given.prediction[:, :7], rtol=1e-4, atol=1e-5)


@pytest.mark.wide
def test_inspect_says_which_layers_stay_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.T5Config(**SIZES["T5"] | {"num_layers": 3, "num_decoder_layers": 3})
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    subject = open_subject(tmp_path)
    told = {name: row["reason"] for row in inspect(str(tmp_path))["stays"] for name in row["axes"]}
    layers = {name for name in told if name.startswith("layers.")}
    fixed = subject.units().sites["layers"].fixed
    assert fixed is not None
    assert layers == {f"layers.{number}" for number in np.flatnonzero(fixed)} == {f"layers.{n}" for n in range(4)}
    assert "the decoder may not become the deeper one" in told["layers.1"]
    assert told["layers.0"].startswith(
        "a cut of its layers fails in a small copy: T5ForConditionalGeneration has encoder.block.0."
    )
    assert told["layers.0"].endswith("relative_attention_bias.weight (32, 4) by its config, and none would be left")
    assert "channels" in told
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "stays: layers.1, layers.2: generation caches" in capsys.readouterr().out
    assert inspect(make("Bart"))["stays"] == []


def test_what_cannot_go_is_said_in_a_line() -> None:
    with pytest.raises(UnsupportedError, match="keeps none of layers 3 to 4"):
        make("Bart").cut(Selection({"layers": np.arange(5) < 3}))
    with pytest.raises(UnsupportedError, match="keeps 1 of the encoder's layers and 2 of the decoder's"):
        make("T5").cut(Selection({"layers": np.isin(np.arange(5), [0, 3, 4])}))
    with pytest.raises(UnsupportedError, match="channels of their own"):
        make("Whisper").units("channels")
    with pytest.raises(UnsupportedError, match="reads input_features, and texts have none"):
        make("Whisper").forward({"input_ids": torch.ones(1, 4, dtype=torch.long)})
    with pytest.raises(UnsupportedError, match=r"needs no data, such as `secateur prune FOLDER`$"):
        Language().fit_data(texts.read(["at once"]), make("Whisper"))


def test_pairs_of_layer_and_head_that_tell_times_follow_a_cut() -> None:
    subject = make("Whisper").copy()
    for keep, found in (
        ({"layers.4.cross.heads": np.array([False, True, False, True])}, [[1, 1], [0, 2]]),
        ({"layers": np.arange(5) != 3}, [[0, 3], [0, 2]]),
        ({"layers": np.arange(5) != 0, "layers.3.cross.heads": np.arange(4) == 2}, [[1, 3], [0, 0], [1, 2]]),
        ({"cross": np.arange(5) < 3}, None),
    ):
        subject.model.generation_config.alignment_heads = [[1, 3], [0, 2], [1, 2]]
        small, _ = subject.cut(Selection(keep))
        assert getattr(small.model.generation_config, "alignment_heads", None) == found
        assert subject.model.generation_config.alignment_heads == [[1, 3], [0, 2], [1, 2]]


@pytest.mark.wide
def test_heads_and_channels_go_together_where_positions_have_a_number_for_each_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES["T5"], tie_word_embeddings=False)
    subject = open_subject(transformers.T5ForConditionalGeneration(config).eval())
    keep = {f"layers.{layer}.heads": np.arange(4) > 0 for layer in range(5)}
    keep |= {f"layers.{layer}.cross.heads": np.arange(4) < 3 for layer in (3, 4)}
    heads, _ = subject.cut(Selection(keep))
    few, _ = subject.cut(Selection({"channels": np.arange(32) < 26}))  # which 4 heads don't divide
    both, _ = subject.cut(Selection(keep | {"channels": np.arange(32) < 26}))
    apart, _ = heads.cut(Selection({"channels": np.arange(32) < 26}))
    assert {"heads": both.widths()[0].heads, "channels": both.hidden_size} == {"heads": 3, "channels": 26}
    both.save(tmp_path)
    batch = subject.example(2, 7)
    given = open_subject(tmp_path).forward(batch).prediction
    torch.testing.assert_close(given, both.forward(batch).prediction)
    torch.testing.assert_close(given, apart.forward(batch).prediction)
    assert not torch.allclose(given, few.forward(batch).prediction)


def test_a_shape_drops_layers_of_the_decoder_and_heads_of_all_attentions() -> None:
    subject = make("Bart")
    assert shapes.removable_layers(subject.units()) == [3, 4]
    assert shapes.sizes(make("T5")) == {"layers": 5, "heads": 4, "neurons": 64, "channels": 32}


def test_no_decoder_becomes_deeper_than_an_encoder_whose_layers_its_cache_counts() -> None:
    subject = make("T5")
    assert "layers" not in subject.family.whole
    assert subject.units()["layers"].fixed.tolist() == [True, False, False, True, False]  # tables of positions stay
    alike, _ = subject.cut(Selection({"layers": np.arange(5) != 1}))
    assert alike.units()["layers"].fixed.tolist() == [True, True, True, False]
    assert shapes.removable_layers(alike.units()) == [3]
    assert not make("Bart").family.caches_by_encoder


def test_a_decoder_alone_has_numbers_of_its_own(tmp_path: Path) -> None:
    """Its config's common names speak of the encoder, which is not there."""
    config = transformers.BartConfig(**SIZES["Bart"] | {"encoder_attention_heads": 2})
    subject = open_subject(transformers.BartForCausalLM(config).eval())
    assert [(width.heads, width.neurons) for width in subject.widths()] == [(4, 64), (4, 64)]
    keep = Selection(
        {**{f"layers.{layer}.heads": np.arange(4) != layer for layer in range(2)}, "ffn": np.arange(2) > 0}
    )
    tokens = subject.example(2, 9)
    small = subject.cut(keep)[0]
    change = small.forward(tokens).prediction - subject.silence(keep).forward(tokens).prediction
    assert change.abs().max() < 1e-5
    small.model.config = copy.deepcopy(small.model.config)  # as some classes do (Pegasus), whereby "auto_map" is lost
    small.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(loaded(**tokens).logits, small.forward(tokens).prediction)
    assert "channels" in subject.layout.whole  # those of the cross-attentions, which never run, are as many


@pytest.mark.wide
def test_heads_of_other_sizes_in_encoder_and_decoder_are_refused():
    """Counted by one size, the encoder's would be cut across."""
    config = transformers.BartConfig(**BART | {"encoder_attention_heads": 2, "decoder_attention_heads": 8})
    told = "has 2 heads of 16 numbers each and its decoder 8 of 4, .* secateur prune cuts it"
    with pytest.raises(UnsupportedError, match=told):
        open_subject(transformers.BartForConditionalGeneration(config))


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_zeros_are_counted_in_layers_of_encoder_and_decoder_apart(name: str) -> None:
    subject = make(name)
    student = subject.copy()
    expected = dict[int, int]()
    for layer, path in enumerate(subject.layers()):
        for matrix in matrices(student.model, [path]).values():
            matrix.weight[: 1 + layer] = 0.0
            expected[layer] = expected.get(layer, 0) + (1 + layer) * matrix.weight.shape[1]
    cut = blocks.receipt(subject, student)
    found = dict[int, int]()
    for site, (gone, _) in cut.removed.items():
        layer = int(site.split(".")[1])
        found[layer] = found.get(layer, 0) + gone
    assert found == expected
    assert cut.before["weights"] - cut.after["weights"] == sum(expected.values())
    assert len(cut.removed) == len(matrices(subject.model, subject.layers()))
