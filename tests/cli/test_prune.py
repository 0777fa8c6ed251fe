from __future__ import annotations

from secateur import cli
from secateur.cli.printing import print_first
from secateur.runs import cutting, executor


def test_what_is_typed_reaches_the_function_as_its_annotations_say(monkeypatch):
    taken = {}
    monkeypatch.setattr(executor, "run", lambda recipe, **options: taken.update(options, recipe=recipe) or [])
    line = "prune net.py:build --budget channels=50% --budget params=30% --input 1x3x8x8 --protect a,b --protect c"
    assert cli.main([*line.split(), "--multiple", "4", "--offsets", "--normalise", "l2", "--dry-run"]) == 0
    assert taken == {
        "recipe": cutting.prune, "model": "net.py:build", "budget": ["channels=50%", "params=30%"], "data": None,
        "inputs": "1x3x8x8", "protect": ["a,b", "c"], "multiple": 4, "offsets": True, "normalise": "l2",
        "dry_run": True, "out": "", "on_result": print_first,
    }  # fmt: skip


def test_help_shows_nothing_that_no_network_can_have_and_whole_sentences(capsys):
    assert cli.main(["prune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert not [flag for flag in ("--after", "--with", "--environment", "--timer") if flag in shown]
    assert "A first look within" in shown
    assert "None:" not in shown
