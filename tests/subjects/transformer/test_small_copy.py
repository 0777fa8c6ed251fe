"""Small copies have the structure of their originals."""

from __future__ import annotations

import pytest
import torch
import transformers

from secateur.errors import UnsupportedError
from secateur.subjects.transformer import small_copy
from secateur.subjects.transformer.small_copy import (
    copy_small,
    describe_error,
    find_stacks,
    plain_config,
    shrink_config,
)


def test_sizes_shrink_and_structure_stays() -> None:
    config = transformers.Gemma2Config(num_hidden_layers=26)
    small = shrink_config(config)
    assert (small.num_hidden_layers, small.hidden_size, small.num_attention_heads) == (2, 32, 4)
    assert small.num_key_value_heads == 2  # grouped, as the original is
    assert small.head_dim == 8
    assert small.layer_types == config.layer_types[:2]
    assert small.final_logit_softcapping == config.final_logit_softcapping


def test_equal_sizes_stay_equal() -> None:
    small = shrink_config(transformers.Qwen2MoeConfig(intermediate_size=1024, moe_intermediate_size=1024))
    assert small.intermediate_size == small.moe_intermediate_size


def test_a_head_as_large_as_the_states_stays_a_head() -> None:
    """A cut of channels leaves the heads as they are."""
    config = transformers.SmolLM3Config(hidden_size=16, head_dim=16, num_attention_heads=4)
    assert (shrink_config(config).head_dim, shrink_config(config).hidden_size) == (8, 32)


def test_a_copy_reads_tokens() -> None:
    with torch.device("meta"):
        model = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config())
    tokens = small_copy.make_tokens()
    logits = small_copy.run_model(copy_small(model), tokens).logits
    assert logits.shape == (*tokens.shape, small_copy.VOCABULARY)
    assert bool(logits.isfinite().all())


def test_a_copy_of_other_tensors_is_refused() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=61))
    model.transformer.h[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match=r"other tensors: transformer\.h\.\*\.extra\.bias is not in both"):
        copy_small(model)


def test_a_plain_config_says_nothing_of_a_cut() -> None:
    config = transformers.LlamaConfig(secateur={"layer_index": [0]}, quantization_config={"quant_method": "gptq"})
    plain = plain_config(config)
    assert not hasattr(plain, "secateur")
    assert getattr(plain, "quantization_config", None) is None


def test_an_error_is_its_first_line() -> None:
    assert describe_error(ValueError("one\ntwo")) == "one"
    assert describe_error(KeyError()) == "KeyError"
    assert describe_error(RuntimeError("in loading:\n\tMissing key(s): a\n\tmore")) == "in loading: Missing key(s): a"


def test_a_window_of_attention_is_shorter_than_what_is_read() -> None:
    """Of Gemma 3's layers all but every sixth see as far; the numbers of layers beside it stay."""
    assert shrink_config(transformers.Gemma3TextConfig(sliding_window=4096)).sliding_window < small_copy.TOKENS
    assert shrink_config(transformers.GPTNeoConfig()).window_size < small_copy.TOKENS
    assert shrink_config(transformers.Qwen2Config(max_window_layers=28)).max_window_layers == 28


def test_layers_of_another_model_inside_are_none_of_its_own() -> None:
    """Git's reader of images has as many layers here; its config is of another class."""
    vision = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    with torch.device("meta"):
        model = transformers.GitForCausalLM(transformers.GitConfig(vision_config=vision, num_hidden_layers=2))
    assert find_stacks(model) == ["encoder.layer"]


def test_layers_of_a_kind_share_a_list_with_an_entry_for_each() -> None:
    """Of Zamba2's hybrid layers, each has an adapter in the block that they share: a copy has one of them."""
    hybrid = [2, 5, 8]
    kinds = ["hybrid" if layer in hybrid else "mamba" for layer in range(9)]
    config = transformers.Zamba2Config(
        num_hidden_layers=9, num_mem_blocks=1, hybrid_layer_ids=hybrid, layer_types=kinds
    )
    with torch.device("meta"):
        model = transformers.Zamba2ForCausalLM(config)
    assert copy_small(model).config.hybrid_layer_ids == [1]


def test_a_number_of_layers_that_cannot_be_set_is_left_to_those_of_the_stacks() -> None:
    small = shrink_config(transformers.ProphetNetConfig())
    assert (small.num_encoder_layers, small.num_decoder_layers) == (2, 2)


def test_both_stacks_have_as_many_layers_as_are_asked_for_whatever_their_numbers_are_called() -> None:
    with torch.device("meta"):
        model = transformers.MoonshineForConditionalGeneration(shrink_config(transformers.MoonshineConfig(), range(3)))
    assert [len(model.base_model.get_submodule(path)) for path in small_copy.find_stacks(model)] == [3, 3]


def test_sections_of_a_head_add_up_to_half_a_small_one() -> None:
    ropes = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 24, 24]}
    config = transformers.Qwen2VLTextConfig(hidden_size=1024, num_attention_heads=8, rope_parameters=ropes)
    assert shrink_config(config).rope_parameters["mrope_section"] == [2, 1, 1]


def test_lists_by_layer_shrink_and_a_layer_finds_the_keys_that_it_shares() -> None:
    """Gemma 3n's last layers read keys and values of earlier ones, and every layer states its width and sparsity."""
    config = transformers.Gemma3nTextConfig(
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention", "full_attention"] * 2,
        intermediate_size=[96, 96, 48, 48, 48, 48],
        activation_sparsity_pattern=[0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
        num_kv_shared_layers=2,
    )
    small = shrink_config(config, [0, 1, 4])
    assert small.activation_sparsity_pattern == [0.9, 0.9, 0.0]
    wide, narrow = small.intermediate_size[0], small.intermediate_size[2]
    assert small.intermediate_size == [wide, wide, narrow]
    assert wide != narrow
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    copied = copy_small(model)
    shares = [not any("k_proj" in tensor for tensor in kind) for kind in small_copy.list_kinds(copied)]
    assert shares == [False, False, False, False, True]
    assert bool(small_copy.run_model(copied, small_copy.make_tokens()).logits.isfinite().all())


def test_a_size_that_the_class_works_out_stays_as_many_times_the_other() -> None:
    """An attention of Zamba 2 reads the states beside the embeddings: twice the hidden size, which no one can give."""
    config = transformers.Zamba2Config(
        hidden_size=48, num_attention_heads=6, n_mamba_heads=6, num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid"] * 2,
    )  # fmt: skip
    small = shrink_config(config)
    assert (config.attention_hidden_size, small.attention_hidden_size) == (96, 64)
    assert small.attention_head_dim == 2 * small.hidden_size // small.num_attention_heads
    with torch.device("meta"):
        model = transformers.Zamba2ForCausalLM(config)
    assert bool(small_copy.run_model(copy_small(model), small_copy.make_tokens()).logits.isfinite().all())
