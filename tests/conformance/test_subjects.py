"""Every subject obeys the laws of `secateur.conformance`."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from secateur import conformance
from secateur.subjects import open_subject

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
