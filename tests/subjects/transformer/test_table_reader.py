"""Tables written by hand test those that are derived: of every family that has both, they say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import UnsupportedError
from secateur.formats import expert_tensors
from secateur.recipes.sparse.slimmoe import slimmoe
from secateur.recipes.sparse.stun import stun
from secateur.runs.backends import language
from secateur.subjects import open_subject
from secateur.subjects.transformer import families
from secateur.subjects.transformer.deriving import derive
from secateur.subjects.transformer.making import make_subject
from secateur.vocabulary import Budget
from subjects.tiny import MODELS, make

ALIKE = (
    "bert",
    "distilbert",
    "gpt2",
    "gpt2-scaled",
    "llama-tied-bias",
    "qwen3",
    "gemma2-untied",
    "gemma3",
    "phi3",
    "mixtral",
)
EXACT = (
    "kind", "layers", "attention", "layer", "neurons", "states_head_dim", "heads_divide", "conv1d", "norm_offset",
    "scaled_embedding", "qk_norms", "own_config", "experts", "whole", "states_neurons",
)  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_a_derived_table_is_the_one_written_by_hand(name: str) -> None:
    assert name in MODELS
    model = make(name).model
    derived, written = derive(model), families.FAMILIES[model.config.model_type]
    for field in EXACT:
        assert getattr(derived, field) == getattr(written, field), field
    if written.experts is None:
        assert derived.ffn == written.ffn
    else:
        assert (derived.ffn.module, derived.ffn.before) == (written.ffn.module, written.ffn.before)
    assert derived.shared.items() <= written.shared.items()
    assert set(derived.per_sequence) <= set(written.per_sequence)


def test_several_heads_in_one_axis_are_read_as_they_lie() -> None:
    config = transformers.GPTNeoXConfig(num_hidden_layers=4)
    with torch.device("meta"):
        model = transformers.GPTNeoXForCausalLM(config)
    assert derive(model).attention.tensors["attention.query_key_value"] == ("heads*3", "channels")


def test_experts_in_another_layout_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss has the numbers of gate and up in turns; who wants experts gone that do otherwise than said is told."""
    with torch.device("meta"):
        model = transformers.GptOssForCausalLM(transformers.GptOssConfig(num_hidden_layers=2))
    family = derive(model)
    assert not family.whole
    rows = ("experts", "expert_neurons*2")
    assert family.experts.tensors["mlp.experts.gate_up_proj"] == ("experts", "channels", "expert_neurons*2")
    assert family.experts.tensors["mlp.experts.gate_up_proj_bias"] == rows
    assert family.experts.tensors["mlp.experts.down_proj"] == ("experts", "expert_neurons", "channels")
    monkeypatch.setattr(expert_tensors, "neurons_of_rows", lambda module: torch.arange(expert_tensors.sizes(module)[2]))
    family = derive(model)
    subject, budgets = make_subject(model, family), [Budget.parse("params=80%")]
    assert [row["axes"] for row in language._list_lasting(subject)] == [["experts"]]
    for recipe in (slimmoe, stun):
        with pytest.raises(UnsupportedError, match=r"s experts.*mlp.experts is not .*; use (owl|minitron)$"):
            next(recipe(subject, Corpus(()), budgets, Run(tmp_path, {})))
    assert set(family.whole) == {"experts"}
    assert "mlp.experts is not [experts, gate and up, channels]" in family.whole["experts"]
    assert family.attention.tensors["self_attn.sinks"] == ("heads",)


@pytest.mark.wide
def test_the_width_of_a_shared_expert_is_no_count_of_them() -> None:
    with torch.device("meta"):
        model = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(num_hidden_layers=4))
    experts = derive(model).experts
    assert experts is not None
    assert (experts.shared_neurons, experts.shared_count) == ("shared_expert_intermediate_size", "")


def test_linears_of_a_class_of_their_own_are_linears() -> None:
    """As Falcon's, whose neurons were taken for the heads of a mixer."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    falcon = open_subject(transformers.FalconForCausalLM(transformers.FalconConfig(**sizes)))
    assert {name: site.count for name, site in falcon.units().sites.items() if site.kind == "neurons"} == {
        "layers.0.neurons": 128, "layers.1.neurons": 128,
    }  # fmt: skip
    assert not any("state" in site.kind for site in falcon.units().sites.values())
