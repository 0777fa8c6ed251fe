"""A model that stays on the disk: the same results as in memory, loaded plainly, with masks that hold when saved."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

import second_device
import tiny
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.score import hessian
from secateur.subjects.transformer import blocks
from secateur.subjects.transformer import streamed as streamed_module
from secateur.subjects.transformer.loading import open_streamed, open_subject
from secateur.vocabulary import Selection
from subjects.tiny import make
from subjects.transformer.test_blocks import MODELS, batches, subject


@pytest.mark.parametrize("name", MODELS)
def test_streamed_results_equal_those_in_memory_and_load_plainly(name, tmp_path):
    whole = subject(name)
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    kept = {k: v.clone() for k, v in whole.model.state_dict().items()}
    results = []
    for one, folder in ((whole.copy(), "a"), (streamed.copy(), "b")):
        for block in blocks.visit(one, batches(), tmp_path / folder):
            for matrix_name, moments in block.read(hessian.Moments).items():
                block.matrices[matrix_name].weight.mul_(moments.value(matrix_name).diagonal())
        results.append(one)
    inside, outside = results
    outside.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, tensor in inside.model.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    assert all(torch.equal(kept[key], tensor) for key, tensor in whole.model.state_dict().items())
    assert all(p.device.type == "meta" for p in streamed.model.parameters())
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors.index.json"}
    data = batches(padded=True)
    for _ in blocks.visit(outside, data, tmp_path / "states", store=False):
        pass
    with outside.resident():
        for batch, states in zip(data, blocks.states(tmp_path / "states", len(outside.layers())), strict=True):
            real = batch["attention_mask"].bool()
            found, expected = blocks.run_ends(outside, batch, states).logits, inside.forward(batch).prediction
            torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    inner = tuple(f"{path}." for path in outside.layers())
    assert set(outside.ends()) == {key for key in outside.files() if not key.startswith(inner)} != set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_streamed_with_the_buffers_of_a_model_opened_whole(dtype, tmp_path):
    """Rotary frequencies were rounded to half: on a long text their blocks computed something else."""
    tiny.model("llama").to(dtype).save_pretrained(tmp_path / "model")
    whole, streamed = open_subject(tmp_path / "model"), open_streamed(tmp_path / "model")
    streamed.put_on(torch.device("cpu"))
    assert {parameter.dtype for parameter in streamed.model.parameters()} == {dtype}
    there = dict(streamed.model.named_buffers())
    for name, buffer in whole.model.named_buffers():
        torch.testing.assert_close(there[name], buffer, rtol=0, atol=0)
    data = [whole.example(1, 400)]
    for _ in blocks.visit(streamed, data, tmp_path / "states", store=False):
        pass
    with torch.no_grad(), streamed.resident():
        states = next(iter(blocks.states(tmp_path / "states", len(streamed.layers()))))
        found = blocks.run_ends(streamed, data[0], states).logits
        torch.testing.assert_close(found, whole.forward(data[0]).prediction, rtol=0, atol=0)


def test_streamed_cut_is_masks_that_hold_when_saved(tmp_path):
    whole = subject()
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    units = streamed.units()
    assert units.cost()["weights"] == blocks.count(whole)
    site = "layers.1.mlp_down_proj"
    keep = torch.rand(units[site].count) > 0.5
    small, cut = streamed.cut(Selection({site: keep}))
    assert cut.removed == {site: (int((~keep).sum()), len(keep))}
    assert cut.after["weights"] == units.cost({site: keep.numpy()})["weights"]
    small.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal((loaded.model.layers[1].mlp.down_proj.weight != 0).flatten(), keep)
    with pytest.raises(InputError, match="use the sites"):
        streamed.cut(Selection({"layers.9.neurons": keep}))
    with pytest.raises(UnsupportedError, match="single weights"):
        streamed.units("heads")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "llama"
    tiny.model("llama").save_pretrained(path, max_shard_size="200KB")
    return path


@pytest.mark.parametrize("opened", [open_subject, open_streamed])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("../llama/model-00001-of-00004.safetensors", "names no files of this folder"),
        ("none.safetensors", "lacks none.safetensors, which its index names"),
        ("", "which its index names"),
        ("first", "which the index says it holds"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(opened, place, told, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    first = min(table["weight_map"].values())
    key = next(key for key, name in table["weight_map"].items() if name != first)
    table["weight_map"][key] = first if place == "first" else place
    index.write_text(json.dumps(table))
    with pytest.raises(ModelError, match=told):
        opened(tmp_path / "model")


@pytest.mark.parametrize("opened", [open_subject, open_streamed])
def test_integers_that_the_configuration_does_not_explain_are_refused(opened, tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is stored as I8: .*before it was quantised"):
        opened(tmp_path)


def test_masks_in_older_checkpoints_are_no_packed_weights(tmp_path):
    tiny.model("gpt2").half().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {f"transformer.h.{block}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool) for block in range(3)}
    save_file(dict(sorted(state.items())), tmp_path / "model.safetensors", {"format": "pt"})
    streamed = open_streamed(tmp_path)
    assert streamed.dtype == torch.float16
    with streamed.resident("transformer.h.1"):
        assert streamed.model.transformer.h[1].attn.c_attn.weight.device.type == "cpu"


def test_the_whole_file_goes_before_others_as_in_transformers(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "older.safetensors", {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "older.safetensors"}}')
    assert {file.name for file in open_streamed(tmp_path).files().values()} == {"model.safetensors"}


@pytest.mark.parametrize("name", ["mixtral", "deepseek3"])
def test_experts_that_go_are_left_out_as_blocks_are_read(name, tmp_path):
    """Their rows of the router too, and what corrects its choice; what is saved is what a cut in memory saves."""
    whole = make(name)
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    units = streamed.units("experts")
    assert units.cost() == whole.units("experts").cost()
    first, *others = [site.name for site in units.free()]
    keep = {site: torch.arange(units[site].count) % 4 != 1 for site in (first, *others)}
    uneven = name == "mixtral"
    if uneven:
        keep[first][2] = False  # layers of their own counts
    inside, told = whole.cut(Selection({site: one.numpy() for site, one in keep.items()}))
    outside, cut = streamed.cut(Selection({site: one.numpy() for site, one in keep.items()}))
    assert (cut.removed, cut.before, cut.after) == (told.removed, told.before, told.after)
    assert [mixture.count for mixture in outside.mixtures().values()] == [
        mixture.count for mixture in inside.mixtures().values()
    ]
    inside.save(tmp_path / "inside")
    outside.save(tmp_path / "outside")
    assert (tmp_path / "outside" / "modeling_secateur.py").is_file() is uneven
    found, expected = (open_subject(tmp_path / place).model.state_dict() for place in ("outside", "inside"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert all(p.is_meta for one in (streamed, outside) for p in one.model.parameters())
    site = next(iter(outside.units().sites))
    with pytest.raises(InputError, match="experts and single weights"):
        outside.cut(Selection({**{one: k.numpy() for one, k in keep.items()}, site: torch.ones(1).bool().numpy()}))


def test_a_block_that_is_there_is_not_read_again(tmp_path):
    """What it has become while it is resident stays, whoever asks for it meanwhile."""
    whole = subject()
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    path = streamed.layers()[1]
    with streamed.resident(path):
        weight = streamed.model.get_submodule(path).mlp.down_proj.weight
        weight.data.zero_()
        with streamed.resident(path):
            assert streamed.model.get_submodule(path).mlp.down_proj.weight is weight
        assert not weight.is_meta
        assert streamed.model.get_submodule(path).mlp.down_proj.weight is weight
    assert all(p.is_meta for p in streamed.model.parameters())


def test_each_block_is_read_once_and_ahead_where_blocks_are_stored(tmp_path, monkeypatch):
    whole = subject()
    whole.save(tmp_path / "model")
    read, alone = streamed_module._read, []

    def note(places):
        numbers = {int(key.split(".layers.")[1].split(".")[0]) for key in places if ".layers." in key}
        alone.append((threading.current_thread() is threading.main_thread(), numbers))
        return read(places)

    monkeypatch.setattr(streamed_module, "_read", note)
    with second_device.present():
        one = open_streamed(tmp_path / "model").put_on(second_device.NAME)
        for block in blocks.visit(one, batches(), tmp_path / "states"):
            for matrix in block.matrices.values():
                matrix.weight.mul_(0.5)
        count = len(one.layers())
        assert [numbers for _, numbers in alone if numbers] == [{number} for number in range(count)]
        assert [here for here, numbers in alone if numbers] == [True] + [False] * (count - 1)
        path = one.layers()[1]
        with one.resident(one.layers()[0]), one.resident(path):  # what is read ahead of a file that is written is old
            one.model.get_submodule(path).mlp.down_proj.weight.data.zero_()
            one._read_next([one.layers()[0]])
            one.store(path, one.changed[path])
        with one.resident(path):
            assert not one.model.get_submodule(path).mlp.down_proj.weight.any()
