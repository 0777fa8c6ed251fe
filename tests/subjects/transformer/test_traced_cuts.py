"""A model cut as any network carries the same map as a recipe's result, and is left alone where none can be told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Llama4TextConfig,
    MiniCPM3Config,
    Qwen3_5TextConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

import secateur
import tiny
from secateur import cli
from secateur._utils import ranges
from secateur.errors import ModelError
from secateur.runs import cutting as pruning
from secateur.subjects import load, open_subject
from secateur.subjects.network import pretrained
from secateur.subjects.network.opening import open_network
from secateur.subjects.transformer import cutting, loading, traced_cuts
from secateur.subjects.transformer.origin import Origin, hash_folder
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.hybrids import make_hybrid
from subjects.transformer.test_adapters import adapt


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_an_adapter_of_the_base_is_translated_to_a_model_that_was_cut_as_a_network(kind: str, tmp_path: Path) -> None:
    base, small = tiny.folder(kind, tmp_path / "base"), tmp_path / "small"
    assert cli.main(["prune", str(base), "--budget", "params=60%", "--out", str(small)]) == 0
    origin = Origin.read(small)
    assert origin is not None
    assert origin.kept is not None
    assert (origin.name, origin.digest()) == (str(base), Origin.of_model(load(base)).digest())
    merged = adapt(base, tmp_path / "adapter")
    place, notes = secateur.translate_adapter(tmp_path / "adapter", small, tmp_path / "fit")
    assert notes == ()
    assert all(len(parts["neurons"]) < 128 for parts in origin.kept.parts.values())
    wanted = load(small).eval()
    wanted.load_state_dict(cutting.slice_state(open_subject(merged).layout, origin.kept))
    fit = peft.PeftModel.from_pretrained(load(small), str(place)).merge_and_unload().eval()
    batch = open_subject(small).example(2, 8)
    with torch.no_grad():
        ours, theirs, bare = (one(**batch).logits for one in (fit, wanted, load(small)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((bare - theirs).abs().max()) > 0.01


def test_a_result_whose_layers_have_widths_of_their_own_is_cut_again_as_a_network(tmp_path: Path) -> None:
    """Its config is written anew layer by layer, its modelling file lies beside it, and the map leads to the base."""
    base, small = tiny.folder("llama", tmp_path / "base"), tmp_path / "small"
    keep = {"layers.1.neurons": np.arange(128) >= 32, "attention": np.arange(4) != 2}
    open_subject(base).cut(Selection(keep))[0].save(tmp_path / "own")
    assert cli.main(["prune", str(tmp_path / "own"), "--budget", "params=60%", "--out", str(small)]) == 0
    model, origin = load(small), Origin.read(small)
    assert origin is not None
    assert origin.kept is not None
    assert origin.name == str(base)
    assert {int(index) for index in origin.kept.parts[1]["neurons"]} <= set(range(32, 128))
    batch = open_subject(small).example(2, 8)
    save_file(batch, tmp_path / "batch.safetensors")
    code = (
        "import torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from safetensors.torch import load_file, save_file\n"
        "model = AutoModelForCausalLM.from_pretrained('small', trust_remote_code=True).eval()\n"
        "with torch.no_grad():\n"
        "    save_file({'logits': model(**load_file('batch.safetensors')).logits}, 'logits.safetensors')\n"
    )
    run_without_secateur(code, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], model(**batch).logits)
    widths = [width.neurons for width in open_subject(small).widths()]
    assert widths[1] < min(widths[0], widths[2], 96)


def test_what_is_no_whole_unit_stands_in_the_map_by_tensors_and_more_than_a_slice_has_none(tmp_path: Path) -> None:
    base = tiny.folder("qwen3", tmp_path / "base")
    whole = open_network(base)
    units = whole.units()
    name = next(name for name in units.sites if name.endswith("mlp.gate_proj.channels"))
    cut, _ = whole.cut(Selection({name: np.arange(units[name].count) >= 8}))
    (plan,) = cut.plans
    known = traced_cuts.describe_cut(cut, str(base))
    assert known is not None
    assert '"neurons": "8-127"' in known
    tensors = {key: dict(dims) for key, dims in plan.tensors.items()}
    tensors["model.layers.0.self_attn.o_proj.weight"] = {1: list(range(63))}  # seven eighths of a head
    cut._plans = (replace(plan, tensors=tensors),)
    known = json.loads(traced_cuts.describe_cut(cut, str(base)) or "")
    assert known["parts"]["0"]["heads"] == "0-7"
    assert known["tensors"] == {"model.layers.0.self_attn.o_proj.weight": {"1": "0-62"}}
    cut._plans = (replace(plan, biases=("model.layers.0.mlp.down_proj",)),)
    assert traced_cuts.describe_cut(cut, str(base)) is None


_COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
_LATENT = {"q_lora_rank": 40, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_STATES = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
_BEYOND = {
    "channels": (
        Qwen3_5TextConfig(**_COMMON, **_STATES, layer_types=["linear_attention", "full_attention"]),
        ["out_proj.channels"],
        set(),
    ),
    "experts": (
        Llama4TextConfig(**_COMMON, num_local_experts=4, intermediate_size_mlp=56, moe_layers=[1]),
        ["1.feed_forward.experts.channels", "1.feed_forward.shared_expert.gate_proj.channels"],
        {"model.layers.1.feed_forward.experts.gate_up_proj", "model.layers.1.feed_forward.experts.down_proj"},
    ),
    "ranks": (
        MiniCPM3Config(**{**_COMMON, **_LATENT}),
        ["q_a_proj.channels"],
        {f"model.layers.{n}.self_attn.q_{m}.weight" for n in (0, 1) for m in ("a_proj", "a_layernorm", "b_proj")},
    ),
}
"""Of which recipes cut less than a network: config, sites that are cut, tensors that are no units of their tables."""


@pytest.mark.parametrize("kind", _BEYOND)
def test_what_recipes_do_not_cut_in_a_class_is_mapped_and_adapters_are_translated(kind: str, tmp_path: Path) -> None:
    config, sites, tensors = _BEYOND[kind]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    merged = adapt(tmp_path / "base", tmp_path / "adapter")
    merged.save_pretrained(tmp_path / "merged")
    places = [tmp_path / "base", tmp_path / "merged"]
    for turn, size in enumerate((24, 8)):  # the second time of the result
        wholes = [open_network(place) for place in places]
        units = wholes[0].units()
        names = [name for name in units.sites if name.endswith(tuple(sites))]
        keep = {name: np.arange(units[name].count)[::-1] % units[name].count < size for name in names}
        cuts = [whole.cut(Selection(keep))[0] for whole in wholes]
        old, places = places, [tmp_path / f"{name}{turn}" for name in ("small", "wanted")]
        for cut, place, original in zip(cuts, places, old, strict=True):
            pretrained.save(cut, place, str(original))
        assert not pretrained.explain_lack(cuts[0], str(old[0]))
        said = json.loads((places[0] / "cut_map.json").read_text())
        assert (said["base"]["name"], set(said.get("tensors", ()))) == (str(tmp_path / "base"), tensors)
        _, notes = secateur.translate_adapter(tmp_path / "adapter", places[0], tmp_path / f"fit{turn}")
        assert notes == ()
        fit = peft.PeftModel.from_pretrained(load(places[0]), str(tmp_path / f"fit{turn}")).merge_and_unload().eval()
        ids = torch.arange(10, 26).reshape(2, 8)
        with torch.no_grad():
            ours, theirs, bare = (model(input_ids=ids).logits for model in (fit, load(places[1]), load(places[0])))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert float((bare - theirs).abs().max()) > 0.01
    if kind != "ranks":
        return
    table = json.loads((places[0] / "cut_map.json").read_text())
    for text, message in (({}, r"q_a_proj of \[8, 32\], and its cut_map.json says \[40, 32\]"), ([], "is damaged")):
        (places[0] / "cut_map.json").write_text(json.dumps(table | {"tensors": text}))
        with pytest.raises(ModelError, match=message):
            secateur.translate_adapter(tmp_path / "adapter", places[0], tmp_path / "none")
    table = json.loads((old[0] / "cut_map.json").read_text())
    del table["tensors"]  # as a recipe writes it
    (old[0] / "cut_map.json").write_text(json.dumps(table))
    assert pretrained.explain_lack(cuts[0], str(old[0])).startswith("it was cut in no whole units before")


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_translated_for_a_result_whose_tensors_have_sizes_of_their_own(
    dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut once, and then again, in no whole units either time."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(_BEYOND["ranks"][0]).save_pretrained(tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "adapter", use_dora=dora).save_pretrained(tmp_path / "merged")
    name = "model.layers.0.self_attn.q_a_proj.channels"
    for turn, sources in enumerate((("base", "merged"), ("small0", "wanted0"))):
        small, wanted = f"small{turn}", f"wanted{turn}"
        for source, out in zip(sources, (small, wanted), strict=True):
            whole = open_network(tmp_path / source)
            count = whole.units()[name].count
            cut, _ = whole.cut(Selection({name: np.arange(count) % 5 != turn}))
            pretrained.save(cut, tmp_path / out, str(tmp_path / source))
            assert "shapes" in json.loads((tmp_path / out / "config.json").read_text())["secateur"]
            assert not pretrained.explain_lack(cut, str(tmp_path / source))
            assert pretrained.closes_recipes(cut, str(tmp_path / source)) == (turn == 0), "the first cut closes them"
            with monkeypatch.context() as patch:
                patch.setattr(pretrained, "is_taken", lambda _: False)
                assert not pretrained.closes_recipes(cut, str(tmp_path / source)), "what was never open is not closed"
        place, notes = secateur.translate_adapter(tmp_path / "adapter", tmp_path / small, tmp_path / f"fit{turn}")
        assert notes == ()
        fit = peft.PeftModel.from_pretrained(load(tmp_path / small), str(place)).merge_and_unload().eval()
        ids = torch.arange(10, 26).reshape(2, 8)
        with torch.no_grad():
            ours, theirs, bare = (
                one(input_ids=ids).logits for one in (fit, load(tmp_path / wanted), load(tmp_path / small))
            )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert float((bare - theirs).abs().max()) > 0.01
    (tmp_path / "small0" / "cut_map.json").unlink()
    again, _ = open_network(tmp_path / "small0").cut(Selection({name: np.arange(32) > 2}))
    assert pretrained.explain_lack(again, str(tmp_path / "small0")), "whose own map is gone"


def test_a_network_cut_after_a_recipe_has_the_map_of_both(tmp_path: Path) -> None:
    """First a layer went, and neurons that each expert chose; then what is no whole unit, and neurons."""
    torch.manual_seed(0)
    mixture = {"n_routed_experts": 4, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
    mixture |= {"num_experts_per_tok": 2, "first_k_dense_replace": 1}
    config = DeepseekV3Config(**{**_COMMON, **_LATENT, **mixture, "num_hidden_layers": 4})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    targets = ["q_a_proj", "q_b_proj", "o_proj", "kv_b_proj"]
    adapt(tmp_path / "base", tmp_path / "adapter", target_modules=targets).save_pretrained(tmp_path / "merged")
    own = (np.arange(128) + np.arange(4).repeat(32)) % 2 == 0
    keep = {"layers": np.arange(4) != 2} | {f"layers.{layer}.expert_neurons": own for layer in (1, 2, 3)}
    sites = {"model.layers.2.self_attn.q_a_proj.channels": 5, "model.layers.0.mlp.gate_proj.channels": 4}
    for source, mid, out in (("base", "mid", "small"), ("merged", "between", "wanted")):
        open_subject(tmp_path / source).cut(Selection(keep))[0].save(tmp_path / mid)
        whole = open_network(tmp_path / mid)
        cut, _ = whole.cut(Selection({name: np.arange(whole.units()[name].count) % n > 0 for name, n in sites.items()}))
        pretrained.save(cut, tmp_path / out, str(tmp_path / mid))
    said = json.loads((tmp_path / "small" / "cut_map.json").read_text())
    assert (said["base"]["name"], said["layers"]) == (str(tmp_path / "base"), [0, 1, 3])
    assert said["parts"]["0"]["neurons"] == "1-3,5-7,9-11,13-15,17-19,21-23,25-27,29-31,33-35,37-39"
    assert {text.partition(",")[0] for text in said["parts"]["3"]["expert_neurons"]} == {"0", "1"}
    assert {name for name in said["tensors"] if ".layers.2." in name} == set(said["tensors"])
    place, notes = secateur.translate_adapter(tmp_path / "adapter", tmp_path / "small", tmp_path / "fit")
    assert len(notes) == 1, "what went"
    fit = peft.PeftModel.from_pretrained(load(tmp_path / "small"), str(place)).merge_and_unload().eval()
    ids = torch.arange(10, 26).reshape(2, 8)
    with torch.no_grad():
        ours, theirs, bare = (
            one(input_ids=ids).logits for one in (fit, *(load(tmp_path / n) for n in ("wanted", "small")))
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((bare - theirs).abs().max()) > 0.01


def test_norms_that_were_made_exact_at_each_of_several_cuts_are_told_together(tmp_path: Path) -> None:
    """An adapter's own norms are multiplied by the whole, D / d of the dense model."""
    base = tiny.folder("llama", tmp_path / "base")
    width = open_subject(base).layout.hidden_size
    open_subject(base).cut(Selection({"channels": np.arange(width) % 4 > 0}))[0].save(tmp_path / "mid")
    for source, out in (("mid", "small"), ("small", "less")):
        secateur.run(pruning.prune, tmp_path / source, None, "params=75%", out=tmp_path / out)
        said = json.loads((tmp_path / out / "cut_map.json").read_text())
        left = load(tmp_path / out).config.hidden_size
        assert said["base"]["name"] == str(base)
        assert len(ranges.read(said["channels"])) == left < width
        assert said["norm_ratio"] == pytest.approx(width / left)


def test_a_sub_block_that_a_recipe_took_away_stays_away_in_the_map(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MiniCPM3Config(**{**_COMMON, **_LATENT})).save_pretrained(tmp_path / "base")
    open_subject(tmp_path / "base").cut(Selection({"attention": np.arange(2) != 1}))[0].save(tmp_path / "mid")
    cut, _ = open_network(tmp_path / "mid").cut(
        Selection({"model.layers.0.self_attn.q_a_proj.channels": np.arange(40) > 3})
    )
    said = json.loads(traced_cuts.describe_cut(cut, str(tmp_path / "mid")) or "{}")
    assert said["parts"]["1"]["heads"] == ""
    assert said["parts"]["0"]["heads"] == "0-3"
    assert set(said["tensors"]) == {
        f"model.layers.0.self_attn.{n}.weight" for n in ("q_a_proj", "q_a_layernorm", "q_b_proj")
    }


def test_a_mixer_that_a_recipe_took_away_stays_away_in_the_map(tmp_path: Path) -> None:
    make_hybrid("Lfm2").save_pretrained(tmp_path / "base")
    subject = open_subject(tmp_path / "base")
    depth = subject.units()["mixer"].count
    first = next(place for place, width in enumerate(subject.widths()) if width.mixer)
    subject.cut(Selection({"mixer": np.arange(depth) != first}))[0].save(tmp_path / "mid")
    whole = open_network(tmp_path / "mid")
    units = whole.units()
    name = next(name for name in units.sites if "feed_forward" in name and units[name].count > 8)
    cut, _ = whole.cut(Selection({name: np.arange(units[name].count) > 3}))
    said = json.loads(traced_cuts.describe_cut(cut, str(tmp_path / "mid")) or "{}")
    assert said["parts"][str(first)]["mixer"] == ""


def test_a_class_whose_tensors_have_other_names_than_the_table_s_has_no_map(tmp_path: Path) -> None:
    """A config that names no class is opened as a base model as a network, and as a language model as a transformer."""
    base = tiny.folder("llama", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["architectures"]
    (base / "config.json").write_text(json.dumps(config))
    small = tmp_path / "small"
    assert cli.main(["prune", str(base), "--budget", "params=60%", "--out", str(small)]) == 0
    assert not (small / "cut_map.json").exists()


def test_what_a_class_has_against_being_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.folder("qwen3", tmp_path / "base")
    whole = open_network(base)
    units = whole.units()
    name = next(name for name in units.sites if name.endswith("mlp.gate_proj.channels"))
    cut, _ = whole.cut(Selection({name: np.arange(units[name].count) >= 8}))
    monkeypatch.setattr(loading, "open_outline", lambda source: {}["of a list where a number was to be"])
    assert traced_cuts.describe_cut(cut, str(base)) is None


@pytest.mark.parametrize("source", ["model.gguf", ""])
def test_a_cut_of_a_gguf_file_has_the_map_of_a_cut_of_its_folder(source: str, tmp_path: Path) -> None:
    """The base is known by the weights: those of floats are the same in either."""
    pytest.importorskip("gguf", reason="the extra `gguf`")
    from subjects.transformer.test_gguf_export import start as write

    write(tmp_path / "start", torch.float32).model.save_pretrained(tmp_path / "base")
    start = tmp_path / "start" / source
    secateur.run(pruning.prune, start, None, "params=70%", out=tmp_path / "small")
    origin = Origin.read(tmp_path / "small")
    assert origin is not None
    assert (origin.name, origin.sha256) == (str(start), hash_folder(tmp_path / "base"))
    assert origin.kept is not None
    assert all(len(parts["neurons"]) < 128 for parts in origin.kept.parts.values())


@pytest.mark.wide
def test_a_class_that_fits_no_table_has_no_map(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    small = tmp_path / "small"
    assert cli.main(["prune", str(tmp_path / "resnet"), "--budget", "params=70%", "--out", str(small)]) == 0
    assert (small / "config.json").is_file()
    assert not (small / "cut_map.json").exists()
