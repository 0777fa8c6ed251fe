"""Where things stand in each family."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from secateur.vocabulary import Selection
from subjects.tiny import (
    MODELS,
    make,
    padded,
    run,
    without,
)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "phi3"])
def test_consumers_read_their_units(name: str) -> None:
    """Zeroing a unit's columns of its consumer is silencing the unit."""
    subject = make(name)
    batch = padded(subject)
    sites = subject.units().sites
    consumers = subject.consumers()
    assert set(consumers) == {n for n, s in sites.items() if s.kind in ("heads", "kv_groups", "neurons")}
    for site in (n for n in consumers if n.startswith("layers.1.")):
        other = subject._copy(copy.deepcopy(subject.model), subject.layer_index)
        consumer = consumers[site]
        weight = other.model.get_submodule(consumer.module).weight
        columns = slice(consumer.block, 2 * consumer.block)
        with torch.no_grad():
            (weight if consumer.conv1d else weight.T)[columns] = 0
        keep = {site: without(sites[site].count, 1)}
        if site.endswith("heads") and "layers.1.kv_groups" in sites:
            continue  # one head of a group alone can't go
        torch.testing.assert_close(
            run(other, batch), run(subject.silence(Selection(keep)), batch), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_layers_are_module_paths(name: str) -> None:
    subject = make(name)
    assert len(subject.layers()) == 3
    norms = [subject.model.get_submodule(path) for path in subject.norms()]
    assert all(norm.weight.shape == (48,) for norm in norms)
    per_layer = {"gemma2": 4, "gemma3": 4}.get(name.partition("-")[0], 2)
    assert (
        sum(path.startswith(tuple(f"{layer}." for layer in subject.layers())) for path in subject.norms())
        == 3 * per_layer
    )


def test_what_leaves_with_a_block() -> None:
    layout = make("gemma2-bias").layout
    leaves = {
        "self_attn.q_proj.bias": True,
        "self_attn.o_proj.weight": True,
        "self_attn.o_proj.bias": False,
        "input_layernorm.weight": True,
        "post_attention_layernorm.weight": False,
        "post_feedforward_layernorm.weight": True,
    }
    for name, expected in leaves.items():
        assert layout.leaves_with_block(layout.place(f"model.layers.1.{name}")) is expected, name
    assert not layout.leaves_with_block(layout.place("model.norm.weight"))


@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "gpt2", "llama-tied-bias", "gemma2", "phi3", "qwen2-moe", "gpt-oss"]
)
def test_the_slices_of_a_unit_are_what_its_cut_removes(name):
    """The weights of each unit's slices add up to what its going saves, where nothing else goes with it."""
    subject = make(name)
    units, slices = subject.units(), subject.slices()
    checked = 0
    for site in units.free():
        if site.kind not in ("neurons", "shared_neurons", "kv_groups", "experts") or site.count < 2:
            continue
        keep = np.ones(site.count, bool)
        keep[-1] = False
        saved = units.cost()["params"] - units.cost({site.name: keep})["params"]
        weights = sum(
            int((unit == site.count - 1).sum()) * weight.numel() // weight.shape[dim]
            for weight, dim, unit in slices[site.name]
        )
        assert weights == saved, site.name
        checked += 1
    assert checked
