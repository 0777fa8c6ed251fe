"""Packed weights are the model's own, bit for bit, and load without secateur; kernels take what they can."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur
from secateur.errors import InputError, ModelError, RunError, UnsupportedError
from secateur.formats import unpacking
from secateur.measure import sparsity
from secateur.recover.quantization import quantise
from secateur.score import obs
from secateur.select.pattern import n_of_m
from secateur.subjects import open_streamed, open_subject
from secateur.subjects.matrices import masks_of, matrices
from secateur.subjects.transformer import packing
from secateur.subjects.transformer.packing import load_masks, save_masks, save_packed, semi_structured
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.tiny import make, padded, run, without


def two_four(subject):
    for matrix in matrices(subject.model, subject.layers()).values():
        matrix.weight.mul_(n_of_m(matrix.weight.abs(), 2, 4))
    return subject


def half(subject):
    """Unstructured: the smaller half of every matrix."""
    for matrix in matrices(subject.model, subject.layers()).values():
        score = matrix.weight.abs()
        matrix.weight.mul_(score > score.median())
    return subject


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prune", [two_four, half])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "bert-classifier"])
def test_what_was_packed_loads_bit_for_bit(tmp_path, name, prune):
    subject = prune(make(name))
    notes = save_packed(subject, tmp_path / "packed")
    files = sorted(path.name for path in (tmp_path / "packed").iterdir())
    assert not any(name.startswith("model") and name.endswith(".safetensors") for name in files)
    again = open_subject(tmp_path / "packed")
    equal(state(subject.model), state(again.model))
    batch = padded(subject)
    # `make` builds with another attention implementation than what is loaded.
    torch.testing.assert_close(run(subject, batch), run(again, batch), atol=1e-5, rtol=1e-5)
    assert not hasattr(again.model.config, "compression_config")
    assert not hasattr(again.model.config, "auto_map")
    # GPT-2 stores matrices turned, so that its runs of four do not lie side by side.
    form = "sparse-24-bitmask" if prune is two_four and name != "gpt2" else "sparse-bitmask"
    assert form in notes[0]
    # And it is a plain model again: saved, it loads plainly.
    again.save(tmp_path / "plain")
    equal(state(secateur.load(tmp_path / "plain")), state(subject.model))


def test_packed_is_smaller_by_what_the_format_promises(tmp_path):
    subject = two_four(make("llama"))
    subject.model.half()
    subject.save(tmp_path / "plain")
    save_packed(subject, tmp_path / "packed")
    found = load_file(tmp_path / "packed" / "packed-00001.safetensors")
    kept = found["model.layers.0.mlp.up_proj.compressed"].nbytes + found["model.layers.0.mlp.up_proj.bitmask"].nbytes
    assert (
        kept / load_file(tmp_path / "plain" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].nbytes
        == 36 / 64
    )
    assert found["model.layers.0.mlp.up_proj.shape"].tolist() == [[40], [48]]
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["compression_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["sparsity_config"]["format"] == "sparse-24-bitmask"
    assert "model.layers.2.self_attn.q_proj" in config["sparsity_config"]["targets"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("prune", "bits"), [(two_four, 4), (half, 3)])
def test_rounded_weights_are_packed_in_their_bits_and_load_bit_for_bit(tmp_path, prune, bits, dtype):
    subject = make("llama")
    for matrix in matrices(subject.model, subject.layers()).values():
        grid = obs.grid(matrix.weight, bits)
        matrix.weight.copy_(torch.stack([grid(column) for column in matrix.weight.T], 1))
    subject = prune(subject)
    subject.model.to(dtype)
    notes = save_packed(subject, tmp_path / "packed")
    again = open_subject(tmp_path / "packed")
    equal(state(subject.model), state(again.model))
    found = load_file(tmp_path / "packed" / "packed-00001.safetensors")
    stem = "model.layers.0.mlp.up_proj"
    if dtype == torch.float32:  # in half precision a table of such short rows is hardly smaller than they are
        assert "-levels" in notes[0]
        assert len(found[f"{stem}.codes"]) == bits
        assert found[f"{stem}.levels"].shape == (40, 2**bits)
        weight = subject.model.get_submodule(stem).weight.detach()
        stored = sum(found[f"{stem}.{part}"].nbytes for part in ("codes", "levels", "bitmask"))
        assert sparsity.packed_bytes(weight) == pytest.approx(stored, rel=0.05)
        assert stored < 4 * int(weight.count_nonzero())  # as floats without their zeros, but for where these stood


def test_packed_loads_without_secateur(tmp_path):
    subject = two_four(make("llama"))
    save_packed(subject, tmp_path / "packed")
    uneven, _ = make("llama").cut(Selection({"layers.1.neurons": without(40, 3, 5, 6, 7)}))
    save_packed(half(uneven), tmp_path / "uneven")
    batch = padded(subject)
    save_file(batch | {"logits": run(subject, batch), "uneven": run(uneven, batch)}, tmp_path / "wanted.safetensors")
    run_without_secateur(
        "import torch\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModelForCausalLM, LlamaForCausalLM\n"
        "wanted = load_file('wanted.safetensors')\n"
        "inputs = {name: wanted[name] for name in ('input_ids', 'attention_mask')}\n"
        "for name, logits in (('packed', 'logits'), ('uneven', 'uneven')):\n"
        "    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()\n"
        "    assert isinstance(model, LlamaForCausalLM)\n"
        "    assert type(model).__name__ == ('LlamaForCausalLM' if name == 'packed' else 'SecateurLlamaForCausalLM')\n"
        "    torch.testing.assert_close(model(**inputs).logits, wanted[logits], atol=1e-6, rtol=1e-6)\n"
        "    model.generate(wanted['input_ids'][:1, :3], max_new_tokens=3)\n"
        "try:\n"
        "    AutoModelForCausalLM.from_pretrained('packed')\n"
        "except OSError as error:\n"
        "    assert 'model.safetensors' in str(error)\n"
        "else:\n"
        "    raise AssertionError('random weights were loaded in silence')\n",
        tmp_path,
    )


def test_experts_are_packed_as_they_are_stored(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = MixtralConfig(**small, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    model = MixtralForCausalLM(config).eval()
    for matrix in matrices(model).values():
        matrix.weight.mul_(n_of_m(matrix.weight.abs(), 2, 4))
    model.save_pretrained(tmp_path / "plain")
    packing.pack(tmp_path / "plain", model.config)
    found = dict(unpacking.tensors(tmp_path / "plain"))
    again = MixtralForCausalLM.from_pretrained(None, config=config, state_dict=found)
    equal(state(model), state(again))
    assert any(
        name.endswith("experts.0.w1.compressed") for name in load_file(tmp_path / "plain" / "packed-00001.safetensors")
    )


def test_many_files_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_SHARD", 4096)
    subject = half(make("bert"))
    save_packed(subject, tmp_path / "packed")
    assert len(list((tmp_path / "packed").glob("packed-*.safetensors"))) > 3
    equal(state(subject.model), state(open_subject(tmp_path / "packed").model))


def test_a_dense_model_is_not_called_packed(tmp_path):
    with pytest.raises(InputError, match="nothing gets smaller"):
        save_packed(make("llama"), tmp_path / "packed")


def test_other_code_in_a_folder_is_still_not_run(tmp_path):
    save_packed(two_four(make("bert")), tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    del config["compression_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="carries modelling code of its own"):
        open_subject(tmp_path / "packed")


def test_compressed_tensors_reads_what_is_written_where_it_still_can(tmp_path):
    """Versions up to 0.14 hold these formats; later ones have dropped them."""
    sparse = pytest.importorskip("compressed_tensors.compressors.sparse_compressors")
    from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig

    for prune, kind, config in (
        (two_four, sparse.Sparse24BitMaskCompressor, Sparse24BitMaskConfig),
        (half, sparse.BitmaskCompressor, BitmaskConfig),
    ):
        subject = prune(make("llama"))
        folder = tmp_path / prune.__name__
        save_packed(subject, folder)
        stored = load_file(folder / "packed-00001.safetensors")
        found = dict(kind(config=config()).decompress_from_state_dict(stored))
        equal(found, {name: tensor for name, tensor in state(subject.model).items() if name in found})
        assert "model.layers.0.mlp.up_proj.weight" in found
        # In integers: the zeros come back first, then what a scale is multiplied by, which it calls "int-quantized".
        subject.save(tmp_path / "plain")
        chosen = [f"{name}.weight" for name in quantise.linears(subject.model, 8, subject.layers())[0]]
        packing.pack(tmp_path / "plain", subject.model.config, chosen, partial(quantise.integers, bits=8))
        stored = load_file(tmp_path / "plain" / "packed-00001.safetensors")
        found = dict(kind(config=config()).decompress_from_state_dict(stored))
        read = dict(unpacking.tensors(tmp_path / "plain"))
        for name in chosen:
            assert found[name].dtype == torch.int8
            torch.testing.assert_close(found[name] * found[f"{name}_scale"], read[name], atol=0, rtol=0)
        shutil.rmtree(tmp_path / "plain")


# ------------------------------------------------------------------------------------------------------ masks


def test_masks_come_back_with_names_and_shapes_in_one_bit_each(tmp_path):
    masks = masks_of(matrices(half(make("llama")).model)) | {"conv.weight": torch.rand(3, 2, 3, 3) > 0.5}
    save_masks(masks, tmp_path / "masks.safetensors")
    equal(load_masks(tmp_path / "masks.safetensors"), masks)
    assert (tmp_path / "masks.safetensors").stat().st_size < sum(
        mask.numel() for mask in masks.values()
    ) / 8 * 1.2 + 4096


def test_masks_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_masks({"a": torch.ones(3, dtype=torch.bool)}, tmp_path / "masks.safetensors")

    def part(tensors, path, *_):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "save_file", part)
    with pytest.raises(RunError, match="disk full while writing"):
        save_masks({"a": torch.zeros(3, dtype=torch.bool)}, tmp_path / "masks.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["masks.safetensors"]
    assert load_masks(tmp_path / "masks.safetensors")["a"].all()


def test_a_file_without_masks_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name in ("other", "broken", "missing"):
        with pytest.raises(ModelError, match="holds no masks"):
            load_masks(tmp_path / f"{name}.safetensors")


# ---------------------------------------------------------------------------------------------------- kernels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.good, self.dense, self.odd = nn.Linear(128, 64), nn.Linear(128, 64), nn.Linear(20, 64)
        self.half()
        with torch.no_grad():
            self.good.weight.mul_(n_of_m(self.good.weight.abs(), 2, 4))
            self.odd.weight.mul_(n_of_m(self.odd.weight.abs(), 2, 4))


def test_without_kernels_everything_stays_dense_and_says_why():
    net = Net()
    before = state(net)
    swapped, left = semi_structured(net)
    assert swapped == ()
    assert left == {
        "good": "cpu: no 2:4 kernels on this device, so it runs dense",
        "dense": "not 2:4: more than two of four weights are not zero",
        "odd": "64 x 20: kernels take multiples of 32 x 64",
    }
    equal(before, state(net))
    assert semi_structured(nn.Sequential(nn.Linear(64, 64)))[1] == {"0": "float32: kernels take float16 and bfloat16"}


def test_where_kernels_are_only_what_fits_is_swapped(monkeypatch):
    net, seen = Net(), []
    monkeypatch.setattr(packing, "_has_kernels", lambda device: True)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: seen.append(weight) or weight.clone())
    swapped, left = semi_structured(net)
    assert swapped == ("good",)
    assert set(left) == {"dense", "odd"}
    assert len(seen) == 1

    def fails(weight):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", fails)
    assert semi_structured(Net())[1]["good"] == "no such kernel"


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        ("gpt2", "transformer.h.0.mlp.c_proj", "Conv1D: kernels take linears"),
        ("mixtral", "model.layers.1.mlp.experts", "packed experts: kernels take linears"),
    ],
)
def test_matrices_that_are_no_linears_stay_dense_and_are_named(kind, path, reason):
    """GPT-2 gave ((), {}), as if it had nothing to run sparse."""
    subject = two_four(make(kind))
    swapped, left = semi_structured(subject.model)
    assert swapped == ()
    assert left[path] == reason
    assert {m.module for m in matrices(subject.model, subject.layers()).values()} <= set(left)
    assert "lm_head" not in left


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device")
def test_on_a_cuda_device_the_swapped_model_gives_the_same_outputs():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no sparse tensor cores")
    net = Net().cuda()
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    wanted = net.good(x)
    assert semi_structured(net)[0] == ("good",)
    torch.testing.assert_close(net.good(x), wanted, atol=2e-2, rtol=2e-2)


def test_packed_weights_are_not_streamed(tmp_path):
    save_packed(two_four(make("llama")), tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="holds packed weights, which can't be streamed"):
        open_streamed(tmp_path / "packed")
