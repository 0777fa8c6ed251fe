from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands import forked
from secateur.methods import elastic
from secateur.subjects import open_subject


@pytest.fixture(scope="module")
def many(places: Path) -> Path:
    """An elastic folder of the model in `llama`."""
    subject = open_subject(places / "llama")
    axes = elastic.find_axes(subject, ("channels", "neurons"))
    torch.manual_seed(0)
    elastic.write(elastic.Elastic(subject, axes, "params", (1.0, 0.5), hidden=8), places / "many")
    return places


def test_a_size_is_written_and_its_folder_printed(many):
    done = forked(many, "extract", "many", "--budget", "params=60%", "--out", "sixty")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("note: ")
    assert "% of the params of the whole model: channels" in done.stdout
    assert done.stdout.endswith("sixty\n")
    assert (many / "sixty" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["llama", "--budget", "params=60%"], "llama is no elastic model, for it has no elastic.json"),
        (["many", "--budget", "params=10%"], "a budget of 0.1 of the whole is outside of what the router was trained"),
        (["many", "--budget", "memory=60%"], "budget memory=60%: the router was trained for params"),
        (["many"], "extract needs --budget: say for example"),
    ],
)
def test_a_mistake_gets_one_line(many, words, error):
    done = forked(many, "extract", *words, "--out", "never")
    assert done.code == 2
    assert done.stderr.startswith(f"secateur: {error}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (many / "never").exists()
