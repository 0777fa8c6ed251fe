"""A folder with a model, texts and a run, for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from commands import SMALL, secateur


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama and other: models; texts.txt; small: the run of ziplm that printed what stands in `printed`."""
    root = tmp_path_factory.mktemp("cli")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(300)))
    tiny.folder("llama", root / "llama")
    tiny.model("llama", 7).save_pretrained(root / "other")
    tiny.tokenizer().save_pretrained(root / "other")
    command = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt", "--out", "small", *SMALL]
    done = secateur(*command, cwd=root)
    assert done.returncode == 0, done.stderr
    (root / "printed").write_text(done.stdout)
    return root
