"""Sizes are counted on real models: by hand for FLOPs and parameters, and in a real cache."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from secateur.errors import MeasurementError, UnsupportedError
from secateur.measure import size

V, D, F, L, H, G = 100, 32, 64, 2, 4, 2
BATCH, LENGTH = 2, 16


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H,
        num_key_value_heads=G, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def batch():
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % V
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_parameters_count_both_embeddings_and_tied_ones_once(llama):
    counts = size.parameters(llama)
    assert counts["params"] == sum(p.numel() for p in llama.parameters())
    assert counts["embedding_params"] == 2 * V * D
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=D, n_layer=1, n_head=H, n_positions=8, bos_token_id=1, eos_token_id=1)
    )
    assert size.parameters(gpt2)["embedding_params"] == V * D + 8 * D


def test_flops_equal_the_count_by_hand_attention_included(llama, batch):
    tokens, head = BATCH * LENGTH, D // H
    linear = 2 * tokens * (L * (2 * D * D + 2 * D * G * head + 3 * D * F) + D * V)
    attention = L * BATCH * H * 2 * LENGTH * LENGTH * 2 * head
    assert size.flops(llama, batch) == linear + attention


def test_flops_agree_between_attention_kernels(llama, batch):
    eager = LlamaForCausalLM._from_config(llama.config, attn_implementation="eager").eval()
    assert size.flops(eager, batch) == pytest.approx(size.flops(llama, batch), rel=0.01)


def test_flops_restore_the_mode_of_every_module(batch):
    model = BertModel(
        BertConfig(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H)
    )
    model.train()
    model.pooler.eval()
    size.flops(model, batch)
    assert model.training
    assert not model.pooler.training
    assert model.embeddings.training


def test_flops_of_nothing_are_refused():
    with pytest.raises(MeasurementError, match="no matrix product"):
        size.flops(nn.Identity(), {"input": torch.ones(1)})


def test_training_counts_the_teachers_forward():
    assert size.training_flops(2.0, 5.0, steps=10) == 10 * (3 * 2.0 + 5.0)
    assert size.training_flops(2.0) == 6.0


def test_kv_cache_is_what_really_stands_in_it(llama, batch):
    assert size.kv_cache_bytes(llama, batch) == 2 * L * BATCH * G * LENGTH * (D // H) * 4
    half = LlamaForCausalLM(llama.config).to(torch.bfloat16).eval()
    assert size.kv_cache_bytes(half, batch) == size.kv_cache_bytes(llama, batch) / 2


def test_kv_cache_sees_a_sliding_window():
    config = Gemma2Config(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H, head_dim=8,
        num_key_value_heads=G, sliding_window=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    ids = torch.ones(1, 16, dtype=torch.long)
    held = size.kv_cache_bytes(Gemma2ForCausalLM(config).eval(), {"input_ids": ids})
    full = 2 * 2 * G * 16 * 8 * 4
    assert full / 2 < held < full


def test_kv_cache_of_an_encoder_is_refused(batch):
    config = BertConfig(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H)
    with pytest.raises(UnsupportedError, match="no KV cache: only decoders"):
        size.kv_cache_bytes(BertModel(config), batch)


def test_kv_cache_reads_the_older_tuples_and_name(batch):
    class Old(nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            keys = torch.zeros(1, 2, 3, 4)
            return type("Output", (), {"past_key_values": ((keys, keys + 1),)})()

    assert size.kv_cache_bytes(Old(), batch) == 2 * 24 * 4


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.up = nn.Conv2d(8, 4, 1, bias=False), nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.head = nn.Linear(2, 5)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn(self.a(x))), 2)
        return self.head(self.up(self.b(x)).mean((2, 3)))


def test_every_flop_is_counted_as_the_paper_counts():
    model, x = Small().eval(), torch.randn(2, 3, 6, 6)
    expected = {
        "a": 2 * 36 * 8 * 27 + 36 * 8,
        "bn": 2 * 36 * 8,
        "relu": 36 * 8,
        "pool": 9 * 8 * 4,
        "b": 2 * 9 * 4 * 8,
        "up": 2 * 9 * 4 * 2 * 4 + 36 * 2,
        "mean": 36 * 2,
        "head": 2 * 10 + 5,
    }
    assert size.every_flop(lambda: model(x)) == 2 * sum(expected.values())
    with torch.no_grad():
        model.a.weight[:4] = 0
    assert size.every_flop(lambda: model(x)) == 2 * sum(expected.values())
    assert size.every_flop(lambda: model(x), sparse=True) == 2 * (sum(expected.values()) - 36 * 8 * 27)


def test_every_flop_is_above_what_flops_counts_and_close_to_it():
    model, x = Small().eval(), torch.randn(2, 3, 6, 6)
    assert size.flops(lambda x: model(x), {"x": x}) < size.every_flop(lambda: model(x))


def test_the_products_of_experts_are_counted():
    """A token passes two of the four experts: three products of 32 by 24 each, the router, and attention."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    batch = {"input_ids": torch.randint(0, 64, (2, 8))}
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16) * 16 + 4 * 2 * 8 * 8 * 32
    expected = attention + 2 * 16 * (2 * 3 * 32 * 24 + 32 * 4) + 2 * 16 * 32 * 64
    counts = {}
    for kind in ("grouped_mm", "eager"):
        model.set_experts_implementation(kind)
        counts[kind] = size.flops(model, batch)
    assert counts == {"grouped_mm": expected, "eager": expected}


class Given(nn.Module):
    """A table that a module reads as its input, as DeBERTa's of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.second(self.table.weight).T


def test_a_parameter_may_be_what_a_module_is_given() -> None:
    model = Given()
    assert size.flops(model, {"x": torch.randn(3, 4)}) == 2 * (3 * 4 * 4 + 6 * 4 * 4 + 3 * 4 * 6)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(AssertionError, match="its own"):
        size.flops(fails, {})


def fails() -> None:
    raise AssertionError("its own")
