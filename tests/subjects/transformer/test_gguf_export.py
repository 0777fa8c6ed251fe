"""GGUF files, read by gguf's own reader and, where layers are alike, by transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import tiny
from secateur.errors import DataWarning, ModelError, UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer.gguf_export import to_gguf
from secateur.vocabulary import Selection
from subjects.tiny import make, without
from subjects.transformer.test_saving import cuts

gguf = pytest.importorskip("gguf", reason="the extra `gguf`")


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level merges, GPT-2's splitting, a chat template."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["</s>"], initial_alphabet=letters, show_progress=False
    )
    base.train_from_iterator(tiny.sentences(50), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=base, eos_token="</s>")
    made.chat_template = "{{ messages[0].content }}"
    return made


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_layers_alike_give_what_transformers_reads_back(tmp_path, name):
    subject = open_subject(tiny.model(name), tokenizer=bytes_tokenizer())
    subject.model.resize_token_embeddings(len(subject.tokenizer))
    small, _ = subject.cut(Selection({f"layers.{layer}.neurons": without(128, *range(40)) for layer in range(4)}))
    assert to_gguf(small, tmp_path) == ()
    said = fields(tmp_path / "model.gguf")
    assert said["general.architecture"] == name
    assert (said[f"{name}.feed_forward_length"], said[f"{name}.attention.head_count_kv"]) == (88, 2)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.chat_template"] == "{{ messages[0].content }}"
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
    config.head_dim = said[f"{name}.attention.key_length"]  # which transformers does not read of every architecture
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=config).eval()
    ids = small.example(2, 9)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small.model(ids).logits, atol=1e-5, rtol=1e-4)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read("the old tree grows").input_ids == small.tokenizer("the old tree grows").input_ids


def test_layers_of_their_own_widths_stand_as_arrays(tmp_path):
    subject = make("llama")
    small = cuts(subject)["mixed"]
    (note,) = to_gguf(small, tmp_path)
    assert note.startswith("GGUF can't hold its tokenizer (no tokenizer.json)")
    said, widths = fields(tmp_path / "model.gguf"), small.widths()
    assert said["general.architecture"] == "deci"
    assert said["deci.attention.head_count"] == [width.heads for width in widths]
    assert 0 in said["deci.attention.head_count"]
    assert said["deci.feed_forward_length"] == [width.neurons for width in widths]
    assert said["tokenizer.ggml.model"] == "none"


def test_rotary_positions_of_long_context_are_written_as_factors(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 5e5, "original_max_position_embeddings": 64, **scaling}
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, max_position_embeddings=512))
    wanted = model.model.rotary_emb.inv_freq.clone()
    to_gguf(open_subject(model.to(torch.bfloat16)), tmp_path)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    plain = 5e5 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / read["rope_freqs.weight"].data, wanted, rtol=1e-5)
    assert read["blk.0.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert read["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("gpt2", {}, r"a GPT2LMHeadModel can't be written as GGUF here: language models of llama, mistral"),
        ("qwen3", {"layers.0.neurons": without(40, 0)}, r"unequal widths .* this is a Qwen3ForCausalLM: cut all"),
        ("bert", {}, r"a BertModel can't be written"),
    ],
)
def test_what_gguf_can_not_hold_is_named(tmp_path, name, keep, words):
    cut, _ = make(name).cut(Selection(keep))
    with pytest.raises(UnsupportedError, match=words):
        to_gguf(cut, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_a_start(tmp_path):
    subject = open_subject(tiny.model("llama"), tokenizer=bytes_tokenizer())
    subject.model.resize_token_embeddings(len(subject.tokenizer))
    to_gguf(subject, tmp_path)
    with pytest.warns(DataWarning, match=r"model.gguf were quantised \(GGUF\) and are float32 from here on"):
        opened = open_subject(tmp_path / "model.gguf")
    small, _ = opened.cut(Selection({"layers": without(4, 2)}))
    small.save(tmp_path / "small")
    again = open_subject(tmp_path / "small")
    assert again.tokenizer("the old tree").input_ids == subject.tokenizer("the old tree").input_ids
    to_gguf(again, tmp_path / "again")  # transformers' tokenizer has tokens by now that the model has not
    wanted, _ = subject.cut(Selection({"layers": without(4, 2)}))
    batch = subject.example(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            again.forward(batch).prediction, wanted.forward(batch).prediction, atol=1e-5, rtol=1e-4
        )
    (tmp_path / "bad.gguf").write_bytes(b"no such thing")
    with pytest.raises(ModelError, match=r"bad.gguf can't be read as a GGUF language model"):
        open_subject(tmp_path / "bad.gguf")
