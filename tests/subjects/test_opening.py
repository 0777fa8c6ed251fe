"""One door for everything that was saved: transformers, and cuts of any other network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
import tiny
from secateur.errors import InputError
from secateur.subjects.network.traced import Traced
from secateur.subjects.opening import load, open_subject


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_network_is_opened_cut_saved_and_loaded(tmp_path: Path) -> None:
    subject = open_subject(network(), inputs="2x3")
    assert isinstance(subject, Traced)
    result = secateur.prune(subject)
    result.subject.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", original=network())(torch.ones(1, 3)), result.model(torch.ones(1, 3)))
    for build in (network, lambda: (network(), torch.ones(2, 3))):
        assert torch.equal(load(tmp_path / "small", original=build)(torch.ones(1, 3)), result.model(torch.ones(1, 3)))
    with pytest.raises(InputError, match=r"original gave int: expected a torch.nn.Module, or \(module, inputs\)"):
        load(tmp_path / "small", original=lambda: 3)
    again = open_subject(tmp_path / "small", original=network(), inputs="2x3")
    assert again.units().cost()["channels"] == 4
    assert open_subject(result.subject).units().cost()["channels"] == 4


def test_transformers_open_as_ever(tmp_path: Path) -> None:
    model = tiny.model("llama")
    assert type(open_subject(model)).__name__ == "Decoder"
    open_subject(model).save(tmp_path)
    assert sum(p.numel() for p in load(tmp_path).parameters()) == sum(p.numel() for p in model.parameters())
    with pytest.raises(InputError, match="original goes with networks"):
        load(tmp_path, original=network())
    with pytest.raises(InputError, match="inputs goes with networks"):
        open_subject(tmp_path, inputs="1x3")


def test_a_tokenizer_is_given_by_its_folder_too(tmp_path: Path) -> None:
    tiny.folder("llama", tmp_path / "llama")
    subject = open_subject(tiny.model("llama"), tokenizer=tmp_path / "llama")
    assert subject.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    with pytest.raises(InputError, match=r"there is no tokenizer in .*none: give its folder, or the tokenizer itself"):
        open_subject(tiny.model("llama"), tokenizer=str(tmp_path / "none"))
