"""A translated adapter on the cut model is the merged model cut, and no adapter of another base is taken."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForQuestionAnswering

import secateur
from secateur.errors import DataWarning, InputError, ModelError, SecateurError, UnsupportedError
from secateur.runs.exporting import export
from secateur.subjects import Transformer, load, open_subject
from secateur.subjects.transformer.adapters import translate_adapter
from secateur.vocabulary import Selection
from subjects.hybrids import make_hybrid
from subjects.tiny import make, padded, run, selections, without

FAMILIES = ("llama", "qwen3", "gpt2-scaled", "bert-mlm")
CUTS = ("a layer", "heads alike", "kv groups alike", "neurons alike", "channels")
MIXED = [
    *((family, True, ("channels", "mixed again")) for family in FAMILIES),
    *((family, False, ("mixed again",)) for family in ("gemma2-untied", "phi3", "mixtral")),
]
"""DoRA, whose magnitudes follow the columns, and tables of other shapes: fused projections, experts beside."""


def linears(subject: Transformer) -> list[str]:
    """The linears of the layers, by their full paths; in mixtures those beside the packed experts."""
    inside = tuple(f"{path}." for path in subject.layers())
    kinds = (nn.Linear,) if not subject.family.conv1d else (nn.Linear, type(subject.model.base_model.h[0].attn.c_attn))
    return [n for n, m in subject.model.named_modules() if n.startswith(inside) and isinstance(m, kinds)]


def adapt(folder: Path, out: Path, seed: int = 0, **options: Any) -> nn.Module:
    """A random adapter of the model in `folder`, saved to `out`: the model that it is merged into."""
    subject = open_subject(folder)
    torch.manual_seed(seed)
    options = {"target_modules": linears(subject), "r": 3, "lora_alpha": 5} | options
    config = peft.LoraConfig(fan_in_fan_out=subject.family.conv1d, init_lora_weights=False, **options)
    model = peft.get_peft_model(subject.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (options.get("bias") == "all" and "bias" in name):
                parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
    model.save_pretrained(out)  # with the embeddings that it is on
    merged = model.merge_and_unload()
    return merged


def compare(base: Path, merged: nn.Module, keep: dict[str, np.ndarray], adapter: Path, place: Path) -> tuple[str, ...]:
    """Translate `adapter` to the base without what goes; its outputs must be those of the merged model cut alike."""
    small, _ = open_subject(base).cut(Selection(keep))
    small.save(place / "small")
    folder, notes = translate_adapter(adapter, place / "small", place / "fit", base=base)
    wanted, _ = open_subject(merged).cut(Selection(keep))
    fit = peft.PeftModel.from_pretrained(load(place / "small"), str(folder)).merge_and_unload()
    batch = padded(wanted)
    theirs, ours = run(wanted, batch), run(open_subject(fit), batch)
    if theirs.dim() == 3:  # what is said of padding does not count
        theirs, ours = (one[batch["attention_mask"].bool()] for one in (theirs, ours))
    assert float((theirs - ours).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))
    return notes


def prepare(name: str, place: Path, **options: Any) -> tuple[Transformer, nn.Module]:
    """base: a saved model; adapter: one of it. Returns the base and the model that it is merged into."""
    subject = make(name)
    subject.model.save_pretrained(place / "base")
    return subject, adapt(place / "base", place / "adapter", **options)


@pytest.mark.parametrize(("family", "dora", "labels"), [*((family, False, CUTS) for family in FAMILIES), *MIXED])
def test_a_translated_adapter_equals_the_merged_model_cut(
    family: str, dora: bool, labels: tuple[str, ...], tmp_path: Path
) -> None:
    paths = linears(make(family))
    patterns = {"rank_pattern": {paths[0]: 2, paths[-1].rpartition(".")[2]: 4}, "alpha_pattern": {paths[1]: 7}}
    subject, merged = prepare(family, tmp_path, use_dora=dora, use_rslora=dora, **patterns)
    there = selections(subject)
    for label in labels:
        if label in there:
            notes = compare(tmp_path / "base", merged, there[label], tmp_path / "adapter", tmp_path / label)
            assert not any("changed" in note or "at hand" in note for note in notes)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama-tied-bias", {"bias": "all"}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
        ("gemma2-untied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("llama-tied-bias", {"target_modules": ["embed_tokens"], "use_dora": True}),
        ("llama-tied-bias", {"target_modules": ["q_proj", "lm_head"]}),
        (
            "llama-tied-bias",
            {"target_modules": ["q_proj"], "modules_to_save": ["norm", "down_proj"], "lora_bias": True},
        ),
        ("bert-classifier", {"target_modules": "all-linear", "modules_to_save": ["classifier"]}),
    ],
    ids=["biases", "ends", "both ends", "tied", "tied head", "saved whole", "classifier"],
)
def test_what_else_an_adapter_holds_is_cut_too(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    subject, merged = prepare(family, tmp_path, **options)
    compare(tmp_path / "base", merged, selections(subject)["mixed again"], tmp_path / "adapter", tmp_path / "cut")


PACKED: dict[str, dict[str, Any]] = {
    "mixtral": {"target_modules": "all-linear", "use_rslora": True},
    "qwen2-moe": {
        "target_modules": ["q_proj", "down_proj"], "target_parameters": ["experts.gate_up_proj"],
        "rank_pattern": {"q_proj": 2, "experts.gate_up_proj": 5},
    },
    "deepseek3": {"target_modules": [], "target_parameters": ["gate.weight", "experts.down_proj"]},
    "gpt-oss": {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj", "down_proj_bias"]},
}  # fmt: skip
"""Classes with packed experts, stored [E, out, in] or [E, in, out], and what of them is adapted."""


@pytest.mark.parametrize("family", PACKED)
def test_factors_of_packed_experts_and_routers_are_cut_expert_by_expert(family: str, tmp_path: Path) -> None:
    subject, merged = prepare(family, tmp_path, **PACKED[family])
    said = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert said["target_parameters"], "as peft turns the names of experts into"
    widths = subject.layout.widths
    keep = {"layers": without(len(widths), 1)}
    for layer, width in enumerate(widths):
        if width.experts and layer != 1:
            own = np.arange(width.experts * width.expert_neurons).reshape(width.experts, -1)
            half = (own // (width.expert_neurons // 2) + np.arange(width.experts)[:, None]) % 2 == 0
            stays = np.arange(width.experts) % (width.experts // subject.layout.expert_groups) > 0
            keep[f"layers.{layer}.experts"] = stays
            keep[f"layers.{layer}.expert_neurons"] = (half & stays[:, None]).flatten()
    compare(tmp_path / "base", merged, keep, tmp_path / "adapter", tmp_path / "cut")
    fit = json.loads((tmp_path / "cut/fit/adapter_config.json").read_text())
    assert len(set(fit["target_parameters"])) == len(fit["target_parameters"]) > 0
    assert not set(fit["target_parameters"]) & set(said["target_parameters"])


def test_factors_of_packed_experts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    subject, _ = prepare("mixtral", tmp_path, target_modules=[], target_parameters=["experts.down_proj"])
    subject.cut(Selection({"layers": without(len(subject.layout.widths), 1)}))[0].save(tmp_path / "small")
    path = "model.layers.0.mlp.experts"
    factors = {f"{path}.base_layer.lora_{kind}.weight": torch.ones(2, 2) for kind in "AB"}
    alone = {f"model.layers.0.self_attn.q_proj.base_layer.lora_{kind}.weight": torch.ones(2, 2) for kind in "AB"}
    single = {"model.layers.0.mlp.experts.2.w1.lora_A.weight": torch.ones(3, 64)}
    wrong = {f"{path}.lora_A.weight": torch.ones(3, 5)}
    for number, (tensors, message) in enumerate(
        (
            (
                factors,
                rf"it has {path}\.base_layer, and of its target_parameters .* has \['down_proj'\]",
            ),
            (alone, r"q_proj\.base_layer, and none of its target_parameters is in"),
            (single, r"experts\.2\.w1.*: load it by peft on the base, which packs experts, and save it$"),
            (wrong, rf"its factors of {path} are .* x \[3, 5\], and the base's weight and the rank pattern ask for"),
        )
    ):
        adapter = edit(tmp_path / "adapter", tmp_path / f"adapter{number}", {}, **tensors)
        with pytest.raises(InputError, match=message):
            translate_adapter(adapter, tmp_path / "small", tmp_path / "fit")
        assert not (tmp_path / "fit").exists()


def test_an_adapter_of_a_class_that_calls_the_model_otherwise_is_cut_too(tmp_path: Path) -> None:
    make("llama").model.base_model.save_pretrained(tmp_path / "base")
    dense = LlamaForQuestionAnswering.from_pretrained(tmp_path / "base")
    options = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["qa_outputs"]}
    model = peft.get_peft_model(dense, peft.LoraConfig(r=3, init_lora_weights=False, **options))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = model.merge_and_unload()
    keep = {"layers": without(3, 1), "channels": without(48, *range(8))}
    open_subject(tmp_path / "base").cut(Selection(keep))[0].save(tmp_path / "small")
    fit, notes = translate_adapter(tmp_path / "adapter", tmp_path / "small", tmp_path / "fit")
    assert not any("calls the model" in note for note in notes)
    small = peft.PeftModel.from_pretrained(LlamaForQuestionAnswering.from_pretrained(tmp_path / "small"), str(fit))
    fitted, (wanted, _) = small.merge_and_unload(), open_subject(merged.transformer).cut(Selection(keep))
    ours, batch = open_subject(fitted.transformer), wanted.example(2, 9)
    assert torch.equal(fitted.qa_outputs.weight, merged.qa_outputs.weight[:, 8:])
    torch.testing.assert_close(run(ours, batch), run(wanted, batch), rtol=1e-5, atol=1e-5)
    make("llama").cut(Selection(keep))[0].save(tmp_path / "generating")
    unnamed = edit(tmp_path / "adapter", tmp_path / "unnamed", {"base_model_name_or_path": None})
    notes = translate_adapter(unnamed, tmp_path / "generating", tmp_path / "again")[1]
    assert any("calls the model transformer, and" in note for note in notes), "no weights are found by that name"


def test_the_map_leads_through_repeated_cuts_to_the_dense_model(tmp_path: Path) -> None:
    _, merged = prepare("qwen3", tmp_path, use_dora=True)
    first = {"layers": without(3, 1), "channels": without(48, *range(8)), "layers.0.kv_groups": without(2, 0)}
    then = {"layers": without(2, 0), "channels": without(40, *range(8)), "layers.1.neurons": without(40, *range(8))}
    open_subject(tmp_path / "base").cut(Selection(first))[0].save(tmp_path / "half")
    again, _ = open_subject(tmp_path / "half").cut(Selection(then))
    again.save(tmp_path / "small")
    fit, notes = secateur.translate_adapter(tmp_path / "adapter", tmp_path / "small", base=tmp_path / "base")
    assert fit == tmp_path / "adapter-small"
    assert len(notes) == 1
    assert notes[0].startswith("14 of 21 modules of the adapter went with what was cut away: model.layers.0.")
    wanted = open_subject(merged).cut(Selection(first))[0].cut(Selection(then))[0]
    ours = open_subject(peft.PeftModel.from_pretrained(load(tmp_path / "small"), str(fit)).merge_and_unload())
    batch = wanted.example(2, 9)
    torch.testing.assert_close(run(ours, batch), run(wanted, batch), rtol=1e-5, atol=1e-5)


def test_a_base_whose_config_says_infinity_is_read_from_the_map(tmp_path: Path) -> None:
    """Mamba 2 limits its time steps to (0, inf), which JSON has no number for."""
    make_hybrid("Mamba2").save_pretrained(tmp_path / "base")
    merged = adapt(tmp_path / "base", tmp_path / "adapter", target_modules=["in_proj"])
    compare(tmp_path / "base", merged, {"layers": without(3, 1)}, tmp_path / "adapter", tmp_path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, adapter (a LoRA), dora: of a Llama; small: without its layer 1 and some channels; other: a model alike."""
    place = tmp_path_factory.mktemp("llama")
    prepare("llama", place, target_modules=["q_proj", "down_proj"])
    adapt(place / "base", place / "dora", use_dora=True)
    subject = open_subject(place / "base")
    subject.cut(Selection({"layers": without(3, 1), "channels": without(48, *range(8))}))[0].save(place / "small")
    with torch.no_grad():
        subject.model.lm_head.weight[0, 0] += 1
    subject.save(place / "other")
    return place


def edit(adapter: Path, place: Path, changes: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of an adapter with other settings, and with tensors more."""
    place.mkdir(exist_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(config | (changes or {})))
    held = load_file(adapter / "adapter_model.safetensors")
    save_file(held | {f"base_model.model.{n}": t for n, t in tensors.items()}, place / "adapter_model.safetensors")
    return place


def test_what_is_not_exact_is_said(llama: Path, tmp_path: Path) -> None:
    unnamed = edit(llama / "adapter", tmp_path / "unnamed", {"base_model_name_or_path": None})
    trained = open_subject(llama / "small")
    with torch.no_grad():
        trained.model.lm_head.weight.mul_(1.01)
    trained.save(tmp_path / "trained")
    _, notes = translate_adapter(unnamed, tmp_path / "trained", tmp_path / "fit")
    assert "which base it is" in notes[1]
    assert f"are others than a cut of {llama / 'base'} has, by training, by the recipe or by rounding" in notes[2]
    text = (tmp_path / "trained/cut_map.json").read_text()
    (tmp_path / "trained/cut_map.json").write_text(text.replace(str(llama / "base"), "somebody/base"))
    named = edit(llama / "adapter", tmp_path / "named", {"base_model_name_or_path": "somebody/base"})
    again = edit(llama / "adapter", tmp_path / "again 4bit", {"base_model_name_or_path": "others/base-4bit"})
    with pytest.raises(InputError, match=r"under another name, let adapter_config\.json name somebody/base"):
        translate_adapter(again, tmp_path / "trained", tmp_path / "never", base=llama / "base")
    assert "not at hand (--base)" in translate_adapter(named, tmp_path / "trained", tmp_path / "again")[1][1]
    with pytest.raises(
        InputError, match=r"is a DoRA, whose magnitudes need .* give --base the folder of somebody/base"
    ):
        translate_adapter(
            edit(llama / "dora", tmp_path / "dora", {"base_model_name_or_path": "somebody/base"}),
            tmp_path / "trained",
            tmp_path / "never",
        )
    assert not (tmp_path / "never").exists()


def test_adapters_of_a_quantised_start_and_of_its_floats_fit_what_was_cut_from_it(llama: Path, tmp_path: Path) -> None:
    for name in ("base", "other"):
        export(llama / name, "int8", tmp_path / f"{name}-int8")
    with pytest.warns(DataWarning, match="were quantised"):
        small, _ = open_subject(tmp_path / "base-int8").cut(Selection({"layers": without(3, 1)}))
    small.save(tmp_path / "small")
    floats, integers = llama / "base", tmp_path / "base-int8"
    for said, base in [(floats, None), (floats, integers), (integers, None), (integers, floats), (integers, integers)]:
        adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(said)})
        fit = tmp_path / f"{said.name} {base and base.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            _, notes = translate_adapter(adapter, tmp_path / "small", fit, base=base)
        assert any(f"a cut of {floats} has" in note for note in notes) == (said == floats), "by rounding"
    adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(integers)})
    with pytest.warns(DataWarning, match="were quantised"):
        _, notes = translate_adapter(adapter, llama / "small", tmp_path / "of floats", base=floats)
    assert any(f"a cut of {integers} has" in note and "rounding to integers" in note for note in notes)
    adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(tmp_path / "other-int8")})
    with pytest.raises(InputError, match=OTHER.replace("{other}", str(tmp_path / "other-int8"))):
        translate_adapter(adapter, tmp_path / "small", tmp_path / "never")


OTHER = "adapter of {other}, whose weights are not those that .*small was cut from"
BAD: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], type[SecateurError], str]] = {
    "another folder": ({"base_model_name_or_path": "{other}"}, {}, InputError, OTHER),
    "another name": (
        {"base_model_name_or_path": "somebody/else"},
        {},
        InputError,
        "is an adapter of somebody/else, and",
    ),
    "rank pattern": (
        {"rank_pattern": {"down_proj": 5}},
        {},
        InputError,
        r"the rank pattern ask for \[48, 5\] x \[5, 40\]",
    ),
    "no pattern": ({"rank_pattern": {"(": 5}}, {}, ModelError, "which is no pattern"),
    "rank": ({"r": "three"}, {}, ModelError, "adapter_config.json is damaged: r: Input should be"),
    "kind": ({"peft_type": "IA3"}, {}, UnsupportedError, "is an adapter of type IA3"),
    "pissa": ({"init_lora_weights": "pissa"}, {}, UnsupportedError, "begun by pissa, which changed the base's weights"),
    "tokens": ({"trainable_token_indices": [1]}, {}, UnsupportedError, "sets trainable_token_indices"),
    "no vector": ({"use_dora": True}, {}, ModelError, "damaged: it has lora_A.weight, lora_B.weight of model.layers.0"),
    "layer": ({}, {"model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(3, 48)}, InputError, "the base has 3 layers"),
    "module": (
        {},
        {"model.layers.0.mlp.w1.lora_A.weight": torch.ones(3, 48)},
        InputError,
        "which is none of the base's",
    ),
    "width": (
        {},
        {"lm_head.lora_A.weight": torch.ones(3, 64), "lm_head.lora_B.weight": torch.ones(61, 3)},
        InputError,
        r"its factors of lm_head are \[61, 3\] x \[3, 64\], and",
    ),
    "whole": ({}, {"model.norm.weight": torch.ones(64)}, InputError, r"its model.norm.weight is \[64\], and"),
    "half": ({}, {"lm_head.lora_A.weight": torch.ones(3, 48)}, ModelError, "damaged: it has lora_A.weight of lm_head"),
    "norm": ({}, {"model.norm.lora_A.weight": torch.ones(3, 48)}, UnsupportedError, "which is no matrix"),
    "nan": (
        {},
        {"lm_head.lora_A.weight": torch.full((3, 48), torch.nan)},
        ModelError,
        "holds NaN or infinity in lm_head",
    ),
    "no number": ({}, {"model.layers.x.mlp.up_proj.lora_A.weight": torch.ones(3, 48)}, InputError, "has 3 layers"),
    "layer below": ({}, {"model.layers.-1.mlp.up_proj.lora_A.weight": torch.ones(3, 48)}, InputError, "has 3 layers"),
    "huge layer": ({}, {f"model.layers.{'9' * 20}.mlp.up_proj.weight": torch.ones(3)}, InputError, "has 3 layers"),
    "stranger": ({}, {"foo.weight": torch.ones(3)}, InputError, "has 'foo.weight', which is none of the base's"),
    "no name": ({"modules_to_save": [""]}, {"": torch.ones(3)}, InputError, "has '', which is none of the base's"),
    "float8": (
        {},
        {"lm_head.lora_A.weight": torch.ones(3, 48).to(torch.float8_e4m3fn)},
        ModelError,
        "as float8_e4m3fn: factors",
    ),
    "integers": ({}, {"lm_head.lora_A.weight": torch.ones(3, 48, dtype=torch.int32)}, ModelError, "as int32: factors"),
    "alpha": ({"lora_alpha": float("nan")}, {}, ModelError, "lora_alpha: Input should be a finite number"),
    "alphas": ({"alpha_pattern": {"q_proj": float("inf")}}, {}, ModelError, "alpha_pattern.q_proj: Input should be"),
    "long name": ({"base_model_name_or_path": "x" * 5000}, {}, ModelError, "which can be no folder and no Hub id"),
}


def test_settings_nested_too_deep_are_damaged(llama: Path, tmp_path: Path) -> None:
    adapter = edit(llama / "adapter", tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"adapter_config.json is damaged \(maximum recursion depth"):
        translate_adapter(adapter, llama / "small", tmp_path / "fit")


def test_a_damaged_map_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "small" / name).write_bytes((llama / "small" / name).read_bytes())
    table = json.loads((llama / "small/cut_map.json").read_text())
    table["parts"]["0"]["kv"] = "0"
    (tmp_path / "small/cut_map.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match=r"cut_map.json is damaged.*the heads and kv of layer 0 do not fit") as told:
        translate_adapter(edit(llama / "adapter", tmp_path / "adapter"), tmp_path / "small", tmp_path / "fit")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize("case", BAD)
def test_an_adapter_that_does_not_fit_is_refused(case: str, llama: Path, tmp_path: Path) -> None:
    changes, tensors, kind, message = BAD[case]
    other = str(llama / "other")
    changes = {key: other if value == "{other}" else value for key, value in changes.items()}
    adapter = edit(llama / "adapter", tmp_path / "adapter", changes, **tensors)
    with pytest.raises(kind, match=message.replace("{other}", other)) as told:
        translate_adapter(adapter, llama / "small", tmp_path / "fit")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "fit").exists()


def test_another_base_is_refused_with_the_right_one_at_hand_too(llama: Path, tmp_path: Path) -> None:
    adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(llama / "other")})
    with pytest.raises(InputError, match=OTHER.replace("{other}", str(llama / "other"))):
        translate_adapter(adapter, llama / "small", tmp_path / "fit", base=llama / "base")
    assert not (tmp_path / "fit").exists()


def test_a_folder_without_weights_that_can_be_read_leaves_the_word_to_base(llama: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((llama / "base/config.json").read_text())
    adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(bare)})
    with pytest.raises(InputError, match=r"is an adapter of .*bare, and .* or give --base its folder"):
        translate_adapter(adapter, llama / "small", tmp_path / "never")
    folder, notes = translate_adapter(adapter, llama / "small", tmp_path / "fit", base=llama / "base")
    assert (folder / "adapter_model.safetensors").is_file()
    assert not any("at hand" in note for note in notes)


def test_a_base_in_another_number_type_is_refused_by_that(llama: Path, tmp_path: Path) -> None:
    half = open_subject(llama / "base", dtype="bfloat16")
    half.save(tmp_path / "half")
    words = "that model in float32, for weights are told apart by number type too, and these are bfloat16"
    with pytest.raises(InputError, match=f"give --base {words}"):
        translate_adapter(llama / "adapter", llama / "small", tmp_path / "fit", base=tmp_path / "half")
    adapter = edit(llama / "adapter", tmp_path / "adapter", {"base_model_name_or_path": str(tmp_path / "half")})
    with pytest.raises(InputError, match=f"translate an adapter of {words}"):
        translate_adapter(adapter, llama / "small", tmp_path / "fit")


def test_what_can_not_be_translated_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"other are not those that .*small was cut from .* give --base that model"):
        translate_adapter(llama / "adapter", llama / "small", tmp_path / "fit", base=llama / "other")
    with pytest.raises(InputError, match="is there already"):
        translate_adapter(llama / "adapter", llama / "small", llama / "base")
    with pytest.raises(ModelError, match=r"holds no adapter_config.json: give the folder of an adapter"):
        translate_adapter(llama / "base", llama / "small", tmp_path / "fit")
    edit(llama / "adapter", tmp_path / "named").rename(tmp_path / "mine")
    (tmp_path / "named").mkdir()
    (tmp_path / "mine").rename(tmp_path / "named/mine")
    with pytest.raises(ModelError, match=r"named holds no adapter_config.json: give .*named/mine, which does"):
        translate_adapter(tmp_path / "named", llama / "small", tmp_path / "fit")
    held = json.loads((llama / "adapter/adapter_config.json").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "adapter_config.json").write_text(json.dumps(held))
    (bare / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors \(pickles are never opened\)"):
        translate_adapter(bare, llama / "small", tmp_path / "fit")
    (bare / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="is damaged or truncated"):
        translate_adapter(bare, llama / "small", tmp_path / "fit")
    save_file({}, bare / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model.safetensors holds no tensors: save the adapter again"):
        translate_adapter(bare, llama / "small", tmp_path / "fit")
    prepare("llama", tmp_path, target_modules=["down_proj"], layers_to_transform=[1])
    small, _ = make("llama-tied-bias").cut(Selection({"attention": without(3, 0)}))
    small.save(tmp_path / "biased")
    dense = make("llama-tied-bias").model
    model = peft.get_peft_model(dense, peft.LoraConfig(target_modules=["o_proj"], lora_bias=True))
    model.save_pretrained(tmp_path / "biases")
    with pytest.raises(UnsupportedError, match=r"adds a bias by lora_bias to model.layers.0.self_attn.o_proj, which"):
        translate_adapter(tmp_path / "biases", tmp_path / "biased", tmp_path / "fit")
    with pytest.raises(InputError, match=r"all 1 modules .* were cut away .* nothing is left to translate"):
        translate_adapter(tmp_path / "adapter", llama / "small", tmp_path / "fit")
    make("gpt2").save(tmp_path / "plain")
    (tmp_path / "plain/cut_map.json").unlink()
    with pytest.raises(InputError, match=r"carries no cut_map.json, .* cut the base by a recipe .*, or adapt"):
        translate_adapter(llama / "adapter", tmp_path / "plain", tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_an_adapter_is_no_model(llama: Path) -> None:
    for read in (open_subject, load):
        with pytest.raises(ModelError, match=r"holds an adapter, .*merge it first .* translate-adapter"):
            read(llama / "adapter")
