from __future__ import annotations

import pytest

from secateur.cli import words


@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        ("ziplm m", "ziplm"),
        ("--budget params=1% --dry-run ziplm", "ziplm"),
        ("--seed=3 --overwrite ziplm", "ziplm"),
        ("--no-gradual ziplm m", "ziplm"),
        ("--gradual ziplm m", "ziplm"),
        ("--gradual minitron m", "minitron"),
        ("--config run.yaml --steps 3", "minitron"),
        ("--config=run.yaml --no-merge", "minitron"),
        ("--config run.yaml ziplm", "ziplm"),
        ("--config none.yaml", None),
        ("--config broken.yaml", None),
        ("--config list.yaml", None),
        ("--config", None),
        ("", None),
    ],
)
def test_the_named_recipe_is_found(line, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 1\nrecipe: minitron\n")
    (tmp_path / "broken.yaml").write_text("recipe: [")
    (tmp_path / "list.yaml").write_text("- recipe\n")
    assert words.recipe_named(line.split()) == recipe


def test_a_flag_is_read_with_and_without_an_equals_sign():
    assert words.flag_value(["x", "--recipe", "a"], "--recipe") == "a"
    assert words.flag_value(["--recipe=b"], "--recipe") == "b"
    assert words.flag_value(["--recipe"], "--recipe") is None
    assert words.flag_value([], "--recipe") is None
