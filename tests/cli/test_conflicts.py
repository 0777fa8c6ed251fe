"""secateur conflicts, and the run on what it wrote."""

from __future__ import annotations

import tiny
from assets import facts
from commands import forked
from secateur.subjects.transformer.heads import read_lists

WORLD = facts.World()


def test_conflicts_and_the_run_on_them(tmp_path):
    facts.write_table(WORLD, tmp_path / "facts.jsonl")
    (tmp_path / "model").symlink_to(tiny.knowing(WORLD))
    done = forked(tmp_path, "conflicts", "facts.jsonl", "--model", "model", "--out", "prompts.jsonl", "--count", "60")
    assert done.code == 0, done.stderr
    assert "60 prompts in prompts.jsonl" in done.stdout
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 60
    words = ["run", "ph3", "model", "--data", "prompts.jsonl", "--budget", "heads=80%", "--trust", "memory"]
    done = forked(tmp_path, *words, "--length", "16", "--batch", "2", "--out", "out")
    assert done.code == 0, done.stderr
    assert len(read_lists(tmp_path / "out")["trust-memory"]) == 3


def test_what_is_wrong_with_facts_is_one_line_and_nothing_is_written(tmp_path):
    (tmp_path / "model").symlink_to(tiny.knowing(WORLD))
    (tmp_path / "facts.jsonl").write_text('{"subject": "a", "relation": "b", "object": "c"}\n')
    (tmp_path / "same.jsonl").write_text('{"prompt": ". .", "memory": " is", "context": " is in"}\n' * 3)
    for words, part in (
        (["conflicts", "facts.jsonl", "--model", "model", "--out", "out"], "no template of 'b'"),
        (["conflicts", "none.jsonl", "--model", "model", "--out", "out"], "is not there"),
        (["conflicts", "facts.jsonl"], "conflicts needs --model, --out"),
        (
            ["run", "ph3", "model", "--data", "same.jsonl", "--budget", "heads=80%", "--out", "out"],
            "begin with the same",
        ),
    ):
        done = forked(tmp_path, *words)
        assert done.code == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert part in done.stderr
        assert not (tmp_path / "out").exists()
