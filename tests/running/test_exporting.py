"""Sparse and quantised exports: loaded by transformers alone, equal or near, and measured."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
import tiny
from secateur import running
from secateur.errors import InputError, ModelError, NumericalError, UnsupportedError
from secateur.recover import quantise
from secateur.running import exporting
from secateur.select.pattern import n_of_m
from secateur.subjects import matrices, open_subject, packing
from secateur.vocabulary import Selection
from subjects.tiny import make, run, run_without_secateur, without

AO = all(importlib.util.find_spec(name) for name in ("torchao", "compressed_tensors"))
needs = pytest.mark.skipif(not AO, reason="the extra `quantise`")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A Llama of zeros in 2:4, as a recipe leaves it."""
    folder = tmp_path_factory.mktemp("sparse") / "small"
    subject = open_subject(tiny.folder("llama", folder.with_name("llama")))
    for matrix in matrices.matrices(subject.model, subject.layers()).values():
        matrix.weight.mul_(n_of_m(matrix.weight.abs(), 2, 4))
    subject.save(folder)
    return folder


FORMS = ("packed", "int8", "int4", "uneven") if AO else ("packed",)


@pytest.fixture(scope="module")
def fresh(sparse, tmp_path_factory):
    """Every form, the notes of each, and the logits by transformers alone, in a process without secateur."""
    place, notes = tmp_path_factory.mktemp("forms"), {}
    small, _ = make("llama").cut(Selection({"layers.1.neurons": without(40, 3, 5, 6, 7)}))
    small.save(place / "source")
    for to in FORMS:
        source = place / "source" if to == "uneven" else sparse
        _, notes[to] = secateur.export(source, "int8" if to == "uneven" else to, place / to)
    torch.manual_seed(0)
    batch = open_subject(sparse).example(2, 9)
    batch["input_ids"] %= 60
    save_file(batch, place / "batch.safetensors")
    run_without_secateur(
        "from safetensors.torch import load_file, save_file\n"
        "from transformers import AutoModelForCausalLM\n"
        "batch, logits = load_file('batch.safetensors'), {}\n"
        f"for name in {FORMS}:\n"
        "    more = {'trust_remote_code': True} if name in ('packed', 'uneven') else {}\n"
        "    model = AutoModelForCausalLM.from_pretrained(name, **more).eval()\n"
        "    logits[name] = model(**batch).logits.detach()\n"
        "save_file(logits, 'logits.safetensors')\n",
        place,
    )
    return place, notes, batch, load_file(place / "logits.safetensors")


def test_packed_is_smaller_and_equal(sparse, fresh):
    place, notes, batch, logits = fresh
    assert "packed as sparse-24-bitmask" in notes["packed"][0]
    torch.testing.assert_close(logits["packed"], run(open_subject(sparse), batch), atol=1e-6, rtol=1e-6)
    small = sum(path.stat().st_size for path in (place / "packed").glob("*.safetensors"))
    assert small < 0.75 * (sparse / "model.safetensors").stat().st_size
    assert "trust_remote_code=True" in running.language.loading(place / "packed", "packed")


def test_masks_are_those_of_the_zeros(sparse, tmp_path):
    place, notes = secateur.export(sparse, "masks", tmp_path / "masks")
    found = packing.load_masks(place / "masks.safetensors")
    subject = open_subject(sparse)
    assert set(found) == set(matrices.matrices(subject.model, subject.layers()))
    assert all(torch.equal(mask, dict(subject.model.named_parameters())[name] != 0) for name, mask in found.items())
    assert notes[0].replace("\u00a0", " ") == "28 matrices, 50.0 % of their weights zero"


@needs
@pytest.mark.parametrize(("to", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_loads_plainly_keeps_zeros_and_says_what_it_costs(sparse, fresh, to, bits):
    place, notes, batch, logits = fresh
    assert notes[to][0].startswith(f"28 linears in {bits} bits, 1 left as they are: ")
    assert "outputs are off by" in notes[to][1]
    assert "weights that were zero still are" in notes[to][2]
    again, original = open_subject(place / to, quantised=True), open_subject(sparse)
    torch.testing.assert_close(logits[to], run(again, batch), atol=1e-5, rtol=1e-5)
    exact = run(original, batch)
    assert (logits[to] - exact).norm() < exporting.QUANTISED[to] * exact.norm()
    stored, before = ((one / "model.safetensors").stat().st_size for one in (place / to, sparse))
    found = matrices.matrices(original.model, original.layers())
    blocks = sum(matrix.weight.numel() for matrix in found.values())
    assert before - stored > 0.9 * blocks * (4 - bits / 8 - 4 / quantise.GROUP)
    # The pattern holds in what is multiplied.
    for name, matrix in running.language.matrices(again).items():
        assert not torch.count_nonzero(matrix[found[name].weight == 0]), name


@needs
def test_experts_of_a_mixture_are_counted_in_eight_bits_and_refused_in_four(tmp_path):
    """They stay in floating point: "1 left" hid most of the model."""
    place = tiny.folder("mixtral", tmp_path / "mixtral")
    _, notes = secateur.export(place, "int8", tmp_path / "int8")
    wanted = "12 linears in 8 bits, 49 left as they are, of them 48 matrices of packed experts: "  # 3 x 8 x 2, the head
    assert notes[0].startswith(wanted)
    with pytest.raises(UnsupportedError, match=r"^model.layers.0.mlp.experts holds packed experts, [^\n]*choose int8$"):
        secateur.export(place, "int4", tmp_path / "int4")
    assert not (tmp_path / "int4").exists()


@needs
def test_a_quantised_model_is_measured_but_never_pruned(sparse, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(60)))
    place, notes = secateur.export(sparse, "int8", tmp_path / "int8", data=tmp_path / "texts.txt")
    assert notes[-1].startswith("quality: Perplexity ")
    found = running.measure(place, data=tmp_path / "texts.txt", batch=2, length=8)["model"]
    assert found["bytes"].value == (place / "model.safetensors").stat().st_size
    assert found["zeros"].value >= 0.5
    assert found["packed_bytes"].value < found["bytes"].value
    assert found["perplexity"].value > 0
    with pytest.raises(ModelError, match=r"already quantised \(torchao\): give the model as it was before"):
        open_subject(place)
    with pytest.raises(ModelError, match="already quantised"):
        secateur.export(place, "int4", tmp_path / "twice")
    assert secateur.load(place) is not None


@needs
def test_layers_of_their_own_widths_are_quantised_too(fresh):
    place, _, batch, logits = fresh
    again = open_subject(place / "uneven", quantised=True)
    torch.testing.assert_close(logits["uneven"], run(again, batch), atol=1e-5, rtol=1e-5)


@needs
def test_an_encoder_keeps_what_stands_outside_its_blocks(tmp_path):
    tiny.folder("bert", tmp_path / "bert")
    secateur.export(tmp_path / "bert", "int8", tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == ["pooler.dense"]


def test_an_export_that_is_too_far_off_is_refused_and_leaves_nothing(sparse, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setitem(exporting.QUANTISED, "int8", 1e-6)
    with pytest.raises(NumericalError, match="in int8 the outputs are off by"):
        secateur.export(sparse, "int8", tmp_path / "int8")
    assert not list(tmp_path.iterdir())


def test_what_makes_no_sense_is_refused_in_one_line(sparse, tmp_path):
    tiny.folder("llama", tmp_path / "dense")
    with pytest.raises(InputError, match="nothing gets smaller without its zeros"):
        secateur.export(tmp_path / "dense", "packed", tmp_path / "out")
    with pytest.raises(InputError, match="--data goes with int8 and int4"):
        secateur.export(sparse, "packed", tmp_path / "out", data=["a", "b", "c"])
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "cut.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="holds a network, which packed can't hold"):
        secateur.export(tmp_path / "network", "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()
