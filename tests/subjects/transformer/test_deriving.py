"""Families that nobody wrote down: derived, proved, kept on the disk, and cut like the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

from secateur.errors import UnsupportedError
from secateur.formats import expert_tensors, reload
from secateur.measure import size
from secateur.score import hessian
from secateur.subjects import Moe, Transformer, open_subject
from secateur.subjects.network import coupling
from secateur.subjects.transformer import blocks, deriving, families, layout, shapes
from secateur.subjects.transformer.costs import Profile
from secateur.subjects.transformer.deriving import derive, find_family, prove
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.small_copy import copy_small
from secateur.vocabulary import Selection
from subjects.hybrids import HYBRIDS, make_hybrid

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


SPARSE: dict[str, Any] = {
    "num_key_value_heads": 4,
    "index_n_heads": 3,
    "index_head_dim": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 4,  # experts are multiplied by an operator that is not counted
    "mlp_layer_types": ["dense"] * 4,
}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(deriving, "_known", {})


def smollm3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.SmolLM3Config(**SMALL, num_key_value_heads=2)
    return transformers.SmolLM3ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("architecture", "config", "kind"),
    [
        (transformers.SmolLM3Model, transformers.SmolLM3Config, "decoder"),
        (transformers.SmolLM3ForSequenceClassification, transformers.SmolLM3Config, "decoder"),
        (transformers.ElectraModel, transformers.ElectraConfig, "encoder"),
    ],
)
def test_a_decoder_is_told_by_what_its_tokens_see_and_not_by_its_head(
    architecture: type[PreTrainedModel], config: type[transformers.PretrainedConfig], kind: str
) -> None:
    assert derive(architecture(config(**SMALL))).kind == kind


def test_a_cut_of_a_derived_family_loads_without_secateur(tmp_path: Path) -> None:
    """Sizes differ by layer, and the folder is read by transformers alone."""
    subject = open_subject(smollm3())
    sites = subject.units().sites
    assert {"layers.0.heads", "layers.1.kv_groups", "layers.2.neurons", "channels", "layers"} <= set(sites)
    keep = {"layers.0.neurons": torch.arange(48) < 24, "layers.1.heads": torch.tensor([True, False, True, False])}
    small, _ = subject.cut(Selection({name: stays.numpy() for name, stays in keep.items()}))
    small.save(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    tokens = subject.example(2, 9)
    torch.testing.assert_close(loaded(**tokens).logits, small.forward(tokens).prediction)
    again = open_subject(tmp_path / "small")
    assert again.family == subject.family
    assert [width.neurons for width in again.widths()] == [24, 48, 48]


def test_a_result_of_a_class_without_a_setting_for_its_neurons_opens_again(tmp_path: Path) -> None:
    """Its config has one from then on, which the class does not read."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)
    subject = open_subject(transformers.BloomForCausalLM(config).eval())
    sites = {name: site.count for name, site in subject.units().sites.items() if site.kind == "neurons"}
    small, _ = subject.cut(Selection({name: np.arange(count) % 2 == 0 for name, count in sites.items()}))
    small.save(tmp_path / "small")
    again, batch = open_subject(tmp_path / "small"), small.example(2, 7)
    assert again.family.neurons == small.family.neurons
    with torch.no_grad():
        assert torch.equal(again.forward(batch).prediction, small.forward(batch).prediction)


def test_deriving_leaves_the_users_random_numbers_as_they_were() -> None:
    model = smollm3()
    before = torch.get_rng_state()
    derive(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_derived_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    architecture, config = transformers.SmolLM3ForCausalLM, smollm3().config
    found = find_family(architecture, config)
    (kept,) = (tmp_path / "cache" / "families").iterdir()
    monkeypatch.setattr(deriving, "_known", {})
    monkeypatch.setattr(deriving, "derive", lambda model: pytest.fail("derived twice"))
    assert find_family(architecture, config) == found
    monkeypatch.undo()
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(deriving, "_known", {})
    kept.write_text('{"model_type": 3}')  # damaged, or of another version
    assert find_family(architecture, config) == found


@pytest.mark.parametrize("source", [deriving, coupling, expert_tensors])
def test_what_other_code_derived_is_not_used(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    known, read = deriving._digest(), Path.read_bytes

    def read_changed(path: Path) -> bytes:
        return read(path) + (b"# changed" if path == Path(str(source.__file__)) else b"")

    monkeypatch.setattr(Path, "read_bytes", read_changed)
    assert deriving._digest.__wrapped__() != known


@pytest.mark.parametrize(
    ("architecture", "more", "whole"),
    [
        ("Olmo2ForCausalLM", {}, {"heads", "channels"}),  # its query norm runs over all heads at once
        ("XGLMForCausalLM", {"d_model": 32, "ffn_dim": 48}, {"channels"}),  # positions are added that are no weights
        ("DogeForCausalLM", {}, {"heads"}),  # it has weights on the residual stream that are no module's
        ("BertGenerationDecoder", {"is_decoder": True}, set()),  # a language model by another name
        ("MraForMaskedLM", {"max_position_embeddings": 64}, {"channels"}),  # an attention that is none of ours
    ],
)
def test_an_axis_that_fails_stays_whole_with_the_reason(
    architecture: str, more: dict[str, Any], whole: set[str]
) -> None:
    kind = getattr(transformers, architecture)
    with torch.device("meta"):
        model = kind(kind.config_class(**SMALL | more))
    found = derive(model).whole
    assert found.keys() - {"attention", "layers", "ffn", "mixer"} == whole


def test_what_a_router_hands_to_the_next_is_no_residual_stream() -> None:
    """Zaya's routers have a stream of their own, all of which can be cut; its layers' can't."""
    config = transformers.ZayaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_experts=4, moe_intermediate_size=16, router_hidden_size=8, layer_types=["hybrid"] * 2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.ZayaForCausalLM(config)
    found = derive(model)
    assert [block.kind for block in found.blocks] == ["attention"]
    assert found.whole["channels"] == "no channels run through all its layers"


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("AriaTextForCausalLM", {"moe_num_experts": 4, "moe_topk": 3, "num_key_value_heads": 2}),
        ("GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 3, "num_key_value_heads": 2}),
    ],
)
def test_experts_with_inputs_before_outputs_are_units(architecture: str, more: dict[str, Any]) -> None:
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    subject = open_subject(kind(kind.config_class(**SMALL | more)).eval())
    assert not subject.family.whole
    site = subject.units().sites["layers.0.experts"]
    assert (site.count, site.minimum) == (4, 3), "the router gives a token three, whatever the config calls them"
    keep = {"layers.0.expert_neurons": np.arange(4 * 48) % 3 > 0, "layers.1.experts": np.arange(4) > 0}
    assert find_change(subject, keep) < 1e-5


@pytest.mark.wide
def test_a_number_that_is_no_count_of_experts_stays_in_layers_of_other_widths() -> None:
    """openai_privacy_filter multiplies by `num_experts`, which is that of a token."""
    config = transformers.OpenAIPrivacyFilterConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2, head_dim=8
    )
    torch.manual_seed(0)
    model = transformers.OpenAIPrivacyFilterForTokenClassification(config).eval()
    found = derive(model)
    assert found.experts is not None
    assert not found.whole.keys() & {"heads", "kv_groups", "ffn", "experts", "expert_neurons"}
    assert find_change(open_subject(model), {"layers.1.heads": np.array([True, False, True, False])}) < 1e-5


def test_experts_of_llama_4_lose_weights_and_stay_as_they_are_otherwise(tmp_path: Path) -> None:
    """They are called with states of their own, and not told which experts a token passes."""
    config = transformers.Llama4TextConfig(
        **SMALL, intermediate_size_mlp=56, num_local_experts=4, num_experts_per_tok=1, num_key_value_heads=2, head_dim=8
    )
    subject = open_subject(transformers.Llama4ForCausalLM(config).eval())
    assert not isinstance(subject, Moe)
    assert "is not told which experts each token passes" in subject.family.whole["experts"]
    batch = {"input_ids": torch.randint(0, 40, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    batch["attention_mask"][0, 7:] = 0
    real, seen = batch["attention_mask"].flatten().bool(), list[Tensor]()
    for block in blocks.visit(subject, [batch], tmp_path, store=False):
        experts = [m for m in block.matrices.values() if m.expert is not None]
        assert len(experts) == 8
        hook = block.module.feed_forward.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        found = block.read(hessian.Moments)
        hook.remove()
        for matrix in experts[:4]:  # the first matrices of each expert
            own = seen[-1].view(4, -1, 32)[matrix.expert or 0]
            sent = own[(own.abs().sum(-1) > 0) & real]
            assert found[matrix.name].rows == len(sent)
            if len(sent):
                torch.testing.assert_close(found[matrix.name].value(""), 2 * sent.T @ sent / len(sent))


@pytest.mark.wide
def test_a_list_of_experts_of_a_token_counts_by_its_most() -> None:
    config = transformers.HunYuanMoEV1Config(
        **SMALL, num_experts=4, moe_topk=[2, 2, 3], num_key_value_heads=2, head_dim=8
    )
    assert open_subject(transformers.HunYuanMoEV1ForCausalLM(config).eval()).layout.chosen == 3


def test_experts_of_which_a_token_passes_nobody_knows_how_many_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHOSEN", ())
    config = transformers.GptOssConfig(**SMALL, num_local_experts=4)
    found = derive(transformers.GptOssForCausalLM(config)).whole
    assert found == {"experts": "its config says by no known name how many experts a token passes"}


def test_a_table_that_is_wrong_is_not_believed() -> None:
    wrong = replace(families.FAMILIES["llama"], norm_offset=1.0)
    assert prove(smollm3(), wrong).whole == {"channels": "a cut of its channels gives other outputs than silencing"}


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        # Its class gives every few layers heads of another size.
        (
            "Gemma4ForCausalLM",
            {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16}
            | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61},
        ),
    ],
)
def test_what_layers_have_of_their_own_stays_when_neurons_go(
    architecture: str, more: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    subject = open_subject(kind(kind.config_class(**SMALL | {"num_hidden_layers": 2} | more)).eval())
    width = subject.widths()[0].neurons
    for keep in (
        {"layers.1.neurons": np.arange(width) < 24},
        {f"layers.{n}.neurons": np.arange(width) < 24 for n in (0, 1)},
    ):
        assert find_change(subject, keep) < 1e-5
        small = subject.cut(Selection(keep))[0]
        small.save(tmp_path / "small")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
        tokens = subject.example(2, 9)
        torch.testing.assert_close(loaded(**tokens).logits, small.forward(tokens).prediction)


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("AlbertForMaskedLM", "AlbertConfig", "has 0 lists of 12 layers .*, as where layers share their weights"),
        ("JetMoeForCausalLM", "JetMoeConfig", "fits no table of attentions, FFNs and mixers: its layers have none"),
        ("Gemma3ForConditionalGeneration", "Gemma3Config", "cut a part of it, --part language_model"),
    ],
)
def test_what_fits_no_table_is_said_in_a_line(architecture: str, config: str, said: str) -> None:
    kind, made = getattr(transformers, architecture), getattr(transformers, config)()
    with pytest.raises(UnsupportedError, match=said) as raised:
        find_family(kind, made)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("BloomForCausalLM", {}),  # its attention is no sub-block
        ("DiffLlamaForCausalLM", {}),  # weights meet the values of all heads twice
        ("MiMoV2FlashForCausalLM", {"v_head_dim": 24, "head_dim": 16, "num_key_value_heads": 2, "hidden_size": 64}),
        (
            "LagunaForCausalLM",
            {"num_attention_heads_per_layer": [8, 4, 8, 4], "head_dim": 16, "num_key_value_heads": 2},
        ),
        ("DeepseekV32ForCausalLM", SPARSE),  # what ranks tokens for an attention has heads of its own
        ("GlmMoeDsaForCausalLM", SPARSE | {"indexer_types": ["full", "shared", "full", "full"]}),
    ],
)
def test_flops_of_attentions_are_those_that_are_counted(
    architecture: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """By the sizes of values and the heads that layers have, and by what else grows with the square of the length."""
    kind = getattr(transformers, architecture)
    config = kind.config_class(**SMALL | {"num_hidden_layers": 4} | more)
    subject = make_subject(kind(config).eval(), find_family(kind, config))
    sites = subject.units().sites.keys() - subject.layout.whole.keys()
    free = [kind for kind in ("layers", "ffn", "attention") if kind in sites]
    cut, *more_cuts = (subject.cut(Selection({kind: np.arange(4) != 1}))[0] for kind in free)
    cut.save(tmp_path)
    for one in (subject, cut, *more_cuts, open_subject(tmp_path)):
        found = [size.flops(one.model, one.example(1, length)) for length in (16, 32)]
        assert [one.units(length=length).cost()["flops"] for length in (16, 32)] == found


def test_layers_with_experts_in_each_may_go() -> None:
    """Llama 4 lists the numbers of those that have some, which are as many as there are layers."""
    sizes = {"head_dim": 16, "num_key_value_heads": 2, "num_local_experts": 4, "intermediate_size_mlp": 96}
    config = transformers.Llama4TextConfig(**SMALL | {"num_hidden_layers": 4}, **sizes, interleave_moe_layer_step=1)
    assert config.moe_layers == [0, 1, 2, 3]
    assert "layers" not in find_family(transformers.Llama4ForCausalLM, config).whole


def find_change(subject: Transformer, keep: dict[str, np.ndarray]) -> float:
    """By how much a cut differs from silencing, in parts of the largest output."""
    tokens, selection = subject.example(2, 9), Selection(keep)
    both = subject.cut(selection)[0], subject.silence(selection)
    cut, silenced = (one.forward(tokens).prediction.detach() for one in both)
    return float((cut - silenced).abs().max() / silenced.abs().max())


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("GPTNeoX", {}),
        ("GPTNeo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}),
    ],
)
def test_generation_without_an_attention_goes_on_behind_the_cache(name: str, more: dict[str, Any]) -> None:
    """Whatever the argument is called by which a layer gets it."""
    torch.manual_seed(0)
    kind, config = (getattr(transformers, f"{name}{part}") for part in ("ForCausalLM", "Config"))
    sizes = {setting: value for setting, value in SMALL.items() if setting != "num_hidden_layers"}
    model = kind(config(**sizes | (more or {"num_hidden_layers": 2}))).eval()
    subject = open_subject(model)
    small, _ = subject.cut(Selection({"attention": np.array([False, True])}))
    tokens = subject.example(2, 9)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    with torch.no_grad():
        whole = small.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, -1]
        before = small.model(input_ids=tokens[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
        behind = small.model(input_ids=tokens[:, 8:], attention_mask=mask, past_key_values=before).logits[:, -1]
    torch.testing.assert_close(behind, whole, rtol=1e-4, atol=1e-5)


def test_an_attention_without_which_the_cache_goes_wrong_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "Cache", np.ndarray)  # what is removed leaves no mark
    found = prove(smollm3(), families.FAMILIES["llama"])
    assert found.whole["attention"].startswith("without one, a step behind its cache ")


def test_a_users_own_class_is_no_class_of_transformers() -> None:
    class Mine(transformers.LlamaForCausalLM):
        """With a forward pass of its own, which a cut would not have."""

    model = Mine(transformers.LlamaConfig(**SMALL))
    with pytest.raises(UnsupportedError, match="Mine is no class of transformers' own"):
        open_subject(model)


def test_a_first_layer_unlike_the_others_stays() -> None:
    """That of ModernBERT has no norm before its attention."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**SMALL | {"num_hidden_layers": 4}, cls_token_id=1, sep_token_id=2)
    subject = open_subject(transformers.ModernBertForMaskedLM(config).eval())
    site = subject.units()["layers"]
    assert not site.frozen
    assert np.asarray(site.fixed).tolist() == [True, False, False, False]
    assert shapes.removable_layers(subject.units()) == [1, 2, 3]
    assert find_change(subject, {"layers": np.arange(4) != 1}) < 1e-5
    with pytest.raises(UnsupportedError, match="layer 0 of this modernbert model can't go"):
        subject.cut(Selection({"layers": np.arange(4) > 0}))


def test_layers_of_which_none_could_be_tried_stay() -> None:
    with torch.device("meta"):
        model = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(num_hidden_layers=1))
    assert derive(model).whole == {"layers": "the loss of none of them can be tried on a small copy"}


@pytest.mark.wide
def test_the_loss_of_layers_is_tried_on_kinds_that_stand_far_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gemma 3n's last layers have no keys of their own: the loss of those that they read must be seen."""

    def note(model: PreTrainedModel, layers: Sequence[int] = ()) -> PreTrainedModel:
        chosen.append(list(layers))
        return copy_small(model, layers)

    chosen = list[list[int]]()
    monkeypatch.setattr(deriving, "copy_small", note)
    config = transformers.Gemma3nTextConfig(num_hidden_layers=30, num_kv_shared_layers=10)
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    whole = derive(model).whole
    assert chosen == [[], [0, 1, 2, 3, 4, 5, 20, 21]]
    assert "layers" in whole
    assert "ffn" not in whole


def test_a_list_with_an_entry_for_each_head_leaves_layers_and_neurons_free() -> None:
    """StableLM may have a norm for each head: a small copy has fewer of them."""
    torch.manual_seed(0)
    config = transformers.StableLmConfig(
        **SMALL | {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6}, qk_layernorm=True
    )
    subject = open_subject(transformers.StableLmForCausalLM(config).eval())
    assert subject.family.whole["heads"] == "the rows of its attention's linears can't be told apart by heads"
    assert find_change(subject, {"layers": np.arange(3) != 1, "layers.0.neurons": np.arange(48) < 40}) < 1e-5


@pytest.mark.parametrize("even", [True, False])
def test_a_list_of_widths_says_what_is_left_where_all_are_alike(even: bool, tmp_path: Path) -> None:
    config = transformers.Gemma3nTextConfig(
        **SMALL | {"intermediate_size": [48] * 3}, num_key_value_heads=2, head_dim=8, vocab_size_per_layer_input=61,
        hidden_size_per_layer_input=16, laurel_rank=8, num_kv_shared_layers=0, altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 3, layer_types=["full_attention"] * 3,
    )  # fmt: skip
    torch.manual_seed(0)
    subject = open_subject(transformers.Gemma3nForCausalLM(config).eval())
    keep = {f"layers.{number}.neurons": np.arange(48) < (40 if even or number else 24) for number in range(3)}
    assert find_change(subject, keep) < 1e-5
    small = subject.cut(Selection(keep))[0]
    small.save(tmp_path / "small")
    tokens = torch.randint(3, 61, (2, 9))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=not even)
    assert (type(again) is transformers.Gemma3nForCausalLM) == even
    assert torch.equal(again(tokens).logits, small.model(tokens).logits)


def test_weights_that_layers_share_keep_their_units() -> None:
    """The FFN of Zamba 2 stands in several layers: what goes in one of them would go in all."""
    config = transformers.Zamba2Config(
        hidden_size=48, num_attention_heads=6, n_mamba_heads=6, num_hidden_layers=4, use_shared_attention_adapter=True,
        layers_block_type=["linear_attention", "hybrid"] * 2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.Zamba2ForCausalLM(config)
    whole = derive(model).whole
    assert whole["neurons"].endswith("share their weights")
    assert whole["layers"].startswith("a cut of its layers fails in a small copy"), "an adapter for each is in one list"


def test_the_loss_of_a_layer_is_tried_with_two_of_each_kind() -> None:
    kinds = [("a",), ("a",), ("a",), ("b",)] * 3
    assert deriving._choose_deep(kinds, 4) == [0, 1, 3, 7]
    assert deriving._choose_deep(kinds, 8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert deriving._choose_deep([("a",)] * 20, 8) == list(range(8))
    assert deriving._choose_deep([*[("a",)] * 10, ("b",), ("b",)], 5) == [0, 1, 2, 10, 11]


def test_what_depends_on_the_number_of_layers_is_kept_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def note(model: PreTrainedModel) -> families.Family:
        return replace(families.FAMILIES["llama"], notes=str(model.config.num_hidden_layers))

    monkeypatch.setattr(deriving, "derive", note)
    architecture, config = transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config
    found = [find_family(architecture, config(**SMALL | {"num_hidden_layers": n})).notes for n in (2, 4, 8, 12)]
    assert found == ["2", "4", "8", "8"]


def test_one_head_of_keys_for_all_is_counted_once_and_quietly() -> None:
    """Falcon's config knows no number of them, and its class no setting for the size of a head."""
    torch.manual_seed(0)
    lines, handler = list[str](), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        subject = open_subject(transformers.FalconForCausalLM(transformers.FalconConfig(**SMALL)).eval())
        small, _ = subject.cut(Selection({"attention": np.array([False, True, True])}))
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not lines
    for one in (subject, small):
        assert one.units(batch=2, length=9).cost()["kv_cache"] == count_cached(one)


@pytest.mark.wide
def test_a_scale_of_embeddings_in_bfloat16_is_folded_as_it_is() -> None:
    model = make_hybrid("RecurrentGemma")
    subject = make_subject(model, replace(open_subject(model).family, whole={}))
    assert find_change(subject, {"channels": np.arange(32) < 24}) < 1e-5


def assert_cut_as_silenced(subject: Transformer, keep: Selection, folder: Path) -> None:
    """As it is cut, and as it opens again."""
    small, batch = subject.cut(keep)[0], subject.example(2, 6)
    small.save(folder)
    with torch.no_grad():
        found, *others = (one.forward(batch).prediction for one in (small, subject.silence(keep), open_subject(folder)))
    for other in others:
        torch.testing.assert_close(found, other)


@pytest.mark.parametrize(("heads", "channels", "left"), [(4, 64, 56), (4, 64, 32), (4, 64, 50), (16, 128, 120)])
def test_channels_go_where_heads_stay_that_the_class_makes_by_their_number(
    heads: int, channels: int, left: int, tmp_path: Path
) -> None:
    """A CodeGen, whose queries, keys and values are one matrix of heads; these may not divide what is left."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": channels, "n_layer": 3, "n_head": heads, "rotary_dim": 8, "n_positions": 64}
    config = transformers.CodeGenConfig(**sizes, bos_token_id=1, eos_token_id=2)
    subject = open_subject(transformers.CodeGenForCausalLM(config).eval())
    assert "heads" in subject.family.whole
    assert "channels" not in subject.family.whole
    keep = Selection({"channels": np.arange(channels) < left})
    assert_cut_as_silenced(subject, keep, tmp_path)


def test_convolutions_of_an_attention_have_a_group_for_each_head_that_is_left(tmp_path: Path) -> None:
    """Nystromformer's, of as many heads as the config says, which are fewer where they don't divide the channels."""
    torch.manual_seed(0)
    config = transformers.NystromformerConfig(**SMALL, max_position_embeddings=64)
    subject = open_subject(transformers.NystromformerForMaskedLM(config).eval())
    keep = Selection({"channels": np.arange(32) < 30, "layers.1.heads": np.arange(4) % 2 == 1})
    assert_cut_as_silenced(subject, keep, tmp_path)


def test_what_is_cut_beside_what_failed_is_tried_with_that_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are built by the table that comes out."""
    tried, real = dict[str, set[str]](), deriving._try_cut

    def try_cut(subject: Transformer, kind: str, *, corrected: bool = True) -> str:
        tried[kind] = set(subject.family.whole)
        return "fails" if kind == "heads" else real(subject, kind, corrected=corrected)

    monkeypatch.setattr(deriving, "_try_cut", try_cut)
    model = smollm3()
    found = prove(model, find_family(type(model), model.config))
    assert "heads" in found.whole
    assert "heads" in tried["channels"]


def test_channels_stay_where_states_take_their_size_from_them() -> None:
    """Those of a RecurrentGemma's convolutions are as wide as its mixers: the first token of a text found too few."""
    found = open_subject(make_hybrid("RecurrentGemma")).family.whole["channels"]
    assert found.startswith("with fewer of them, a first token with a cache fails: RuntimeError: Sizes of tensors ")


def test_what_a_layer_does_by_its_number_goes_with_it() -> None:
    """Every fourth layer of SmolLM3 has no rotary positions: the list of them stayed as it was when a layer went."""
    torch.manual_seed(0)
    config = transformers.SmolLM3Config(**SMALL | {"num_hidden_layers": 8}, num_key_value_heads=2)
    subject = open_subject(transformers.SmolLM3ForCausalLM(config).eval())
    keep = Selection({"layers": torch.arange(8).ne(1).numpy()})
    small, _ = subject.cut(keep)
    assert small.model.config.no_rope_layers == [1, 1, 0, 1, 1, 1, 0]
    tokens = subject.example(2, 9)
    torch.testing.assert_close(
        small.forward(tokens).prediction, subject.silence(keep).forward(tokens).prediction, rtol=1e-4, atol=1e-5
    )


def test_layers_whose_kind_only_their_number_tells_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of two layers can't show it: the pattern is longer."""
    from secateur.subjects.transformer import cutting

    def keep_the_list(*given: Any) -> Any:
        config = plain(*given)
        config.no_rope_layers = ([1, 1, 1, 0] * 2)[: config.num_hidden_layers]
        return config

    plain = cutting.new_config
    monkeypatch.setattr(cutting, "new_config", keep_the_list)
    with torch.device("meta"):
        model = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(num_hidden_layers=12))
    assert derive(model).whole == {"layers": "a cut of its layers gives other outputs than silencing"}


def cut_states(subject: Transformer, *, layers: tuple[int, ...]) -> Selection:
    """Every other channel, and of each group of heads the first half; in the mixers of these layers."""
    keep = {}
    for layer in layers:
        heads = subject.units()[f"layers.{layer}.state_heads"]
        per = heads.count // (int(heads.group.max()) + 1)
        keep[heads.name] = np.arange(heads.count) % per < per // 2
        keep[f"layers.{layer}.state_channels"] = np.arange(16) % 2 == 0
    return Selection(keep)


@pytest.mark.parametrize("layers", [(0, 4), (4,)], ids=["alike", "unequal"])
def test_heads_and_channels_of_mamba_2_are_cut_as_silenced(layers: tuple[int, ...], tmp_path: Path) -> None:
    subject = open_subject(make_hybrid("NemotronH", mamba_head_dim=16))
    assert not {"state_heads", "state_channels"} & {site.kind for site in subject.units().free()}  # only by name
    assert {site.kind for site in subject.units("state_heads").free()} == {"state_heads"}
    selection, tokens = cut_states(subject, layers=layers), subject.example(2, 9)
    small, receipt = subject.cut(selection)
    for measure in ("params", "bytes"):
        assert subject.units().cost(selection.keep)[measure] == receipt.after[measure] == small.units().cost()[measure]
    prediction = small.forward(tokens).prediction
    torch.testing.assert_close(prediction, subject.silence(selection).forward(tokens).prediction, rtol=1e-4, atol=1e-5)
    small.save(tmp_path / "small")
    again = open_subject(tmp_path / "small")
    assert again.widths() == small.widths()
    assert again.model.config.is_heterogeneous == (len(layers) == 1)
    torch.testing.assert_close(again.forward(tokens).prediction, prediction, rtol=0, atol=0)
    with torch.no_grad():  # a step behind the cache of the others
        behind = small.model(input_ids=tokens["input_ids"][:, :-1], use_cache=True)
        cache = {name: value for name, value in behind.items() if isinstance(value, Cache)}
        last = small.model(input_ids=tokens["input_ids"][:, -1:], use_cache=True, **cache).logits[:, -1]
    torch.testing.assert_close(last, prediction[:, -1], rtol=1e-3, atol=1e-4)


SHARES_NOTHING: dict[str, dict[str, Any]] = {
    "Qwen3_5": {"linear_num_key_heads": 4, "linear_num_value_heads": 8},  # key heads, each with its value heads
    "Qwen3Next": {"linear_num_key_heads": 4, "linear_num_value_heads": 4},
    "Lfm2": {},  # channels of a short convolution
    "RecurrentGemma": {},  # blocks of an RG-LRU
}


@pytest.mark.parametrize(
    ("name", "alike"), [("Qwen3_5", True), ("Qwen3Next", False), ("Lfm2", False), ("RecurrentGemma", True)]
)
def test_heads_of_mixers_that_share_nothing_are_cut_as_silenced(name: str, alike: bool, tmp_path: Path) -> None:
    subject = open_subject(make_hybrid(name, **SHARES_NOTHING[name]))
    assert "state_heads" not in {site.kind for site in subject.units().free()}  # only by name
    sites = [site for site in subject.units("state_heads").sites.values() if site.kind == "state_heads"]
    assert {site.count for site in sites} == {32 if name == "Lfm2" else 4}
    cut = sites if alike else sites[:1]
    selection, tokens = Selection({site.name: np.arange(site.count) % 2 == 1 for site in cut}), subject.example(2, 9)
    small, receipt = subject.cut(selection)
    for measure in ("params", "bytes"):
        assert subject.units().cost(selection.keep)[measure] == receipt.after[measure] == small.units().cost()[measure]
    prediction = small.forward(tokens).prediction
    torch.testing.assert_close(prediction, subject.silence(selection).forward(tokens).prediction, rtol=1e-4, atol=1e-5)
    small.save(tmp_path / "small")
    plain = alike and name.startswith("Qwen")
    assert plain != (tmp_path / "small" / "modeling_secateur.py").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=not plain)
    torch.testing.assert_close(loaded(**tokens).logits, prediction, rtol=0, atol=0)
    assert open_subject(tmp_path / "small").widths() == small.widths()
    ids, settings = tokens["input_ids"], {"max_new_tokens": 4, "do_sample": False}
    cached, anew = (loaded.generate(ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, anew)
    if name != "RecurrentGemma":  # which hands no cache back
        cost = small.units(batch=2, length=9).cost()
        assert size.kv_cache_bytes(small.model, tokens) == cost["kv_cache"] + cost["state_cache"]


def test_heads_of_a_mixer_are_cut_again() -> None:
    """What an earlier cut has left, and the config can't say by one number, stays said of each layer."""
    subject = open_subject(make_hybrid("Lfm2"))
    half = {f"layers.{layer}.state_heads": np.arange(32) < 16 for layer in (0, 2)}
    small = subject.cut(Selection(half))[0]
    neurons = {f"layers.{layer}.neurons": np.arange(256) < 128 for layer in range(3)}
    smaller = small.cut(Selection(neurons))[0]
    assert [width.state_heads for width in smaller.widths()] == [16, 0, 16]


def test_what_goes_with_a_channel_of_a_short_convolution_is_its_slices() -> None:
    """By them a cut of the model as any network is told as one of these units."""
    slices = open_subject(make_hybrid("Lfm2")).slices()["layers.0.state_heads"]
    every = torch.arange(32)
    found = {(tuple(weight.shape), dim): [] for weight, dim, _ in slices}
    for weight, dim, unit in slices:
        found[tuple(weight.shape), dim].append(unit[unit >= 0])
    parts = {((96, 32), 0): 3, ((32, 1, 3), 0): 1, ((32, 32), 1): 1}
    assert {place: len(units) for place, units in found.items()} == parts
    assert all(torch.equal(unit, every) for units in found.values() for unit in units)


@pytest.mark.wide
def test_states_of_other_counts_in_their_groups_are_refused() -> None:
    subject = open_subject(make_hybrid("NemotronH"))
    heads = np.arange(8) < 3
    with pytest.raises(UnsupportedError, match=r"keeps \[3, 0\] heads with 8 channels in the groups of layers.0"):
        subject.cut(Selection({"layers.0.state_heads": heads}))
    with pytest.raises(UnsupportedError, match="its config can't say the number of their heads"):
        open_subject(make_hybrid("Bamba")).units("state_heads")


@pytest.mark.wide
def test_channels_go_without_a_correction_where_norms_of_states_share_the_epsilon() -> None:
    subject = open_subject(make_hybrid("NemotronH"))
    selection, tokens = Selection({"channels": np.arange(32) % 2 == 0}), subject.example(2, 9)
    with pytest.raises(UnsupportedError, match="channels of this nemotron_h model can't be cut"):
        subject.cut(selection)
    small = subject.cut(selection, norm_correction=False)[0]
    silenced = subject.silence(selection, norm_correction=False)
    ours, theirs = (one.forward(tokens).prediction for one in (small, silenced))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_caches_of_states_are_counted_and_memory_as_it_is_served() -> None:
    subject = open_subject(make_hybrid("NemotronH", mamba_head_dim=16))
    small = subject.cut(cut_states(subject, layers=(4,)))[0]
    for one in (subject, small):
        tokens = one.example(2, 9)
        cost = one.units(batch=2, length=9).cost()
        assert size.kv_cache_bytes(one.model, tokens) == cost["kv_cache"] + cost["state_cache"]
        assert cost["memory"] == cost["bytes"] + cost["kv_cache"] + cost["state_cache"]
        assert "served_memory" not in cost
        one.profile = Profile(weights=0.5625, cache=1.0, states=2.0, buffers=2.0)
        keys, states = size.cache_numbers(one.model, tokens)
        served = 0.5625 * cost["params"] + keys + 2.0 * states + 2.0 * 2 * 9 * 32
        assert one.units(batch=2, length=9).cost()["served_memory"] == pytest.approx(served)


BLOCKS = {"layers", "ffn", "mixer"}
ATTENTION = {"attention", "heads", "kv_groups"}
UNITS = {
    "Qwen3_5": BLOCKS | ATTENTION | {"neurons"},
    "Qwen3Next": BLOCKS | ATTENTION | {"experts", "expert_neurons", "shared_neurons"},
    "Lfm2": BLOCKS | ATTENTION | {"neurons"},
    "Bamba": BLOCKS | ATTENTION | {"neurons"},
    "NemotronH": BLOCKS | ATTENTION | {"neurons"},
    "NemotronH-moe": BLOCKS | ATTENTION | {"experts", "expert_neurons", "shared_neurons"},
    "RecurrentGemma": BLOCKS | ATTENTION | {"neurons"},
    "FalconH1": BLOCKS | ATTENTION | {"neurons", "channels"},
    "Mamba": {"layers", "mixer", "channels"},
    "Mamba2": {"layers", "mixer"},
}


def count_cached(subject: Transformer) -> float | None:
    """Bytes of keys and values after 9 tokens of 2 sequences; None where the model keeps them to itself."""
    with torch.no_grad():
        out = subject.model(**subject.example(2, 9), use_cache=True)
    cache = next((value for value in out.values() if isinstance(value, Cache)), None)
    if cache is None:
        return None
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None))


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_of_several_kinds_are_cut_as_silenced(name: str, tmp_path: Path) -> None:
    subject = open_subject(make_hybrid(name))
    units = subject.units()
    assert not (name == "Lfm2" and subject.family.states_neurons)  # its config says what widths are rounded to
    assert {site.kind for site in units.free()} >= UNITS[name]
    assert units.cost()["params"] == subject.model.num_parameters()
    assert count_cached(subject) in (None, subject.units(batch=2, length=9).cost()["kv_cache"])
    keep = {}
    for site in units.free():
        if site.kind in ("neurons", "attention", "ffn", "mixer", "shared_neurons"):
            keep[site.name] = np.arange(site.count) % 2 == 1
            keep[site.name] |= False if site.fixed is None else site.fixed
    small, receipt = subject.cut(Selection(keep))
    assert units.cost(keep)["params"] == receipt.after["params"]
    for kind in {"attention", "ffn", "mixer"} & receipt.removed.keys():
        assert receipt.removed[kind][1] == sum(width.has(kind) for width in subject.widths())
        assert shapes.receipt(subject, small).removed[kind] == receipt.removed[kind]
    assert any("flops" in note for note in receipt.notes) == any(width.mixer for width in small.widths())
    tokens = subject.example(2, 9)
    prediction = small.forward(tokens).prediction
    silenced = subject.silence(Selection(keep)).forward(tokens).prediction
    torch.testing.assert_close(prediction, silenced, rtol=1e-4, atol=1e-5)
    small.save(tmp_path / "small")
    again = open_subject(tmp_path / "small")
    assert again.widths() == small.widths()
    torch.testing.assert_close(again.forward(tokens).prediction, prediction, rtol=0, atol=0)
