from __future__ import annotations

import pytest

from secateur import cli
from secateur.runs import data


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", None),
        ("--deduplicate", "exact"),
        ("--normalised", "normalised"),
        ("--deduplicate --normalised", "normalised"),
    ],
)
def test_two_switches_say_what_counts_as_equal(monkeypatch, words, value):
    taken = {}

    def prune_data(data: str, budget: list[str], out: str, *, deduplicate: str | None = None, dry_run: bool) -> list:
        taken.update(deduplicate=deduplicate, out=out)
        return []

    monkeypatch.setattr(data, "prune_data", prune_data)
    assert cli.main(["prune-data", "x.txt", "--budget", "examples=50%", "--dry-run", *words.split()]) == 0
    assert taken == {"deduplicate": value, "out": ""}
