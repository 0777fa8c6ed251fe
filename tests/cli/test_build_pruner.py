"""`secateur build-pruner` on what is there; that it builds is tested in runs/test_default_pruner.py."""

from __future__ import annotations

import json

import pytest

from secateur import cli


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The folder in which a pruner was calibrated to 95 %."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    place = tmp_path / "pruner"
    place.mkdir()
    measured = {"threshold": 0.25, "recall": 0.951, "wanted": 0.95, "kept": 0.4, "questions": 9.0}
    (place / "calibration.json").write_text(json.dumps(measured))
    return place


def test_one_that_is_there_is_told_of_and_not_built_again(built, capsys):
    assert cli.main(["build-pruner"]) == 0
    out, told = capsys.readouterr()
    assert out.strip() == str(built)
    assert "threshold 0.25: 95.1% of the sentences that answer stay, and 40.0% of the tokens" in told


def test_settings_may_stand_in_a_file_and_flags_win(built, capsys):
    config = built.parent / "settings.yaml"
    config.write_text(f"recall: 0.5\nout: {built}\n")
    assert cli.main(["build-pruner", "--config", str(config), "--recall", "0.95"]) == 0
    assert capsys.readouterr().out.strip() == str(built)
    for text, said in (("recall: 0.5", "not 50%"), ("recall: lots", "recall"), ("recal: 0.5", "did you mean 'recall'")):
        config.write_text(text)
        assert cli.main(["build-pruner", "--config", str(config)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--recall", "0.5"],
            "keeps 95% of the answers, not 50%: give another folder, or overwrite=True (--overwrite)",
        ),
        (["--recall", "2"], "recall"),
        (["--questions", "0"], "questions"),
        (["--model", "./nowhere", "--out", "fresh"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(given, said, built, capsys, monkeypatch):
    monkeypatch.chdir(built.parent)
    assert cli.main(["build-pruner", *given]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not (built.parent / "fresh").exists()
