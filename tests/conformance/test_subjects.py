"""Every subject obeys the laws of `secateur.conformance`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from secateur import conformance
from secateur.subjects import open_subject
from secateur.subjects.traced import Traced, open_traced, reload_traced
from subjects import nets

ALL = {
    "identity",
    "original untouched",
    "predicted = receipt",
    "predicted = counted",
    "superset",
    "cut = silenced",
    "round trip",
}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen3"])
def test_transformers(kind: str) -> None:
    laws = conformance.check_subject(lambda: open_subject(tiny.model(kind), tokenizer=tiny.tokenizer()))
    assert set(laws) == ALL


def test_sentence_transformers_folder(tmp_path: Path) -> None:
    folder = tiny.folder("bert", tmp_path / "sentence", sentence=True)
    assert set(conformance.check_subject(lambda: open_subject(folder))) == ALL


def networks(model: nn.Module, inputs: Any) -> set[str]:
    """The laws that hold of a network of any kind."""

    def reload(small: Traced, folder: Path) -> Traced:
        small.save(folder)
        return reload_traced(folder, copy.deepcopy(model), inputs)

    return set(
        conformance.check_subject(
            lambda: open_traced(model, inputs),
            output=lambda subject: nets.outputs(subject.forward()),
            reload=reload,
        )
    )


# Not "grouped": with half of its channels its groups are as thick as they are many, and go in another way, so that its
# channels are counted otherwise. What it costs and what it gives is held by tests/subjects/test_traced.py.
@pytest.mark.parametrize("name", [name for name in nets.NETS if name != "grouped"])
def test_networks(name: str) -> None:
    assert networks(*nets.make(name)) == ALL


def test_a_torchvision_network() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    assert networks(models.resnet18(weights=None, num_classes=10), torch.rand(2, 3, 32, 32)) == ALL
