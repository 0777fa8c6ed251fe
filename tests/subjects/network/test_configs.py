from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.methods.pruning import prune
from secateur.subjects.network import configs
from secateur.subjects.network.shrinking import Plan, shrink
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from strangers import run_without_secateur

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {"vocab_size": 50, **SIZES}


def build(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    words = {"input_ids": torch.arange(14).view(2, 7)}
    if name == "llama":
        config = transformers.LlamaConfig(**WORDS, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config).eval(), {**words, "use_cache": False}
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**WORDS)).eval(), words
    if name == "vit":
        config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4)
        return transformers.ViTModel(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name == "marian":  # it writes no sinusoids, and makes others for fewer channels
        sizes = {f"{side}_{each}": 2 for side in ("encoder", "decoder") for each in ("layers", "attention_heads")}
        sizes |= {"d_model": 32, "vocab_size": 50, "pad_token_id": 49, "decoder_start_token_id": 49}
        config = transformers.MarianConfig(**sizes, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=20)
        return transformers.MarianMTModel(config).eval(), {**words, "decoder_input_ids": words["input_ids"]}
    config = transformers.Gemma3TextConfig(**WORDS, num_key_value_heads=2, head_dim=8)
    return transformers.Gemma3ForCausalLM(config).eval(), {**words, "use_cache": False}


def cut(subject: Traced, only: str = "", *, heads: bool = True, even: bool = True) -> tuple[Traced, list[str]]:
    keep = {
        name: np.arange(len(site.classes)) < max(1, len(site.classes) // (4 if ".1." in name and not even else 2))
        for name, site in subject.coupling.sites.items()
        if only in name and (heads or not name.endswith("heads"))
    }
    small, receipt = subject.cut(Selection(keep))
    return small, [note for note in receipt.notes if note.startswith("config")]


LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
LOAD = """
import sys, torch, transformers
for name in sys.argv[1:]:
    kind, inputs = torch.load(f"{name}.given")
    model = getattr(transformers, kind).from_pretrained(name).eval()
    torch.save(model(**inputs)[0], f"{name}.output")
"""


def test_an_even_cut_is_saved_and_loaded_by_its_own_library(tmp_path: Path) -> None:
    cases: dict[str, tuple[bool, dict[str, int]]] = {
        "llama": (True, LLAMA),
        "bert": (False, {"intermediate_size": 32}),
        "vit": (True, {"intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}),
    }
    outputs = {}
    for name, (heads, changed) in cases.items():
        model, inputs = build(name)
        before = copy.deepcopy(model.config.to_dict())
        small, notes = cut(open_traced(model, inputs), heads=heads)
        assert model.config.to_dict() == before, "the user's own config changed"
        said = {key: new for key, new in small.model.config.to_dict().items() if new != before.get(key)}
        assert said == changed
        assert len(notes) == 1
        assert "from_pretrained work" in notes[0]
        assert all(f"{key} {before.get(key)} -> {new}" in notes[0] for key, new in changed.items())
        small.model.save_pretrained(tmp_path / name)
        torch.save((type(model).__name__, inputs), tmp_path / f"{name}.given")
        outputs[name] = small.forward()[0].detach()
        small.save(tmp_path / "own")
        again = reload_traced(tmp_path / "own", model, inputs)
        assert changed.items() <= again.model.config.to_dict().items()
        torch.testing.assert_close(again.forward(), small.forward())
    run_without_secateur(LOAD, tmp_path, *cases)
    for name, output in outputs.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.output"), output)


@pytest.mark.parametrize(
    ("name", "heads", "even"),
    [
        ("llama", True, False),
        ("bert", False, False),
        ("bert", True, True),
        ("vit", True, False),
        ("gemma", True, True),
        ("marian", False, True),
    ],
)
def test_what_no_config_describes_is_said(name: str, heads: bool, even: bool) -> None:
    """Layers that differ; heads that the class computes from channels; a factor that it computes from the width."""
    model, inputs = build(name)
    small, notes = cut(open_traced(model, inputs), heads=heads, even=even)
    assert len(notes) == 1
    assert f"no config of {type(model).__name__} describes what is left" in notes[0]
    assert "secateur.load" in notes[0]
    assert small.model.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("widths", [[8, 32, 16, 40, 24], [8, 48, 16, 48, 24], [16, 32, 8, 48, 8]])
def test_entries_of_a_list_follow_their_own_layers(widths: list[int]) -> None:
    torch.manual_seed(0)
    small = {**WORDS, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.Gemma3nTextConfig(
        **small, num_key_value_heads=1, head_dim=16, vocab_size_per_layer_input=50, hidden_size_per_layer_input=8,
        laurel_rank=4, num_kv_shared_layers=0, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 5,
        layer_types=["full_attention"] * 5,
    )  # fmt: skip
    model = transformers.Gemma3nForCausalLM(config).eval()
    subject = open_traced(model, {"input_ids": torch.arange(14).view(2, 7), "use_cache": False})
    keep = {
        name: np.arange(48) < widths[int(name.split(".")[2])]
        for name in subject.coupling.sites
        if name.endswith("mlp.gate_proj.channels")
    }
    result = subject.cut(Selection(keep))[0]
    assert len(keep) == 5
    assert list(result.model.config.intermediate_size) == widths


def test_a_width_that_is_as_large_as_one_that_went_stays() -> None:
    """T5's inner dimension is as large as its residual, and bias of several layers is one tensor of zeros."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=64, d_kv=16, num_heads=4, d_ff=96, num_layers=2, decoder_start_token_id=0
    )
    words = {"input_ids": torch.arange(14).view(2, 7), "decoder_input_ids": torch.arange(10).view(2, 5)}
    model = transformers.T5ForConditionalGeneration(config).eval()
    subject = open_traced(model, {**words, "use_cache": False})
    heads = [name for name in subject.coupling.sites if name.endswith("heads")]
    assert [name.partition(".block")[0] for name in heads] == ["encoder", "decoder", "decoder"]
    keep = {name: np.arange(4) != 1 for name in heads}
    keep |= {name: np.arange(96) < 40 for name in subject.coupling.sites if name.endswith("wi.channels")}
    small, receipt = subject.cut(Selection(keep))
    assert (small.model.config.d_model, small.model.config.num_heads, small.model.config.d_ff) == (64, 3, 40)
    assert any("d_ff 96 -> 40, num_heads 4 -> 3; save_pretrained" in note for note in receipt.notes)


def test_numbers_of_modules_follow_the_config() -> None:
    small, _ = cut(open_traced(*build("llama")))
    layer = small.model.model.layers[0]
    assert (layer.hidden_size, layer.mlp.hidden_size, layer.mlp.intermediate_size) == (16, 16, 32)
    assert small.model.model.layers[1].self_attn.config is small.model.config


def test_a_config_inside_a_config_follows() -> None:
    """A model of images and words, whose towers have widths of their own."""
    torch.manual_seed(0)
    tower = {**SIZES, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 50},
        vision_config={**tower, "intermediate_size": 48, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    inputs = {"input_ids": torch.arange(14).view(2, 7), "pixel_values": torch.randn(2, 3, 16, 16)}
    model = transformers.CLIPModel(config).eval()
    small, notes = cut(open_traced(model, inputs), "mlp")
    assert "text_config.intermediate_size 64 -> 32" in notes[0]
    assert "vision_config.intermediate_size 48 -> 24" in notes[0]
    assert small.model.config.text_config.intermediate_size == 32
    assert small.model.vision_model.config.intermediate_size == 24
    assert model.config.text_config.intermediate_size == 64


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.head(self.inner(input_ids)[0])


def test_a_model_inside_a_network_has_its_config_too() -> None:
    inner, inputs = build("bert")
    _, receipt = prune(Wrapped(inner), inputs, "channels=80%", protect=["inner.encoder.layer.0.attention"])
    assert any(note.startswith("config: no config of inner (BertModel)") for note in receipt.notes)
    small, notes = cut(open_traced(Wrapped(inner), inputs), "intermediate")
    assert notes == ["config: intermediate_size 64 -> 32; save_pretrained and from_pretrained work as for the original"]
    assert small.model.inner.config.intermediate_size == 32 != inner.config.intermediate_size


def test_a_network_without_a_config_has_no_note() -> None:
    _, receipt = prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    assert not [note for note in receipt.notes if note.startswith("config")]


class Registered(nn.Module):
    """As diffusers' models are: a frozen mapping in `config`, with a list of widths in it."""

    def __init__(self, widths: tuple[int, ...] = (8, 12), frames: int = 8) -> None:
        super().__init__()
        self.config = {"widths": widths, "frames": frames}
        self.frames = frames
        sizes = (3, *widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.last(x)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Registered:
        return cls(**config)

    def register_to_config(self, **given: Any) -> None:
        self.config = {**self.config, **given}

    def save_pretrained(self, folder: str) -> None: ...


def test_lists_of_widths_are_told_and_a_number_that_was_a_width_by_chance_stays() -> None:
    model = Registered()
    small, _ = prune(model, torch.randn(2, 3))
    assert small.config == {"widths": (4, 6), "frames": 8}
    assert model.config == {"widths": (8, 12), "frames": 8}
    assert small.frames == 8


def test_a_config_of_another_make_stays_and_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.config, model.save_pretrained = {"width": 8}, lambda folder: None
    small, receipt = prune(model, torch.randn(2, 4))
    assert small.config == {"width": 8}
    assert any(note.startswith("config: no config of Sequential describes") for note in receipt.notes)


class Scaled(Registered):
    """What no file of weights holds, and no number of a module shows: a factor that comes from a width."""

    def __init__(self, widths: tuple[int, ...] = (8, 12), frames: int = 8) -> None:
        super().__init__(widths, frames)
        self.register_buffer("scale", torch.tensor(float(widths[0])), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


def test_a_config_that_gives_other_buffers_does_not_describe_a_cut() -> None:
    small, receipt = prune(Scaled(), torch.randn(2, 3))
    assert small.config == {"widths": (8, 12), "frames": 8}
    assert any(note.startswith("config: no config of Scaled describes") for note in receipt.notes)


class Reading(Registered):
    """Computes from its config in every pass; with `strict`, it refuses other numbers there."""

    strict = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.strict and self.config["widths"][0] != 8:
            raise ValueError("of another width")
        return super().forward(x) * self.config["widths"][0]


@pytest.mark.parametrize("strict", [False, True])
def test_a_config_that_the_pass_computes_from_stays(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "strict", strict)
    small, receipt = prune(Reading(), torch.randn(2, 3))
    assert small.config == {"widths": (8, 12), "frames": 8}
    assert small.layers[0].out_features == 4
    assert any(note.startswith("config: no config of Reading describes") for note in receipt.notes)


class Normed(Registered):
    """Batch norms before layers without biases."""

    def __init__(self, widths: tuple[int, ...] = (8, 12), frames: int = 8) -> None:
        super().__init__(widths, frames)
        self.norm, self.last = nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.last(self.norm(x))


def test_biases_that_offsets_make_are_in_no_config() -> None:
    torch.manual_seed(0)
    model = Normed()
    nn.init.uniform_(model.norm.bias, 0.5, 1.0)
    small, receipt = prune(model, torch.randn(6, 3), offsets=True)
    assert small.last.bias is not None
    assert any(note.startswith("config: no config of Normed describes") for note in receipt.notes)
    assert prune(model, torch.randn(6, 3))[0].config["widths"] == (4, 6)


def test_a_part_with_a_copy_of_the_config_is_told_too() -> None:
    model, part = nn.Module(), nn.Module()
    model.part, model.save_pretrained = part, lambda folder: None
    model.config, part.config = (SimpleNamespace(width=8, deep=SimpleNamespace(heads=4)) for _ in range(2))
    configs.write(model, [("", "width", 4), ("", "deep.heads", 2)])
    assert model.config == part.config == SimpleNamespace(width=4, deep=SimpleNamespace(heads=2))


def test_a_search_for_a_config_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    whole = configs._built
    monkeypatch.setattr(configs, "_built", lambda *given: built.append(given) or whole(*given))
    model, small = Registered(tuple(range(8, 20))), Registered(tuple(range(4, 16)))
    small.layers[3].bias = nn.Parameter(torch.zeros(100))
    counted = {one: Counter(range(4, 20)) for one in range(8, 20)}
    assert configs.config_changes(model, small, counted, lambda name, surely: True) == ([], [], [""])
    assert len(built) <= 8


def test_a_config_is_looked_for_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not by a cut that is only tried; once for model, file, next cut or notes, whatever is asked for first."""
    searched = []
    whole = configs.config_changes
    monkeypatch.setattr(configs, "config_changes", lambda *given: searched.append(given) or whole(*given))
    model = Registered()
    subject = open_traced(model, torch.randn(2, 3))
    keep = Selection({name: np.arange(len(site.classes)) < 4 for name, site in subject.coupling.sites.items()})
    first, _ = subject.cut(keep)
    assert first.forward().shape == (2, 2)
    first.flops()
    assert not searched
    assert first.model.config["widths"] == (4, 4)
    assert len(searched) == 1
    second, receipt = subject.cut(keep)
    assert any(note.startswith("config: widths.0 8 -> 4") for note in receipt.notes)
    assert second.model.config["widths"] == (4, 4)
    assert len(searched) == 2
    third, _ = subject.cut(keep)
    third.save(tmp_path)
    assert reload_traced(tmp_path, model, torch.randn(2, 3)).model.config["widths"] == (4, 4)
    assert len(searched) == 3
    fourth, _ = subject.cut(keep)
    again = fourth.cut(Selection({"layers.0.channels": np.arange(4) < 2}))[0]
    assert again.model.config["widths"] == (2, 4)
    assert model.config["widths"] == (8, 12)


def test_weights_of_what_a_config_builds_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, ran = [], []
    whole = configs._built

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def built(*given: Any) -> Any:
        with Spy():
            seen.append(whole(*given))
        return seen[-1]

    monkeypatch.setattr(configs, "_built", built)
    model, inputs = build("llama")
    small = cut(open_traced(model, inputs))[0].model
    assert small.config.hidden_size == 16
    assert len(seen) == 2, "one config fits, and a field that is no width for sure is tried as it was"
    assert ran
    assert not {"normal_", "uniform_"} & set(ran)
    for one in seen:
        assert one.lm_head.weight.is_meta
        assert not one.model.rotary_emb.inv_freq.is_meta


def test_a_plan_with_a_config_is_plain_data() -> None:
    made = Plan(config=(("", "widths.1", 5), ("", "frames", 3)))
    assert Plan.from_dict(made.to_dict()) == made
    assert shrink(Registered(), made).config == {"widths": (8, 5), "frames": 3}
