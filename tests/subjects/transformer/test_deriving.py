"""Families that nobody wrote down: derived, proved, kept on the disk, and cut like the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.errors import UnsupportedError
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import deriving, families
from secateur.subjects.transformer.deriving import derive, find_family, prove
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


def test_an_axis_that_fails_stays_whole_with_the_reason() -> None:
    with torch.device("meta"):
        olmo2 = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(num_hidden_layers=4))
    family = derive(olmo2)  # its query norm runs over all heads at once
    assert "heads" in family.whole
    assert "neurons" not in family.whole
    wrong = replace(families.FAMILIES["llama"], norm_offset=1.0)
    assert prove(smollm3(), wrong).whole == {"channels": "a cut of its channels gives other outputs than silencing"}


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("T5ForConditionalGeneration", "T5Config", "has 2 lists of 6 layers"),
        ("Gemma3ForConditionalGeneration", "Gemma3Config", r"open one of its parts \(text_config, vision_config\)"),
        ("Zamba2ForCausalLM", "Zamba2Config", "has other tensors"),
    ],
)
def test_what_fits_no_table_is_said_in_a_line(architecture: str, config: str, said: str) -> None:
    kind, made = getattr(transformers, architecture), getattr(transformers, config)()
    with pytest.raises(UnsupportedError, match=said) as raised:
        find_family(kind, made)
    assert "\n" not in str(raised.value)


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


BLOCKS = {"layers", "ffn", "mixer"}
ATTENTION = {"attention", "heads", "kv_groups"}
UNITS = {
    "Qwen3_5": BLOCKS | ATTENTION | {"neurons"},
    "Qwen3Next": BLOCKS | ATTENTION | {"experts", "expert_neurons", "shared_neurons"},
    "Lfm2": BLOCKS | ATTENTION | {"neurons"},
    "Bamba": BLOCKS | ATTENTION | {"neurons"},
    "NemotronH": BLOCKS | ATTENTION | {"neurons"},
    "RecurrentGemma": BLOCKS | ATTENTION | {"neurons", "channels"},
    "FalconH1": BLOCKS | ATTENTION | {"neurons", "channels"},
    "Mamba": {"layers", "mixer", "channels"},
}


def count_cached(subject: Transformer) -> float | None:
    """Bytes of keys and values after 9 tokens of 2 sequences; None where the model keeps them to itself."""
    with torch.no_grad():
        cache = subject.model(**subject.example(2, 9), use_cache=True).get("cache")
    if cache is None:
        return None
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None))


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_of_several_kinds_are_cut_as_silenced(name: str, tmp_path: Path) -> None:
    subject = open_subject(make_hybrid(name))
    units = subject.units()
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
    tokens = subject.example(2, 9)
    prediction = small.forward(tokens).prediction
    silenced = subject.silence(Selection(keep)).forward(tokens).prediction
    torch.testing.assert_close(prediction, silenced, rtol=1e-4, atol=1e-5)
    small.save(tmp_path / "small")
    again = open_subject(tmp_path / "small")
    assert again.widths() == small.widths()
    torch.testing.assert_close(again.forward(tokens).prediction, prediction, rtol=0, atol=0)
