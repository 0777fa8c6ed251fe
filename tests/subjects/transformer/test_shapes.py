"""Shapes: four numbers that tell a transformer of like layers."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BartConfig, BartForConditionalGeneration

import tiny
from secateur.errors import InputError, UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Selection


@pytest.fixture(scope="module")
def llama():
    return open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())


def test_a_parsed_shape_keeps_what_it_does_not_name(llama):
    sizes = {axis: [size] for axis, size in shapes.sizes(llama).items()}
    for given in ("layers=1,neurons=16", ["layers=1", "neurons=16"]):
        assert shapes.parse(given, llama) == {**sizes, "layers": [1], "neurons": [16]}


def test_a_shape_may_have_several_sizes_and_ranges(llama):
    found = shapes.parse("layers=2..4,heads=8+4,neurons=20..128", llama)
    assert found["layers"] == [2, 3, 4]
    assert found["heads"] == [4, 8]
    assert found["neurons"] == [24, 40, 56, 72, 80, 96, 112, 128]  # multiples of 8, and no more of them than eight
    for text, words in (("heads=4+5", "no multiple of 2"), ("layers=4..9", "not one of"), ("neurons=9..15", "no mult")):
        with pytest.raises(InputError, match=words):
            shapes.parse(text, llama)


@pytest.mark.parametrize(
    "text", ["layers=99", "tails=3", "layers", "neurons=0", "layers=1..", "layers=1+", "heads=4..8..2"]
)
def test_a_shape_that_makes_no_sense_is_refused(llama, text):
    with pytest.raises(InputError, match="shape"):
        shapes.parse(text, llama)


def test_the_cost_of_a_shape_is_that_of_the_cut_model(llama):
    units, sizes = llama.units(), shapes.sizes(llama)
    small = {**sizes, "layers": 1, "neurons": 16}
    keep = {name: np.arange(site.count) < small[site.kind] for name, site in units.sites.items() if site.kind in small}
    student, _ = llama.cut(Selection(keep))
    assert shapes.sizes(student) == small
    assert shapes.cost(units, small)["params"] == sum(p.numel() for p in student.model.parameters())


def test_the_price_of_fewer_heads_than_groups_is_that_of_the_cut_model(llama):
    """As shapes of a stage after the one that leaves a head in each group: they were told dearer than they are."""
    width, small = llama.widths()[0], {**shapes.sizes(llama), "heads": llama.widths()[0].kv}
    rows = {"heads": np.arange(width.heads) % (width.heads // width.kv) == 0}
    keep = {name: rows[site.kind] for name, site in llama.units().sites.items() if site.kind in rows}
    student, _ = llama.cut(Selection(keep))
    assert shapes.sizes(student) == small
    ahead, after = (shapes.pricing(one, batch=2, length=8) for one in (llama, student))
    for heads in range(1, width.kv + 1):
        assert ahead({**small, "heads": heads}) == after({**small, "heads": heads})


def test_grid_ends_at_the_whole_and_steps_by_groups(llama):
    grid, sizes, steps = shapes.grid(llama, ["heads", "neurons"]), shapes.sizes(llama), shapes.steps(llama)
    assert all(row[-1] == sizes[axis] for axis, row in grid.items())
    assert grid["layers"] == [sizes["layers"]]
    assert all(k % steps["heads"] == 0 for k in grid["heads"])


def test_a_receipt_counts_over_several_cuts(llama):
    first, _ = llama.cut(Selection({"layers": np.arange(shapes.sizes(llama)["layers"]) != 0}))
    neurons = shapes.sizes(first)["neurons"]
    second, _ = first.cut(Selection({"layers.0.neurons": np.arange(neurons) < 8}))
    removed = shapes.receipt(llama, second).removed
    assert removed["layers"][0] == 1
    assert removed["layers.1.neurons"] == (neurons - 8, neurons)
    assert removed["layers.0.neurons"] == (neurons, neurons)


def test_a_receipt_counts_sub_blocks_that_lost_all_their_units(llama):
    kind = [site.name for site in llama.units().free() if site.name.startswith("layers.1.") and site.kind == "neurons"]
    first, _ = llama.cut(Selection({kind[0]: np.zeros(llama.widths()[1].neurons, dtype=bool)}))
    removed = shapes.receipt(llama, first).removed
    assert removed["ffn"] == (1, 4)
    assert removed["attention"] == (0, 4)
    assert removed["layers"] == (0, 4)
    second, _ = first.cut(Selection({"attention": np.arange(4) != 2}))
    assert shapes.receipt(llama, second).removed["attention"] == (1, 4)


def test_layers_that_differ_have_no_one_shape(llama):
    uneven, _ = llama.cut(Selection({"layers.0.neurons": np.arange(shapes.sizes(llama)["neurons"]) < 8}))
    with pytest.raises(UnsupportedError, match="differ"):
        shapes.sizes(uneven)


def test_which_widths_of_an_encoder_and_its_decoder_differ_is_said():
    """It is the uncut model, so to start from that is no help."""
    sizes = {"d_model": 48, "vocab_size": 64, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
    sizes |= {"encoder_ffn_dim": 96, "decoder_ffn_dim": 80}
    subject = open_subject(BartForConditionalGeneration(BartConfig(**sizes)))
    told = (
        r"differ in neurons \(96 in model.encoder.layers.0, 80 in model.decoder.layers.0\), so no one shape describes "
        "it: .* take secateur prune, or a recipe that cuts each layer by itself, such as llm_pruner"
    )
    with pytest.raises(UnsupportedError, match=told):
        shapes.sizes(subject)


def test_which_widths_a_config_can_say(llama):
    assert [width for width in range(40, 56) if shapes.fits_class(llama, width)] == [40, 48], "its heads divide them"
    qwen, gpt2 = (open_subject(tiny.model(kind), tokenizer=tiny.tokenizer()) for kind in ("qwen3", "gpt2"))
    assert all(shapes.fits_class(qwen, width) for width in range(40, 56))
    assert [width for width in range(1, 33) if shapes.fits_class(gpt2, width)] == [32], "its heads are a share of it"


def test_the_receipt_of_a_model_that_lost_layers_before_counts_the_others(llama):
    small, _ = llama.cut(Selection({"layers": np.arange(4) != 1}))
    less, told = small.cut(Selection({"layers": np.arange(3) != 0, "layers.2.neurons": np.arange(128) < 100}))
    cut = shapes.receipt(small, less)
    assert cut.removed["layers"] == told.removed["layers"] == (1, 3)
    neurons = {name: pair for name, pair in cut.removed.items() if name.endswith(".neurons")}
    assert neurons == {"layers.0.neurons": (128, 128), "layers.1.neurons": (0, 128), "layers.2.neurons": (28, 128)}
    assert cut.removed["layers.1.heads"] == (0, 8)


def test_a_grid_of_what_will_have_been_cut_is_that_of_the_cut_model(llama):
    small, axes = {"layers": 3, "heads": 4, "neurons": 56, "channels": 48}, ("layers", "heads", "neurons", "channels")
    units = llama.units()
    keep = {name: np.arange(site.count) < small[site.kind] for name, site in units.sites.items() if site.kind in small}
    keep = {name: row if row.shape[0] != 8 else np.arange(8) % 4 < 2 for name, row in keep.items()}
    student, _ = llama.cut(Selection(keep))
    assert shapes.sizes(student) == small
    assert shapes.grid(llama, axes, start=small) == shapes.grid(student, axes)
