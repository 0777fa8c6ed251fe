"""A folder with a model, texts and a run, for all tests of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import second_device
import tiny
from commands import SMALL, forked


@pytest.fixture(autouse=True)
def beside_card() -> Iterator[None]:
    """With SECATEUR_BESIDE_CARD, as `make wide` says it, every command runs where there is a second device."""
    if "SECATEUR_BESIDE_CARD" not in os.environ:
        yield
        return
    with second_device.present():
        yield


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, other: models; texts.txt; small: the run of ziplm that printed what is in `printed`; deci: its export."""
    root = tmp_path_factory.mktemp("cli")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(300)))
    tiny.folder("llama", root / "llama")
    tiny.model("llama", 7).save_pretrained(root / "other")
    tiny.tokenizer().save_pretrained(root / "other")
    how = ["--budget", "params=80%", "--data", "texts.txt", "--out", "small", *SMALL]
    done = forked(root, "run", "ziplm", "llama", *how)
    assert done.code == 0, done.stderr
    (root / "printed").write_text(done.stdout)
    exported = forked(root, "export", "small", "--to", "decilm", "--out", "deci")
    assert (exported.code, exported.stderr) == (0, "")
    return root
