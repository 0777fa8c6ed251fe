"""Offloaded models in runs: what needs a part of them at a time goes as in memory, all else is refused up front."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import secateur
import tiny
from secateur.errors import UnsupportedError
from secateur.methods import timing
from secateur.runs import measuring
from secateur.runs.backends import of_source
from secateur.runs.backends.language import Language
from secateur.runs.backends.offloaded import OffloadedLanguage
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import costs
from secateur.vocabulary import Figure
from subjects.transformer.test_offloaded import describe, to_disk


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Transformer]:
    """(a Llama in memory, the same offloaded)."""
    model = tiny.model("llama")
    away = to_disk(model, tmp_path_factory.mktemp("away"))
    return open_subject(model, tokenizer=tiny.tokenizer()), open_subject(away, tokenizer=tiny.tokenizer())


def test_it_is_told_by_the_same_hash_and_looked_at_block_by_block(pair: tuple[Transformer, Transformer]) -> None:
    whole, subject = pair
    backend = of_source(subject)
    assert type(backend) is OffloadedLanguage
    assert backend.digest(subject) == Language().digest(whole) == backend.digest(whole)
    assert backend.environment(subject, 2, 8, None).device == timing.Clock().place(subject, 2, 8).device == "cpu"
    assert backend.describe_memory(subject, [], {}, backend.environment(subject, 2, 8, None)) == ""
    expected = Language().matrices(whole)
    found = backend.matrices(subject)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], matrix) for name, matrix in expected.items())


def test_another_version_of_transformers_knows_the_model_again(
    pair: tuple[Transformer, Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, away = pair
    before = Language().digest(whole)
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "5.99.0")
    assert Language().digest(whole) == of_source(away).digest(away) == before


def test_a_run_leaves_a_folder_that_loads_with_and_without_a_device_map(
    pair: tuple[Transformer, Transformer], tmp_path: Path
) -> None:
    whole, subject = pair
    before = describe(subject.model)
    how = {"data": tiny.chains(400), "budget": "params=70%", "samples": 4, "train_length": 16}
    rows = [
        secateur.run("shortgpt", one, out=tmp_path / name, **how)[0] for one, name in ((whole, "a"), (subject, "b"))
    ]
    assert rows[0].after["params"].value == rows[1].after["params"].value < rows[1].before["params"].value
    assert rows[0].after["perplexity"].value == rows[1].after["perplexity"].value
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    away = AutoModelForCausalLM.from_pretrained(tmp_path / "b", device_map={"": "disk"})
    batch = whole.example(2, 7)
    for model in (plain, away):
        assert torch.equal(model(**batch).logits, expected(**batch).logits)
    assert describe(subject.model) == before


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Transformer]:
    """(a mixture of experts in memory, the same offloaded)."""
    whole = open_subject(tiny.mixture(), tokenizer=tiny.tokenizer())
    away = to_disk(whole.model, tmp_path_factory.mktemp("experts"))
    return whole, open_subject(away, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("minitron", {}, "and minitron needs all of them at once, as training and gradients do: open it without"),
        ("shortgpt", {"steps": 10}, "as training and gradients do: say steps=0, open it without device_map where"),
        ("d_pruner", {}, "say by=general, open it without device_map where memory holds it, or take a recipe that"),
        (
            "stun",
            {},
            "and stun needs all of them at once, .* memory holds it, give its folder and stream=True, or",
        ),
    ],
)
def test_what_trains_or_needs_gradients_is_refused_up_front(
    recipe: str, options: dict[str, object], told: str, pair: tuple[Transformer, Transformer], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=f"is offloaded, 39 of its 39 parameters are not in memory, .*{told}"):
        secateur.run(recipe, pair[1], tiny.chains(60), "weights=50%", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"slim": "merge", "score": "activation"},
        {"score": "weight"},
        {"slim": "experts", "score": "soft", "kv_groups": 1},
        {"slim": "experts", "score": "saliency", "shared": 0.5},
        {"slim": "experts", "score": "saliency", "dense": 0.5},
    ],
)
def test_experts_that_need_all_weights_at_once_are_refused_up_front(
    options: dict[str, object], mixtures: tuple[Transformer, Transformer], tmp_path: Path
) -> None:
    told = "say steps=0, slim=neurons|experts, score=activation|random or steps=0, slim=experts, score=soft|saliency,"
    with pytest.raises(UnsupportedError, match=re.escape(told)):
        secateur.run("slimmoe", mixtures[1], tiny.chains(60), "params=70%", tmp_path / "out", steps=0, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"score": "activation"}, {"slim": "experts", "score": "soft"}])
def test_experts_are_scored_and_cut_where_they_are_brought(
    options: dict[str, object], mixtures: tuple[Transformer, Transformer], tmp_path: Path
) -> None:
    whole, subject = mixtures
    options = {"length": 16, "calibration": 4, "steps": 0, "stages": "1", **options}
    for one, name in ((whole, "inside"), (subject, "outside")):
        secateur.run("slimmoe", one, tiny.chains(60), "params=70%", tmp_path / name, **options)
    found, expected = (open_subject(tmp_path / name).model.state_dict() for name in ("outside", "inside"))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_tied_table_counts_once_before_and_after_a_pass(tmp_path: Path) -> None:
    config = copy.deepcopy(tiny.model("llama").config)
    config.tie_word_embeddings = True
    whole = open_subject(type(tiny.model("llama"))(config).eval(), tokenizer=tiny.tokenizer())
    subject = open_subject(to_disk(whole.model, tmp_path / "away"), tokenizer=tiny.tokenizer())
    for one in (whole, subject):
        one.profile = costs.Profile(weights=1.0, cache=1.0, buffers=1.0, states=1.0)
    found, expected = (secateur.measure(one, batch=2, length=8)["model"] for one in (subject, whole))
    for name in ("params", "bytes", "packed_bytes", "memory", "served_memory", "flops", "kv_cache"):
        assert found[name].value == expected[name].value, name
    assert repr(subject).partition("(")[2] == repr(whole).partition("(")[2]


def test_only_pytorch_as_it_is_times_what_is_brought_by_hooks(
    pair: tuple[Transformer, Transformer], tmp_path: Path
) -> None:
    for timer in ("compile", "onnx"):
        told = f"timer={timer} can't run LlamaForCausalLM, which is offloaded: take timer=eager, or open it without"
        with pytest.raises(UnsupportedError, match=told):
            secateur.measure(pair[1], batch=2, length=8, timer=timer)
        with pytest.raises(UnsupportedError, match=told):
            secateur.run(
                "shortgpt", pair[1], tiny.chains(60), "params=70%", tmp_path / "out", samples=4, timer=timer, length=8
            )
    assert not (tmp_path / "out").exists()
    row = secateur.measure(pair[1], batch=2, length=8, environment="decode")["model"]
    assert row["tokens_per_second"].value > 0


@pytest.mark.wide
def test_layers_are_chosen_by_the_time_that_they_take_where_they_are_brought(
    pair: tuple[Transformer, Transformer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "time_share", lambda _, student, *__, **___: (1 + len(student.layers())) / 5)
    monkeypatch.setattr(
        timing.latency, "time_interleaved", lambda runs, **_: {"whole": Figure(5.0), "half": Figure(3.0)}
    )
    monkeypatch.setattr(measuring, "CLOCK", {"pairs": 6, "lasting": 0.0, "enough": 0.0, "resolution": 9.0})
    how = {"data": tiny.chains(60), "budget": "speedup=1.6x", "samples": 4, "batch": 2, "length": 8}
    for dry in (True, False):
        (row,) = secateur.run("shortgpt", pair[1], out=tmp_path / "out", dry_run=dry, **how)
        assert row.predicted["speedup"] == pytest.approx(5 / 3)
    assert len(open_subject(tmp_path / "out").layers()) == 2
