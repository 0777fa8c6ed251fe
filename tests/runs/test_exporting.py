"""Sparse and quantised exports: loaded by transformers alone, equal or near, and measured."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

import secateur
import tiny
from secateur import cli
from secateur.errors import InputError, ModelError, NumericalError, UnsupportedError
from secateur.formats import onnx_files
from secateur.recover.quantization import quantise
from secateur.reports import display
from secateur.runs import exporting, measuring
from secateur.runs.backends.language import Language
from secateur.select.pattern import n_of_m
from secateur.subjects import matrices, open_subject
from secateur.subjects.transformer import files, loading, low_rank, packing
from secateur.subjects.transformer.streamed import Streamed
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.tiny import make, run, without

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


FORMS = ("packed", "packed-int8", "int8", "int4", "uneven") if AO else ("packed",)

# Two mixtures and a GPT-2: from where, to what, and whether by way of the disk.
MIXED = [
    (source, to, stream)
    for source, to in (("narrow", "int8"), ("wide", "int4"), ("gpt2", "int8"))
    for stream in (False, True)
    if AO
]
TOLD = {
    "narrow": "12 linears and 48 matrices of packed experts in 8 bits, 1 left as they are: ",
    "wide": "8 linears and 12 matrices of packed experts in 4 bits, 1 left as they are: ",
    "gpt2": "12 Conv1D in 8 bits, 1 left as they are: ",
}


def named(source, to, stream):
    return f"{source}-{to}{'-streamed' if stream else ''}"


@pytest.fixture(scope="module")
def fresh(sparse, tmp_path_factory):
    """Every form, the notes of each, and the logits by transformers alone, in a process without secateur."""
    place, notes = tmp_path_factory.mktemp("forms"), {}
    small, _ = make("llama").cut(Selection({"layers.1.neurons": without(40, 3, 5, 6, 7)}))
    small.save(place / "source")
    for to in FORMS:
        source = place / "source" if to == "uneven" else sparse
        _, notes[to] = secateur.export(source, "int8" if to == "uneven" else to, place / to)
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    made = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_local_experts=3, num_key_value_heads=2, **wide))
    made.save_pretrained(place / "wide")
    tiny.folder("mixtral", place / "narrow")
    tiny.folder("gpt2", place / "gpt2")
    for one in MIXED:
        source, to, stream = one
        _, notes[one] = secateur.export(place / source, to, place / named(*one), stream=stream)
    torch.manual_seed(0)
    batch = open_subject(sparse).example(2, 9)
    batch["input_ids"] %= 60
    save_file(batch, place / "batch.safetensors")
    run_without_secateur(
        "from safetensors.torch import load_file, save_file\n"
        "from transformers import AutoModelForCausalLM\n"
        "batch, logits = load_file('batch.safetensors'), {}\n"
        f"for name in {[*FORMS, *(named(*one) for one in MIXED)]}:\n"
        "    more = {'trust_remote_code': True} if name in ('packed', 'packed-int8', 'uneven') else {}\n"
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
    assert "trust_remote_code=True" in Language().load_line(place / "packed", "packed")


def test_masks_are_those_of_the_zeros(sparse, tmp_path):
    place, notes = secateur.export(sparse, "masks", tmp_path / "masks")
    found = packing.load_masks(place / "masks.safetensors")
    subject = open_subject(sparse)
    assert set(found) == set(matrices.matrices(subject.model, subject.layers()))
    assert all(torch.equal(mask, dict(subject.model.named_parameters())[name] != 0) for name, mask in found.items())
    assert notes[0].replace("\u00a0", " ") == "28 matrices, 50.0 % of their weights zero"


@needs
def test_experts_with_inputs_before_outputs_stay_floating_point(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.QUANTISED, "int8", 0.2)  # of random weights, whose router is at odds with itself
    make("gpt-oss").save(tmp_path / "model")
    place, notes = secateur.export(tmp_path / "model", "int8", tmp_path / "out")
    assert notes[0].startswith("12 linears in 8 bits")
    assert load_file(place / "model.safetensors")["model.layers.0.mlp.experts.down_proj"].dtype == torch.float32


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
    for name, matrix in Language().matrices(again).items():
        assert not torch.count_nonzero(matrix[found[name].weight == 0]), name


@needs
def test_packed_integers_are_a_fifth_and_equal_what_they_stand_for(sparse, fresh):
    """Of 2:4 matrices in 8 bits: 2 x 8 + 4 bits for each four weights, and a scale for each row."""
    place, notes, _, logits = fresh
    assert notes["packed-int8"][0].startswith("28 linears in 8 bits, 1 left as they are: ")
    assert notes["packed-int8"][1].startswith("28 matrices packed as sparse-24-bitmask: ")
    found, stem = load_file(place / "packed-int8" / "packed-00001.safetensors"), "model.layers.0.mlp.up_proj"
    values, places, scale = (found[f"{stem}.{part}"] for part in ("compressed", "bitmask", "weight_scale"))
    assert (values.dtype, values.nbytes + places.nbytes, scale.shape) == (torch.int8, 128 * 64 * 20 // 32, (128, 1))
    said = json.loads((place / "packed-int8" / "config.json").read_text())["compression_config"]
    assert (said["format"], said["sparsity_config"]["format"]) == ("int-quantized", "sparse-24-bitmask")
    subject, again = open_subject(sparse), open_subject(place / "packed-int8")
    wanted = matrices.matrices(subject.model, subject.layers())
    for name, matrix in matrices.matrices(again.model, again.layers()).items():
        torch.testing.assert_close(matrix.weight, quantise.dense(quantise.integers(wanted[name].weight, 8)))
    torch.testing.assert_close(logits["packed-int8"], logits["int8"], atol=1e-4, rtol=1e-4)


@needs
@pytest.mark.parametrize(("source", "to", "stream"), MIXED)
def test_experts_and_turned_matrices_are_quantised_and_load_plainly(fresh, source, to, stream):
    """They stayed in floating point in 8 bits, which is most of a mixture and all of a GPT-2; 4 bits were refused."""
    place, notes, batch, logits = fresh
    told = notes[source, to, stream]
    assert told[0].startswith(TOLD[source])
    assert told[1] == "transformers makes floats of them as it loads: disk and transfer are saved, no memory"
    subject, bits = open_subject(place / source), 8 if to == "int8" else 4
    stored, before = (
        sum(file.stat().st_size for file in (place / one).glob("*.safetensors"))
        for one in (named(source, to, stream), source)
    )
    found = matrices.matrices(subject.model, subject.layers())
    # A scale for each row or group; experts are small here, so that the header and the shapes count.
    assert before - stored > 0.75 * sum(one.weight.numel() for one in found.values()) * (4 - bits / 8 - 4 / 32)
    for matrix in found.values():
        stored = matrix.parameter.detach()
        stored = stored if matrix.expert is None else stored[matrix.expert]
        stored.copy_(quantise.dense(quantise.integers(stored, bits)))
    torch.testing.assert_close(logits[named(source, to, stream)], run(subject, batch), atol=1e-5, rtol=1e-5)


@needs
def test_experts_that_fit_in_no_groups_are_refused_in_four_bits(fresh, tmp_path):
    narrow = r"^model\.layers\.0\.mlp\.experts\.down_proj: 24 inputs are no multiple of 32, [^\n]*choose int8$"
    with pytest.raises(UnsupportedError, match=narrow):
        secateur.export(fresh[0] / "narrow", "int4", tmp_path / "int4")
    assert not (tmp_path / "int4").exists()


@needs
def test_streamed_exports_are_those_of_memory(sparse, fresh, tmp_path, monkeypatch):
    """Number for number, and with one block in memory at a time."""
    place, notes, *_ = fresh
    for to in ("packed", "packed-int8", "int4"):
        _, told = secateur.export(sparse, to, tmp_path / to, stream=True)
        kinds = [one.state_dict() for one in (secateur.load(tmp_path / to), secateur.load(place / to))]
        assert kinds[0].keys() == kinds[1].keys()
        assert all(torch.equal(kinds[0][name], tensor) for name, tensor in kinds[1].items())
        assert told[-1] == notes[to][-1]
    resident: list[int] = []
    loads = Streamed._load

    def counted(self, names, paths):
        loads(self, names, paths)
        resident.append(sum(one.numel() for one in self.model.parameters() if one.device.type != "meta"))

    monkeypatch.setattr(Streamed, "_load", counted)
    monkeypatch.setattr(exporting, "open_subject", None)
    secateur.export(sparse, "int8", tmp_path / "int8", stream=True)
    whole = sum(one.numel() for one in open_subject(sparse).model.parameters())
    assert len(resident) > 8
    assert max(resident) < 0.3 * whole


@needs
def test_a_streamed_export_that_is_too_far_off_is_refused(sparse, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.QUANTISED, "int8", 1e-6)
    with pytest.raises(NumericalError, match="in packed-int8 the outputs are off by"):
        secateur.export(sparse, "packed-int8", tmp_path / "out", stream=True)
    assert not list(tmp_path.iterdir())


@needs
def test_a_quantised_model_is_measured_but_not_rounded_twice(sparse, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(60)))
    place, notes = secateur.export(sparse, "int8", tmp_path / "int8", data=tmp_path / "texts.txt")
    assert notes[-1].startswith("quality: Perplexity ")
    found = measuring.measure(place, data=tmp_path / "texts.txt", batch=2, length=8)["model"]
    assert found["bytes"].value == (place / "model.safetensors").stat().st_size
    assert found["zeros"].value >= 0.5
    assert found["packed_bytes"].value < found["bytes"].value
    assert found["perplexity"].value > 0
    with pytest.raises(ModelError, match=r"already quantised \(torchao\): give the model as it was before"):
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


def test_a_model_of_the_hub_goes_here_and_not_into_a_folder_of_its_name(sparse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **_: str(sparse))
    place, _ = secateur.export("somebody/small", "masks")
    assert [one.name for one in tmp_path.iterdir()] == ["small-masks"] == [str(place)]
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **_: str(tmp_path / "rounded"))
    shutil.copytree(sparse, tmp_path / "rounded")
    files.update_config(tmp_path / "rounded", {"quantization_config": {"quant_method": "torchao"}})
    with pytest.raises(ModelError, match=r"already quantised \(torchao\): give the model as it was before"):
        secateur.export("somebody/rounded", "int8")


@pytest.mark.wide  # exported as in subjects/transformer/test_export.py
def test_a_decoder_with_a_modelling_file_is_exported_with_cache_config_and_tokenizer(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = StableLmConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, pad_token_id=0,
                            num_attention_heads=4, num_key_value_heads=2, bos_token_id=5, eos_token_id=6)  # fmt: skip
    StableLmForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    words = ["--budget", "params=70%", "--no-even", "--out", str(tmp_path / "small")]
    assert cli.main(["prune", str(tmp_path / "model"), *words]) == 0
    assert (tmp_path / "small/modeling_secateur.py").is_file()
    assert secateur.export(tmp_path / "small", "onnx", tmp_path / "onnx") == (tmp_path / "onnx", ())
    session = onnx_files.open_session(tmp_path / "onnx/model.onnx")
    names = [one.name for one in session.get_inputs()]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:] == [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert AutoTokenizer.from_pretrained(tmp_path / "onnx").get_vocab() == tiny.tokenizer().get_vocab()
    assert AutoConfig.from_pretrained(tmp_path / "onnx").model_type == "stablelm"


def test_what_makes_no_sense_is_refused_in_one_line(sparse, tmp_path):
    tiny.folder("llama", tmp_path / "dense")
    with pytest.raises(InputError, match="nothing gets smaller without its zeros"):
        secateur.export(tmp_path / "dense", "packed", tmp_path / "out")
    with pytest.raises(InputError, match="--data goes with int8, int4 and packed-int8"):
        secateur.export(sparse, "packed", tmp_path / "out", data=["a", "b", "c"])
    with pytest.raises(InputError, match="--stream goes with packed, packed-int8, int8 and int4, and not in onnx"):
        secateur.export(sparse, "onnx", tmp_path / "out", stream=True)
    with pytest.raises(InputError, match="and not with --data, on which models are run whole"):
        secateur.export(sparse, "int8", tmp_path / "out", stream=True, data=["a", "b", "c"])
    if AO:
        with pytest.raises(InputError, match=r"integers get no smaller without their zeros: [^\n]*choose int8"):
            secateur.export(tmp_path / "dense", "packed-int8", tmp_path / "out")
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "cut.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="holds a network, which packed can't hold"):
        secateur.export(tmp_path / "network", "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def branched(sparse, tmp_path_factory):
    """The same with a branch beside a linear, as AST leaves it."""
    subject = open_subject(sparse)
    low_rank.attach(subject.model, {"model.layers.0.mlp.up_proj": (torch.randn(40, 64), torch.randn(128, 40))})
    folder = tmp_path_factory.mktemp("branched") / "small"
    subject.save(folder)
    return folder


def count_files(folder):
    return float(sum(path.stat().st_size for path in folder.glob("**/*.safetensors")))


@needs
def test_branches_count_before_and_after_integers(branched):
    place, notes = secateur.export(branched, "int8")
    before = sum(p.nbytes for p in open_subject(branched).model.parameters())
    assert count_files(place) > count_files(place / "side") > 30_000
    sizes = [display.number("bytes", float(size)) for size in (count_files(place), before)]
    assert notes[0].endswith(": {} in place of {}".format(*sizes))
    assert secateur.measure(place)["model"]["bytes"].value == count_files(place)


@pytest.mark.parametrize("source", ["sparse", "branched"])
def test_a_packed_folder_is_measured_by_its_files(source, request):
    """Though it is unpacked as it loads, and so has the memory and the time of what it was."""
    folder = request.getfixturevalue(source)
    place, _ = secateur.export(folder, "packed", folder.with_name("packed"))
    rows = secateur.measure(place, folder)
    packed, whole = rows["model"], rows["against"]
    assert packed["bytes"].value == count_files(place) < 0.8 * count_files(folder)
    assert packed["packed_bytes"].value <= packed["bytes"].value
    assert packed["memory"] == whole["memory"]
    assert whole["bytes"].value > packed["bytes"].value
