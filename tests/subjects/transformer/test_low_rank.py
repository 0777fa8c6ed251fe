"""Branches beside linears: what they add, how they are saved as an adapter of peft's, and who refuses them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
import tiny
from secateur import cli
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.runs.backends.language import Language
from secateur.select.pattern import n_of_m
from secateur.subjects import matrices, open_streamed, open_subject
from secateur.subjects.transformer import export, low_rank
from secateur.vocabulary import Selection

PATHS = {
    "llama": ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"),
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
}


def drawn(model, kind):
    """One branch of rank 4 and one of rank 2, beside linears of unlike shapes."""
    draw = torch.Generator().manual_seed(1)
    found = {}
    for rank, path in zip((4, 2), PATHS[kind], strict=True):
        rows, columns = model.get_submodule(path).weight.shape[:: -1 if kind == "gpt2" else 1]
        found[path] = (0.3 * torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw))
    return found


def beside(kind="llama"):
    subject = open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())
    low_rank.attach(subject.model, drawn(subject.model, kind))
    return subject


@torch.no_grad()
def output(model):
    tokens = torch.arange(8, 20)[None]
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_branch_adds_its_product(kind):
    plain, subject = tiny.model(kind), beside(kind)
    dense = copy.deepcopy(plain)
    for path, (X, S) in drawn(plain, kind).items():
        weight = dense.get_submodule(path).weight
        with torch.no_grad():
            weight += (S @ X).T if kind == "gpt2" else S @ X
    torch.testing.assert_close(output(subject.model), output(dense), rtol=1e-4, atol=1e-4)
    assert float((output(subject.model) - output(plain)).abs().max()) > 0.1
    assert list(low_rank.find_branches(subject.model)) == list(PATHS[kind])


def test_copies_have_branches_of_their_own():
    subject = beside()
    expected, other = output(subject.model), subject.copy()
    assert torch.equal(output(other.model), expected)
    with torch.no_grad():
        for branch in low_rank.find_branches(other.model).values():
            branch.S.zero_()
    assert torch.equal(output(subject.model), expected)
    torch.testing.assert_close(output(other.model), output(tiny.model("llama")))


def test_the_model_without_its_branches_is_the_plain_one():
    subject, plain = beside(), tiny.model("llama")
    expected = output(subject.model)
    with low_rank.without_branches(subject.model) as held:
        assert len(held) == 2
        assert torch.equal(output(subject.model), output(plain))
        assert subject.model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(output(subject.model), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_saved_model_is_plain_and_its_branches_come_back(kind, tmp_path):
    subject = beside(kind)
    subject.save(tmp_path / "out")
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(output(plain), output(tiny.model(kind)))
    expected = output(subject.model)
    assert torch.equal(output(secateur.load(tmp_path / "out")), expected)
    again = open_subject(tmp_path / "out")
    assert torch.equal(output(again.model), expected)
    example = again.example(1, 8)
    assert Language().sizes(again, example)["params"] == Language().sizes(subject, example)["params"]
    added = sum(X.numel() + S.numel() for X, S in drawn(plain, kind).values())
    assert Language().sizes(again, example)["params"].value == sum(p.numel() for p in plain.parameters()) + added


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_the_branches(kind, tmp_path):
    peft = pytest.importorskip("peft")
    subject = beside(kind)
    subject.save(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out" / "side")
    torch.testing.assert_close(output(model), output(subject.model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(model.merge_and_unload()), output(subject.model), rtol=1e-4, atol=1e-4)


def test_the_card_says_how_to_load_both(tmp_path):
    beside().save(tmp_path)
    assert Language().load_line(tmp_path, "small") == (
        "from transformers import AutoModelForCausalLM\nfrom peft import PeftModel\n\n"
        'model = AutoModelForCausalLM.from_pretrained("small")\nmodel = PeftModel.from_pretrained(model, "small/side")'
    )


def test_branches_of_an_earlier_model_do_not_stay(tmp_path):
    beside().save(tmp_path)
    open_subject(tiny.model("llama")).save(tmp_path)
    assert not low_rank.has_branches(tmp_path / "side")
    assert torch.equal(output(secateur.load(tmp_path)), output(tiny.model("llama")))


def test_a_scaled_adapter_is_read_as_it_is_meant(tmp_path):
    subject = beside()
    subject.save(tmp_path)
    config = json.loads((tmp_path / "side" / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    config["alpha_pattern"] = {path: 2 * alpha for path, alpha in config["alpha_pattern"].items()}
    (tmp_path / "side" / "adapter_config.json").write_text(json.dumps(config))
    ours = low_rank.find_branches(subject.model)
    for path, branch in low_rank.find_branches(secateur.load(tmp_path)).items():
        assert torch.equal(branch.S, 2 * ours[path].S)


def test_damaged_branches_are_refused_by_name(tmp_path):
    beside().save(tmp_path)
    weights = tmp_path / "side" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    for wrong, message in (
        ({name: t for name, t in tensors.items() if name != first}, "is damaged or no branch of this model .KeyError"),
        (tensors | {"more": torch.ones(1)}, "holds more, which its adapter_config.json does not name"),
        (tensors | {first: torch.full_like(tensors[first], torch.nan)}, "holds NaN or infinity"),
        (tensors | {first: tensors[first][:, 1:].contiguous()}, "is damaged or no branch of this model"),
    ):
        save_file(wrong, weights)
        with pytest.raises(ModelError, match=message):
            secateur.load(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="delete the folder to open it without"):
        open_subject(tmp_path)


@pytest.mark.parametrize("to", ["packed", "int8", "int4"])
def test_other_forms_keep_the_branches(to, tmp_path):
    if to != "packed":
        pytest.importorskip("torchao")
        pytest.importorskip("compressed_tensors")
    subject = beside()
    for matrix in matrices.matrices(subject.model, subject.layers()).values():
        matrix.weight.mul_(n_of_m(matrix.weight.abs(), 2, 4))
    subject.save(tmp_path / "small")
    secateur.export(tmp_path / "small", to, tmp_path / to)
    expected = output(subject.model)
    with low_rank.without_branches(subject.model):
        gap = float((output(subject.model) - expected).norm())
    for again in (open_subject(tmp_path / to, quantised=True).model, secateur.load(tmp_path / to)):
        assert float((output(again) - expected).norm()) <= (0.0 if to == "packed" else 0.3 * gap)
        for path, branch in low_rank.find_branches(again).items():
            assert torch.equal(branch.S, low_rank.find_branches(subject.model)[path].S)


def test_what_can_not_have_a_branch_is_refused():
    model = tiny.model("llama")
    fits = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 64), torch.ones(64, 2))}
    for path in ("model.layers.0.self_attn.r_proj", "model.norm"):
        with pytest.raises(InputError, match=f"{path} is no linear without a branch"):
            low_rank.attach(model, {path: (torch.ones(2, 64), torch.ones(64, 2))})
    with pytest.raises(InputError, match=r"X \(2, 32\), S \(64, 2\) .* give \[r, 64\] and \[64, r\]"):
        low_rank.attach(model, {"model.layers.0.self_attn.q_proj": (torch.ones(2, 32), torch.ones(64, 2))})
    low_rank.attach(model, fits)
    with pytest.raises(InputError, match="without a branch"):
        low_rank.attach(model, fits)


def test_who_can_not_work_with_branches_says_so(tmp_path):
    subject = beside()
    half = Selection({"layers.0.neurons": torch.arange(128) < 64})
    for verb in (subject.cut, subject.silence):
        with pytest.raises(UnsupportedError, match="q_proj has a branch beside it, so nothing can be cut"):
            verb(half)
    with pytest.raises(UnsupportedError, match="no branches beside linears"):
        export.to_decilm(subject, tmp_path / "decilm")
    subject.save(tmp_path / "out")
    with pytest.raises(UnsupportedError, match="has branches in side/, which can't be streamed"):
        open_streamed(tmp_path / "out")


def test_what_would_lose_the_branches_is_refused(tmp_path, capsys):
    """A cut as a network, of a part, and a plan read the linears alone."""
    beside().save(tmp_path / "small")
    where = str(tmp_path / "small")
    asked = ["prune", where, "--budget", "params=80%", "--out", str(tmp_path / "out")]
    for words in (asked, [*asked, "--part", "model"], ["estimate", where]):
        assert cli.main(words) == 2
        told = capsys.readouterr().err
        assert "small has branches beside its linears, in side/, so nothing can be cut or planned: take the" in told
    assert not (tmp_path / "out").exists()
