from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur
import tiny
from secateur._utils import hub
from secateur.errors import BudgetError, InputError
from secateur.methods import elastic
from secateur.runs import extracting
from secateur.subjects import open_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An elastic Llama, whose router has learned nothing."""
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    axes = elastic.find_axes(subject, ("layers", "channels", "neurons"), uneven=("neurons",), order=(2, 1))
    torch.manual_seed(0)
    model = elastic.Elastic(subject, axes, "params", (1.0, 0.75, 0.5), hidden=8)
    place = tmp_path_factory.mktemp("elastic") / "many"
    elastic.write(model, place)
    return place


@pytest.mark.parametrize("share", [0.75, 0.6])
def test_a_size_is_an_ordinary_model_that_was_not_trained(folder, tmp_path, share):
    place, notes = secateur.extract(folder, f"params={share:.0%}", tmp_path / "small")
    model = elastic.read(folder)
    chosen = model.choose(share)
    small = open_subject(place)
    counted = sum(parameter.numel() for parameter in small.model.parameters())
    assert 0.95 * share <= counted / model.whole["params"] <= share
    assert counted == model.cost(chosen)["params"]
    assert notes[0].startswith(f"{counted / model.whole['params']:.1%} of the params of the whole model: layers ")
    batch = small.example(2, 9)
    with torch.no_grad(), model.masks.on(model.subject.model):
        model.mask(chosen)
        masked = model.subject.forward(batch).prediction
        assert float((masked - small.forward(batch).prediction).abs().max()) < 1e-4
    assert not (place / elastic.FILE).exists()
    assert small.tokenizer is not None
    assert "Cut out of the elastic model many by `secateur extract" in (place / "README.md").read_text()
    assert hub.read_card(place)["library_name"] == "transformers"


def test_licence_language_and_base_go_from_the_original_to_all_sizes_and_to_one(tmp_path):
    """Of a run of both stages on budgets of memory; what evidence measures is what was predicted, of both sizes."""
    base = tiny.folder("llama", tmp_path / "llama")
    told = {"license": "llama3.2", "language": ["en", "de"], "base_model": "somebody/base"}
    # A result of ours: the card of another model in a folder names the one before it.
    (base / "README.md").write_text(f"---\n{json.dumps({**told, 'tags': ['secateur']})}\n---\n# Base")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(100)))
    how = {"steps": 1, "samples": 8, "depth_samples": 2, "batch": 1, "length": 16, "train_batch": 2, "router_hidden": 4}
    how |= {"long_steps": 1, "long_length": 24, "profile": "weights=0.5625,cache=1,states=2,buffers=2"}
    budgets = ["served_memory=75%", "served_memory=60%"]
    rows = secateur.run(
        "nemotron_elastic", base, data=tmp_path / "texts.txt", budget=budgets, out=tmp_path / "run", **how
    )
    for row, share in zip(rows, (0.75, 0.6), strict=True):
        assert row.verdict == "met"
        found = {name: (row.measured.get(name) or row.after.get(name)) for name in row.predicted}
        assert {"served_memory", "params", "flops", "kv_cache"} <= found.keys()
        assert {name: figure.value for name, figure in found.items() if figure} == pytest.approx(dict(row.predicted))
        assert 0.95 * share <= row.predicted["served_memory"] / row.before["served_memory"].value <= share
    place, _ = secateur.extract(tmp_path / "run" / "elastic", "served_memory=65%", tmp_path / "sixty")
    for folder in (tmp_path / "run" / "elastic", place):
        card = hub.read_card(folder)
        assert {name: card[name] for name in told} == told
        assert card["pipeline_tag"] == "text-generation"
    assert "the whole model, which holds the smaller ones" in (tmp_path / "run" / "elastic" / "README.md").read_text()


def test_the_whole_budget_is_the_parent(folder, tmp_path):
    place, _ = secateur.extract(folder, "params=100%", tmp_path / "whole")
    state = open_subject(folder).model.state_dict()
    whole = open_subject(place).model.state_dict()
    assert state.keys() == whole.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.items())


def test_what_can_not_be_extracted_writes_nothing(folder, tmp_path):
    for text, error, message in (
        ("params=40%", BudgetError, r"outside of what the router was trained for, 0\.5 to 1"),
        ("flops=60%", BudgetError, "the router was trained for params"),
        ("speed=2x", BudgetError, "the router was trained for params"),
    ):
        with pytest.raises(error, match=message):
            extracting.extract(folder, text, tmp_path / "never")
    with pytest.raises(InputError, match="is no elastic model"):
        extracting.extract(tmp_path, "params=60%", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with pytest.raises(InputError, match=r"is inside the elastic model .*: choose a folder beside it"):
        extracting.extract(folder, "params=60%", folder / "sixty")
    assert not (folder / "sixty").exists()
    with pytest.raises(InputError, match="is there already"):
        extracting.extract(folder, "params=60%", tmp_path)
    assert not list(tmp_path.iterdir())
