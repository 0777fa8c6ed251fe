"""Every weight matrix is found once, seen as [d_out, d_in], and written through."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from secateur.errors import InputError
from secateur.subjects.matrices import masks_of, matrices, nonzero, receipt
from subjects.hybrids import make_hybrid

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4))


def test_blocks_of_a_llama_have_seven_matrices_each():
    found = matrices(llama(), ["model.layers.0", "model.layers.1"])
    assert len(found) == 14
    assert found["model.layers.1.mlp.down_proj.weight"].weight.shape == (16, 24)
    assert "lm_head.weight" not in matrices(llama())


def test_conv1d_is_turned_and_written_through():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    matrix = matrices(model, ["transformer.h.0"])["transformer.h.0.mlp.c_fc.weight"]
    assert matrix.weight.shape == (64, 16)
    matrix.weight[3] = 0.0
    assert not model.transformer.h[0].mlp.c_fc.weight[:, 3].any()


@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (mixtral, 0),
        (lambda: PhimoeForCausalLM(PhimoeConfig(**SMALL, num_local_experts=4)), 0),
        (lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8,
                                                    shared_expert_intermediate_size=12)), 3),
        (lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SMALL, n_routed_experts=4, moe_intermediate_size=8,
                                                        first_k_dense_replace=1, n_group=1, topk_group=1,
                                                        num_experts_per_tok=2)), 3),
        (lambda: make_hybrid("NemotronH-moe"), 2),
        (lambda: GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)), 0),
    ],
    ids=["mixtral", "phimoe", "qwen2_moe", "deepseek_v3", "without gates", "gpt_oss"],
)  # fmt: skip
def test_packed_experts_are_matrices_and_routers_are_not(make, shared):
    model = make()
    found = matrices(model, ["model.layers.1"])
    experts = [matrix for matrix in found.values() if matrix.expert is not None]
    assert len(experts) == 8
    assert not any("gate.weight" in name or "router" in name for name in found)
    assert sum("shared_expert" in name for name in found) == shared
    first = experts[0]
    assert first.weight.shape[1] == model.config.hidden_size, "as a linear has them, however they are stored"
    first.weight.zero_()
    assert not first.parameter[0].any()
    plain = model.config.model_type == "nemotron_h"
    assert first.leaf == f"model.layers.1.{'mixer.experts.up_proj' if plain else 'mlp.experts.gate_up_proj'}"


def test_tied_matrices_stand_once():
    linear = nn.Linear(4, 4)
    assert list(matrices(nn.Sequential(linear, nn.ReLU(), linear))) == ["0.weight"]
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(matrices(model)) == ["0.weight"]


def test_convolutions_are_matrices_over_channels_and_kernel():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    found = matrices(model)
    assert list(found) == ["0.weight"]
    assert found["0.weight"].weight.shape == (8, 27)


def test_receipts_count_zeros_and_masks_have_the_parameters_shape():
    before, after = mixtral(), mixtral()
    after.load_state_dict(before.state_dict())
    ours = matrices(after, ["model.layers.0"])
    for matrix in ours.values():
        matrix.weight[:, ::2] = 0.0
    cut = receipt(matrices(before, ["model.layers.0"]), ours)
    assert cut.removed["layers.0.mlp_experts_down_proj"] == (4 * 16 * 12, 4 * 16 * 24)
    assert cut.after["weights"] == cut.before["weights"] / 2 == nonzero(ours)
    assert not cut.is_noop
    masks = masks_of(ours)
    assert masks["model.layers.0.mlp.experts.down_proj"].shape == (4, 16, 24)
    assert receipt(ours, ours).is_noop
    with pytest.raises(InputError, match="one of the two"):
        receipt(matrices(before), ours)


def test_views_of_gradients_and_masks_agree_with_the_weight():
    for matrix in matrices(mixtral()).values():
        assert matrix.view(torch.zeros_like(matrix.parameter)).shape == matrix.weight.shape
