"""GGUF files, read by gguf's own reader and, where layers are alike, by transformers'."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    SmolLM3ForCausalLM,
)

import secateur
import tiny
from secateur.errors import DataWarning, InputError, ModelError, UnsupportedError
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import gguf_export, loading
from secateur.subjects.transformer.gguf_export import to_gguf
from secateur.subjects.transformer.subject import Stored
from secateur.vocabulary import Selection
from subjects.tiny import make, without

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
    again = open_subject(tmp_path / "model.gguf").model
    assert again.config.head_dim == said[f"{name}.attention.key_length"] == 8, "transformers reads it of some alone"
    ids = small.example(2, 9)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small.model(ids).logits, atol=1e-5, rtol=1e-4)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read("the old tree grows").input_ids == small.tokenizer("the old tree grows").input_ids


def run_deci(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of tokens [S], by what llama.cpp does with a file of its architecture deci."""
    said, tensors = fields(path), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    read = {
        name: torch.from_numpy(np.array(gguf.dequantize(one.data, one.tensor_type))) for name, one in tensors.items()
    }
    size, epsilon = said["deci.attention.key_length"], said["deci.attention.layer_norm_rms_epsilon"]
    speeds = said["deci.rope.freq_base"] ** (-torch.arange(0, size, 2).float() / size)
    turns = torch.arange(len(ids))[:, None] * speeds / said.get("deci.rope.scaling.factor", 1.0)

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    def turn(x, heads):  # pairs side by side
        pairs = torch.view_as_complex(x.reshape(len(ids), heads, size // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.exp(1j * turns)[:, None]).flatten(-2)

    def count(name):
        value = said[f"deci.{name}"]
        return value if isinstance(value, list) else [value] * said["deci.block_count"]

    state = read["token_embd.weight"][ids]
    counts = zip(*map(count, ("attention.head_count", "attention.head_count_kv", "feed_forward_length")), strict=True)
    for layer, (heads, kv, neurons) in enumerate(counts):
        own = {name.split(".")[2]: one for name, one in read.items() if name.startswith(f"blk.{layer}.")}
        before = state
        if heads:
            x = norm(state, own["attn_norm"])
            q, k, v = turn(x @ own["attn_q"].T, heads), turn(x @ own["attn_k"].T, kv), x @ own["attn_v"].T
            k, v = (one.reshape(len(ids), kv, size).repeat_interleave(heads // kv, 1).transpose(0, 1) for one in (k, v))
            mixed = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True)
            state = state + mixed.transpose(0, 1).flatten(1) @ own["attn_output"].T
        if not neurons:
            state = before  # llama.cpp goes on with the next layer
            continue
        x = norm(state, own["ffn_norm"])
        state = state + (torch.nn.functional.silu(x @ own["ffn_gate"].T) * (x @ own["ffn_up"].T)) @ own["ffn_down"].T
    return norm(state, read["output_norm.weight"]) @ read.get("output.weight", read["token_embd.weight"]).T


def test_layers_of_their_own_widths_stand_as_arrays_and_give_the_same_outputs(tmp_path):
    keep = {"attention": without(3, 1), "ffn": without(3, 2), "layers.0.neurons": without(40, *range(8))}
    small, _ = make("llama").cut(Selection(keep | {"layers.2.heads": without(4, 0, 3)}))
    note, other, _ = to_gguf(small, tmp_path)
    assert note.startswith("layers 2 have no FFN and got one of 32 neurons that are zero")
    assert other.startswith("GGUF can't hold its tokenizer (no tokenizer.json)")
    said, widths = fields(tmp_path / "model.gguf"), small.widths()
    assert said["general.architecture"] == "deci"
    assert said["deci.attention.head_count"] == [width.heads for width in widths]
    assert 0 in said["deci.attention.head_count"]
    assert said["deci.feed_forward_length"] == [32, 40, 32]
    assert said["tokenizer.ggml.model"] == "none"
    ids = small.example(1, 9)["input_ids"]
    with torch.no_grad():
        wanted = small.model(ids).logits[0]
        torch.testing.assert_close(run_deci(tmp_path / "model.gguf", ids[0]), wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match=r"type `deci` but .* this architecture\): give its folder of safetensors"):
        open_subject(tmp_path / "model.gguf")


def wide_rope(kind: type, **scaling: object) -> PreTrainedModel:
    """A model of a class, with rotary positions of base 500,000 that reach further by `scaling`."""
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    rope = {"rope_theta": 5e5, **scaling}
    torch.manual_seed(0)
    config = kind.config_class(**shape, num_key_value_heads=2, rope_parameters=rope, max_position_embeddings=512)
    return kind(config)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}


def test_rotary_positions_of_long_context_are_written_as_factors(tmp_path):
    model = wide_rope(LlamaForCausalLM, **LLAMA3)
    wanted = model.model.rotary_emb.inv_freq.clone()
    to_gguf(open_subject(model.to(torch.bfloat16)), tmp_path)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    said = fields(tmp_path / "model.gguf")
    plain = said["llama.rope.freq_base"] ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / read["rope_freqs.weight"].data, wanted, rtol=1e-5)
    assert not any("rope.scaling" in key for key in said)
    assert read["blk.0.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert read["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("kind", [LlamaForCausalLM, Qwen2ForCausalLM])
def test_linear_positions_are_written_as_a_setting(tmp_path, kind):
    small = open_subject(wide_rope(kind, **LINEAR))
    if kind is LlamaForCausalLM:  # unlike layers, as `run_deci` reads
        small, _ = small.cut(Selection({"layers.0.neurons": without(24, 3)}))
    to_gguf(small, tmp_path)
    said = fields(tmp_path / "model.gguf")
    name = said["general.architecture"]
    assert said[f"{name}.rope.freq_base"] == 5e5
    assert (said[f"{name}.rope.scaling.type"], said[f"{name}.rope.scaling.factor"]) == ("linear", 4.0)
    assert not any("rope" in tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors)
    ids = torch.arange(9)
    if name == "deci":
        with torch.no_grad():
            wanted = small.model(ids[None]).logits[0]
        torch.testing.assert_close(run_deci(tmp_path / "model.gguf", ids), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (MistralForCausalLM, {"sliding_window": 4}, "its llama sees all of a text, and 2 of this model's 2 layers see"),
        (MistralForCausalLM, {"sliding_window": 512}, ""),
        (Qwen2ForCausalLM, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "qwen2 .* 1 of"),
        (Qwen2ForCausalLM, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, ""),
    ],
)
def test_a_window_that_llama_cpp_has_not_is_said(tmp_path, kind, settings, said):
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = kind.config_class(**shape, num_key_value_heads=2, max_position_embeddings=512, **settings)
    notes = [note for note in to_gguf(open_subject(kind(config)), tmp_path) if "more than 4 tokens" in note]
    assert len(notes) == bool(said)
    assert all(re.search(said, note) for note in notes)
    assert not any("sliding_window" in key for key in fields(tmp_path / "model.gguf"))


def small_model(kind: type, layers: int = 2, **settings: object) -> PreTrainedModel:
    """A model of a class, every weight drawn: norms and biases, too."""
    shape = dict(vocab_size=290, hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2)
    shape |= dict(max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    shape |= dict(num_hidden_layers=layers, attn_implementation="eager")
    torch.manual_seed(0)
    model = kind(kind.config_class(**shape | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "norm_topk_prob": True}
CAPPED = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}


def equal_logits(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    ids = torch.arange(3, 21).reshape(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Qwen3MoeForCausalLM, EXPERTS | {"moe_intermediate_size": 768}),
        (Gemma2ForCausalLM, {"head_dim": 256, "num_attention_heads": 1, "num_key_value_heads": 1}),
    ],
)
def test_experts_and_capped_logits_are_read_back_by_transformers_alone(tmp_path, kind, settings):
    """Which takes the defaults of a class for what it does not read: so these have them."""
    model = small_model(kind, **settings)
    assert to_gguf(open_subject(model), tmp_path)[0].startswith("GGUF can't hold its tokenizer")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", attn_implementation="eager")
    assert type(read) is kind
    equal_logits(model, read.eval())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Qwen3MoeForCausalLM, EXPERTS | {"moe_intermediate_size": 16}),
        (Gemma2ForCausalLM, CAPPED | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
        (Gemma2ForCausalLM, CAPPED | {"query_pre_attn_scalar": 12}),
    ],
)
def test_other_sizes_and_scales_than_the_defaults_are_read_back_here(tmp_path, kind, settings):
    subject = open_subject(small_model(kind, **settings), tokenizer=bytes_tokenizer())
    small, _ = subject.cut(Selection({"channels": without(32, *range(8))}))
    to_gguf(small, tmp_path)
    read = open_subject(tmp_path / "model.gguf").model
    read.set_attn_implementation("eager")
    equal_logits(small.model, read)


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """What a file says, and its tensors as floats."""
    tensors = gguf.GGUFReader(path).tensors
    return fields(path), {
        one.name: torch.from_numpy(np.array(gguf.dequantize(one.data, one.tensor_type))) for one in tensors
    }


def test_a_mixture_in_the_architecture_of_llama_has_its_experts_apart(tmp_path):
    model = small_model(MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2).to(torch.bfloat16)
    small, _ = open_subject(model).cut(Selection({f"layers.{layer}.experts": without(4, 1) for layer in range(2)}))
    to_gguf(small, tmp_path)
    said, read = read_gguf(tmp_path / "model.gguf")
    assert said["general.architecture"] == "llama"
    counts = ("feed_forward_length", "expert_count", "expert_used_count")
    assert [said[f"llama.{name}"] for name in counts] == [24, 3, 2]
    experts = small.model.model.layers[1].mlp.experts
    both = torch.cat([read["blk.1.ffn_gate_exps.weight"], read["blk.1.ffn_up_exps.weight"]], dim=1)
    torch.testing.assert_close(both, experts.gate_up_proj.float(), atol=0, rtol=0)
    torch.testing.assert_close(read["blk.1.ffn_down_exps.weight"], experts.down_proj.float(), atol=0, rtol=0)
    gate = next(one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors if "ffn_gate_inp" in one.name)
    assert gate.tensor_type == gguf.GGMLQuantizationType.F32
    assert read.keys() == {
        "token_embd.weight", "output.weight", "output_norm.weight",
        *(f"blk.{layer}.{part}.weight" for layer in range(2) for part in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate_inp", "ffn_gate_exps",
            "ffn_up_exps", "ffn_down_exps")),
    }  # fmt: skip


def test_layers_without_positions_stand_where_llama_cpp_has_them_or_are_refused(tmp_path):
    model = small_model(SmolLM3ForCausalLM, layers=4)
    to_gguf(open_subject(model), tmp_path)
    said, read = read_gguf(tmp_path / "model.gguf")
    assert (said["general.architecture"], said["smollm3.feed_forward_length"]) == ("smollm3", 24)
    rows = model.model.layers[0].self_attn.q_proj.weight.reshape(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
    torch.testing.assert_close(read["blk.0.attn_q.weight"], rows, atol=0, rtol=0)
    model.config.no_rope_layers = [1, 1, 0, 1]  # as after a cut of a layer
    with pytest.raises(UnsupportedError, match="has each 4th layer without positions, and the model layers 2:"):
        to_gguf(open_subject(model), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (LlamaForCausalLM, {"hidden_act": "gelu"}, "llama has silu in its FFN, and the model has gelu: out"),
        (Gemma2ForCausalLM, CAPPED | {"hidden_activation": "gelu"}, "gemma2 has gelu_pytorch_tanh in its FFN"),
        (Gemma2ForCausalLM, CAPPED | {"final_logit_softcapping": None}, "gemma2 caps logits, and the model does not"),
        (Gemma2ForCausalLM, CAPPED | {"use_bidirectional_attention": True}, "sees what comes before a token alone"),
        (Qwen3ForCausalLM, {"attention_bias": True}, r"qwen3 has no place for model.layers.0.self_attn.q_proj.bias"),
        (Qwen3MoeForCausalLM, EXPERTS | {"norm_topk_prob": False}, "shares of the chosen experts sum to 1, and the"),
        (Qwen3MoeForCausalLM, EXPERTS | {"mlp_only_layers": [0]}, "without experts and biases, and this is a Qwen3Moe"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, kind, settings, words):
    with pytest.raises(UnsupportedError, match=words):
        to_gguf(open_subject(small_model(kind, **settings)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_window_of_every_second_layer_is_written_and_another_order_is_said(tmp_path):
    model = small_model(Gemma2ForCausalLM, **CAPPED)
    assert not any("more than" in note for note in to_gguf(open_subject(model), tmp_path / "all"))
    assert fields(tmp_path / "all/model.gguf")["gemma2.attention.sliding_window"] == 6
    model.config.layer_types = ["full_attention", "sliding_attention"]
    (note,) = [note for note in to_gguf(open_subject(model), tmp_path / "odd") if "more than 6 tokens" in note]
    assert "its gemma2 sees all of a text in each 2nd layer alone, and 1 of this model's 2 layers see" in note


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR])
def test_positions_that_reach_further_are_read_back_here(tmp_path, scaling):
    model = small_model(LlamaForCausalLM, rope_parameters={"rope_theta": 1e3, **scaling})
    to_gguf(open_subject(model, tokenizer=bytes_tokenizer()), tmp_path)
    read = open_subject(tmp_path / "model.gguf").model
    assert {name: read.config.rope_parameters[name] for name in scaling} == pytest.approx(scaling)
    equal_logits(model, read)


def write_settings(file: Path, kind: str, said: dict[str, object], factors: list[float] | None = None) -> Path:
    """A GGUF file of hardly more than settings."""
    writer = gguf.GGUFWriter(file, kind)
    said = {"block_count": 2, "embedding_length": 32, "attention.head_count": 4, "attention.key_length": 8, **said}
    for name, value in said.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{kind}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.filterwarnings("error::secateur.errors.DataWarning")
def test_positions_of_layers_that_see_a_window_stay_as_they_are(tmp_path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 5e5}
    said = loading.read_config(write_settings(tmp_path / "gemma3.gguf", "gemma3", scaling)).rope_parameters
    assert said["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    assert said["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}


def test_factors_that_hold_still_what_the_class_does_are_no_other_reach(tmp_path):
    sizes = {"attention.key_length": 16, "attention.key_length_swa": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        config = loading.read_config(write_settings(tmp_path / "a.gguf", "gemma4", sizes, [1.0] * 2 + [1e30] * 6))
    assert config.rope_parameters["full_attention"]["rope_type"] == "proportional"
    layers = zip(config.layer_types, config.per_layer_config, strict=True)
    assert [(kind, one.head_dim) for kind, one in layers] == [("sliding_attention", 8), ("full_attention", 16)]
    with pytest.warns(DataWarning, match="reach further in a way that is not read"):
        loading.read_config(write_settings(tmp_path / "b.gguf", "gemma4", sizes, [1.0] * 3 + [1e30] * 5))


def pieces_tokenizer(**parts: object) -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind: merges, and bytes for what has no piece; `parts` of it are set."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("b", "c"), ("a", "b"), ("\u2581", "a")]
    vocab |= {piece: 259 + number for number, piece in enumerate([*map("".join, merges), *"\u2581abcd"])}
    base = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    for name, part in parts.items():
        setattr(base, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("more", [0, 50, -1])
def test_pieces_are_merged_by_their_scores(tmp_path, more):
    tokenizer = pieces_tokenizer()
    subject = open_subject(wide_rope(LlamaForCausalLM), tokenizer=tokenizer)
    subject.model.resize_token_embeddings(len(tokenizer) + more)
    assert to_gguf(subject, tmp_path) == ()
    said = fields(tmp_path / "model.gguf")
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(said["tokenizer.ggml.scores"]) == len(tokenizer) + more
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert kinds[:4] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.BYTE]
    assert kinds[len(tokenizer) :] == [gguf.TokenType.UNUSED] * max(0, more)
    scores = dict(zip(tokens, said["tokenizer.ggml.scores"], strict=True))
    assert [scores[piece] for piece in ("bc", "ab", "\u2581a", "\u2581", "</s>")] == [0, -1, -2, -3, 0]
    for text in ("abc", "aab", "a ab cab"):  # as llama.cpp does it: the pair of the best score, the leftmost first
        parts = list("\u2581" + text.replace(" ", "\u2581"))
        while places := [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]:
            place = min(places)[1]
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        assert parts == tokenizer.tokenize(text)


def test_bytes_to_fall_back_on_without_pieces_are_refused(tmp_path):
    odd = pieces_tokenizer(normalizer=None, pre_tokenizer=pre_tokenizers.Whitespace())
    with pytest.raises(UnsupportedError, match=r"is not of SentencePiece's kind .* export the model without a tok"):
        to_gguf(open_subject(wide_rope(LlamaForCausalLM), tokenizer=odd), tmp_path / "out")
    assert not (tmp_path / "out").exists()


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "qwen2"),
        (WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "llama-bpe"),
        (CASED + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", "tekken"),
        (r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+", "default"),
    ],
)
def test_the_whole_pattern_tells_how_text_is_split(tmp_path, pattern, name):
    tokenizer = bytes_tokenizer()
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bare])
    notes = to_gguf(open_subject(wide_rope(LlamaForCausalLM), tokenizer=tokenizer), tmp_path)
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == name
    assert [note for note in notes if "how its tokenizer splits" in note] == list(notes)
    assert bool(notes) == (name == "default")


@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, Qwen3ForCausalLM])
def test_positions_of_llama3_are_refused_where_llama_cpp_has_none(tmp_path, kind):
    with pytest.raises(UnsupportedError, match=r"for llama3's in models of llama and mistral, and those of this Qwen"):
        to_gguf(open_subject(wide_rope(kind, **LLAMA3)), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("gpt2", {}, r"a GPT2LMHeadModel can't be written as GGUF here: language models of llama, mistral"),
        ("qwen3", {"layers.0.neurons": without(40, 0)}, r"unequal widths .* this is a Qwen3ForCausalLM: cut all"),
        ("bert", {}, r"a BertModel can't be written"),
        ("llama", {"attention": without(3, 0)}, r"from layer 0: keep unit 0 of the attention site"),
    ],
)
def test_what_gguf_can_not_hold_is_named(tmp_path, name, keep, words):
    cut, _ = make(name).cut(Selection(keep))
    with pytest.raises(UnsupportedError, match=words):
        to_gguf(cut, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_eight_bits(file: Path, out: Path) -> None:
    """A copy of a GGUF file with the matrices in eight bits."""
    read, eight = gguf.GGUFReader(file), gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(out, read.fields["general.architecture"].contents())
    for name, field in read.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for one in read.tensors:
        values = gguf.dequantize(one.data, one.tensor_type)
        matrix = values.ndim > 1
        writer.add_tensor(
            one.name, gguf.quantize(values, eight) if matrix else values, raw_dtype=eight if matrix else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start(folder: Path, dtype: torch.dtype) -> Transformer:
    """A model with a tokenizer, and `model.gguf` of it in `folder`."""
    subject = open_subject(tiny.model("llama").to(dtype), tokenizer=bytes_tokenizer())
    subject.model.resize_token_embeddings(len(subject.tokenizer))
    to_gguf(subject, folder)
    return subject


def test_integers_are_floats_that_can_be_cut_or_are_measured_as_they_are_stored(tmp_path):
    subject = start(tmp_path / "floats", torch.float32)
    file = tmp_path / "model.gguf"
    write_eight_bits(tmp_path / "floats/model.gguf", file)
    with pytest.warns(DataWarning, match=r"model.gguf were quantised \(GGUF\) and are float32 from here on"):
        opened = open_subject(file)
    assert opened.stored is None
    ids = subject.example(2, 5)["input_ids"]
    with torch.no_grad():
        error = (opened.model(ids).logits - subject.model(ids).logits).abs().max()
    assert 1e-5 < error < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        held = open_subject(file, quantised=True)
    assert held.stored == Stored(8, float(file.stat().st_size))


@pytest.mark.filterwarnings("error::secateur.errors.DataWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_of_a_gguf_file_stay_as_they_are_with_what_lies_beside_them(tmp_path, dtype):
    start(tmp_path, dtype)
    (tmp_path / "LICENSE").write_text("do as you like")
    opened = open_subject(tmp_path / "model.gguf", quantised=True)
    assert (opened.model.dtype, opened.stored, opened.folder) == (dtype, None, tmp_path)
    opened.save(tmp_path / "small")
    assert (tmp_path / "small/LICENSE").read_text() == "do as you like"
    assert json.loads((tmp_path / "small/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    (tmp_path / "other.gguf").write_bytes((tmp_path / "model.gguf").read_bytes())
    assert open_subject(tmp_path / "other.gguf", dtype=torch.float32).folder is None  # whose licence is it?


def test_a_gguf_file_is_a_start(tmp_path):
    subject = start(tmp_path, torch.float32)
    with pytest.raises(InputError, match="which is read whole, and folders are split"):
        open_subject(tmp_path / "model.gguf", device_map="auto")
    opened = open_subject(tmp_path / "model.gguf")
    small, _ = opened.cut(Selection({"layers": without(4, 2)}))
    small.save(tmp_path / "small")
    place, _ = secateur.export(tmp_path / "small", "gguf")
    assert 'Llama("gguf/model.gguf")' in (place / "README.md").read_text()
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


def test_a_file_of_no_causal_language_model_is_refused_by_its_outline_too(tmp_path):
    file = tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(file, "t5")
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (loading.open_outline, loading.outline_any):
        with pytest.raises(ModelError, match=r"t5.gguf can't be read as a GGUF language model \(.* no causal .* of t5"):
            read(file)


@pytest.mark.parametrize("tokenizer", [None, tiny.letters, tiny.tokenizer])
def test_a_file_without_a_tokenizer_is_opened_without_one(tmp_path, tokenizer):
    """One of bytes has to have merges: llama.cpp reads no file without them."""
    subject = open_subject(small_model(LlamaForCausalLM), tokenizer=tokenizer and tokenizer())
    (note,) = to_gguf(subject, tmp_path)
    assert re.fullmatch(r"GGUF can't hold its tokenizer \(.*\): the file takes and gives token ids", note)
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.model"] == "none"
    opened = open_subject(tmp_path / "model.gguf")
    assert opened.tokenizer is None
    equal_logits(subject.model, opened.model)
    loading.copy_files(tmp_path / "model.gguf", tmp_path / "beside")
    assert not list(tmp_path.glob("beside/token*"))
    if tokenizer is not None:
        tokenizer().save_pretrained(tmp_path)
        read = open_subject(tmp_path / "model.gguf").tokenizer
        assert read("the tree").input_ids == tokenizer()("the tree").input_ids, "what lies beside the file is read"


def write_llama(writer, without=""):
    """The file of a small Llama, without one of its tensors; the model."""
    subject = open_subject(small_model(LlamaForCausalLM))
    gguf_export._write_shape(writer, subject, gguf_export._LLAMA)
    for name, tensor in gguf_export._name_tensors(subject, gguf_export._LLAMA):
        if name != without:
            writer.add_tensor(name, tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return subject


def test_a_tokenizer_that_transformers_does_not_read_is_left_out_with_a_warning(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(290)])
    subject = write_llama(writer)
    with pytest.warns(
        DataWarning, match=r"the tokenizer in .*model.gguf can't be read \(.*\): it is opened without one"
    ):
        opened = open_subject(tmp_path / "model.gguf")
    assert opened.tokenizer is None
    equal_logits(subject.model, opened.model)


def test_a_file_that_lacks_weights_is_not_opened(tmp_path):
    """transformers draws at random what a file does not have."""
    write_llama(gguf.GGUFWriter(tmp_path / "model.gguf", "llama"), without="blk.1.ffn_up.weight")
    with pytest.raises(
        ModelError, match=r"1 weights of LlamaForCausalLM are not in it, such as .*layers.1.mlp.up_proj"
    ):
        open_subject(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["deci", "smollm3", "mixtral"])
def test_what_llama_cpp_alone_reads_is_said_and_is_not_opened_with_other_weights(tmp_path, kind):
    """transformers would take a mixture for a Llama, with random weights in place of experts."""
    models = {
        "deci": lambda: tiny.model("llama"),
        "smollm3": lambda: small_model(SmolLM3ForCausalLM, layers=4),
        "mixtral": lambda: small_model(MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2),
    }
    subject = open_subject(models[kind](), tokenizer=bytes_tokenizer())
    subject.model.resize_token_embeddings(len(subject.tokenizer))
    if kind == "deci":
        subject, _ = subject.cut(Selection({"layers.0.neurons": without(128, 3, 4)}))
    (note,) = to_gguf(subject, tmp_path)
    assert re.match(r"the file is for llama.cpp alone: it can't be opened here again \(.*\), so keep the folder", note)
    why = "without its 4 experts" if kind == "mixtral" else ""
    with pytest.raises(ModelError, match=f"can't be read as a GGUF language model.*{why}"):
        open_subject(tmp_path / "model.gguf")
