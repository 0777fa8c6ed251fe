"""Every result says what it was cut from, through all its cuts, and names the base's weights by one hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import MendedWarning, ModelError
from secateur.runs import exporting
from secateur.subjects import load, open_streamed, open_subject
from secateur.subjects.transformer import cutting
from secateur.subjects.transformer.origin import Origin, hash_folder, hash_model
from secateur.vocabulary import Selection
from subjects.tiny import make, selections, without


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "gpt2", "bert-classifier"])
def test_one_hash_of_one_file_of_several_and_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    model = make(name).model  # qwen3's embeddings are tied, and mixtral's experts stand in files of their own form
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    whole = load_file(tmp_path / "one/model.safetensors")
    first = next(iter(whole))
    (tmp_path / "twice").mkdir()
    save_file({**whole, "tied.to.it": whole[first].clone()}, tmp_path / "twice/model.safetensors")
    found = {hash_folder(tmp_path / place) for place in ("one", "several", "twice")}
    assert found == {hash_model(model)} == {hash_model(load(tmp_path / "several"))}
    whole[first].view(-1)[0] += 1e-3
    save_file(whole, tmp_path / "one/model.safetensors")
    assert hash_folder(tmp_path / "one") not in found
    assert hash_model(model.bfloat16()) not in found
    with torch.device("meta"):
        assert hash_model(type(model)(model.config)) is None


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "deepseek3", "gpt2"])
def test_maps_of_cuts_one_after_another_are_composed(name: str, tmp_path: Path) -> None:
    """Slicing the dense model by the last map gives the weights of the last result, but for what corrects norms."""
    dense = make(name)
    found = selections(dense)
    first = found.get("experts and their neurons", {}) | found["channels"] | {"layers": without(3, 0)}
    first = {key: keep for key, keep in first.items() if key in dense.units().sites}
    half, _ = dense.cut(Selection(first), norm_correction=False)
    half.save(tmp_path / "half")
    half = open_subject(tmp_path / "half")
    sites = half.units().sites
    then = {"channels": np.arange(40) >= 8, "attention": without(2, 0)}
    if "layers.1.experts" in sites:
        count, width = sites["layers.1.experts"].count, half.widths()[1].expert_neurons
        inside = np.tile(np.arange(width) >= 4, count)
        gone = (0, count // 2) if count > 4 else (0,)  # as many of each group
        then |= {"layers.1.experts": without(count, *gone), "layers.1.expert_neurons": inside}
    else:
        then |= {"layers.1.neurons": np.arange(sites["layers.1.neurons"].count) % 2 == 1}
    last, _ = half.cut(Selection(then), norm_correction=False)
    last.save(tmp_path / "last")
    origin = Origin.read(tmp_path / "last")
    assert origin is not None
    assert origin.kept is not None
    assert origin.kept.layers == [1, 2]
    assert origin.sha256 == hash_model(dense.model)
    assert origin.config["n_embd" if name == "gpt2" else "hidden_size"] == 48
    state = cutting.slice_state(dense.layout, origin.kept)
    cutting.fold_layer_scale(dense.layout, state, last.model.config, origin.kept.layers)
    assert state.keys() == last.model.state_dict().keys()
    for key, tensor in last.model.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_other_forms_of_a_result_carry_the_map_too(tmp_path: Path) -> None:
    make("qwen3-moe").model.save_pretrained(tmp_path / "base")
    streamed = open_streamed(tmp_path / "base")
    count = streamed.units("experts").sites["layers.2.experts"].count
    streamed.cut(Selection({"layers.2.experts": np.arange(count) != 1}))[0].save(tmp_path / "streamed")
    small, _ = open_subject(tmp_path / "base").cut(Selection({"layers.2.experts": np.arange(count) != 1}))
    small.save(tmp_path / "small")
    maps = [(tmp_path / place / "cut_map.json").read_text() for place in ("streamed", "small")]
    assert maps[0] == maps[1]
    with torch.no_grad():
        for weight in small.model.parameters():
            weight[weight.abs() < weight.abs().median()] = 0
    small.save(tmp_path / "sparse")
    exporting.export(tmp_path / "sparse", "packed", tmp_path / "packed")
    assert (tmp_path / "packed/cut_map.json").read_text() == maps[1]
    open_subject(tmp_path / "sparse").save(tmp_path / "sparse")  # over what it was read from
    assert (tmp_path / "sparse/cut_map.json").read_text() == maps[1]


def test_a_map_of_another_model_or_none_counts_the_model_as_uncut(tmp_path: Path) -> None:
    small, _ = make("llama").cut(Selection({"layers": without(3, 1)}))
    small.save(tmp_path / "small")
    make("llama").model.save_pretrained(tmp_path / "small")  # the map stays behind
    assert open_subject(tmp_path / "small").origin.kept is None
    for text in ("[]", '{"base": 1}', (tmp_path / "small/cut_map.json").read_text().replace('"0-3"', '"3-0"', 1)):
        (tmp_path / "small/cut_map.json").write_text(text)
        with pytest.raises(ModelError, match=r"cut_map.json is damaged .*: cut the model again"):
            Origin.read(tmp_path / "small")
        with pytest.warns(MendedWarning, match="until then it counts as uncut"):
            assert open_subject(tmp_path / "small").origin.digest() == hash_folder(tmp_path / "small")
