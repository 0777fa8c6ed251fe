"""Sizes are counted on real models: by hand for FLOPs and parameters, and in a real cache."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
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
    with pytest.raises(UnsupportedError, match="only decoders"):
        size.kv_cache_bytes(BertModel(config), batch)


def test_kv_cache_reads_the_older_tuples_and_name(batch):
    class Old(nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            keys = torch.zeros(1, 2, 3, 4)
            return type("Output", (), {"past_key_values": ((keys, keys + 1),)})()

    assert size.kv_cache_bytes(Old(), batch) == 2 * 24 * 4
