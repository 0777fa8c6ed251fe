"""`secateur build-pruner` on what is there; that it builds is tested in runs/test_default_pruner.py."""

from __future__ import annotations

import json

import pytest

from secateur import cli
from secateur.data import packages
from secateur.retrieval.rerankers import HEAD


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The folder in which a pruner was calibrated to 96 %."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    place = tmp_path / "pruner"
    place.mkdir()
    measured = {"threshold": 0.25, "recall": 0.961, "wanted": 0.96, "kept": 0.4, "questions": 9.0}
    measured["options"] = {"model": "", "questions": 2000, "recall": 0.96, "longest": 192, "seed": 0}
    (place / "calibration.json").write_text(json.dumps(measured))
    (place / HEAD).write_bytes(b"weights")
    return place


def test_one_that_is_there_is_told_of_and_not_built_again(built, capsys):
    assert cli.main(["build-pruner"]) == 0
    out, told = capsys.readouterr()
    assert out.strip() == str(built)
    assert "threshold 0.25: 96.1% of the sentences that answer stay, and 40.0% of the tokens" in told


def test_settings_may_stand_in_a_file_and_flags_win(built, capsys):
    config = built.parent / "settings.yaml"
    config.write_text(f"recall: 0.5\nout: {built}\n")
    assert cli.main(["build-pruner", "--config", str(config), "--recall", "0.96"]) == 0
    assert capsys.readouterr().out.strip() == str(built)
    wrong = (("recall: 0.5", "recall=0.5"), ("recall: lots", "recall"), ("recal: 0.5", "did you mean 'recall'"))
    for text, said in wrong:
        config.write_text(text)
        assert cli.main(["build-pruner", "--config", str(config)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--recall", "0.5"],
            "built with recall=0.96, not recall=0.5: give another folder, or overwrite=True (--overwrite)",
        ),
        (
            ["--model", "./mine", "--questions", "9", "--longest", "64", "--seed", "3"],
            "model='', questions=2000, longest=192, seed=0, not model='./mine', questions=9, longest=64, seed=3",
        ),
        (["--recall", "2"], "recall"),
        (["--questions", "0"], "questions"),
        (["--model", "./nowhere", "--out", "fresh"], "nowhere"),
        (["--out", "pruner/calibration.json"], "calibration.json is a file: give a folder"),
        (["--out", "pruner/calibration.json/new"], "new can't be made in"),
        (["--out", "."], "holds no pruner that was built here"),
    ],
)
def test_bad_input_is_one_line(given, said, built, capsys, monkeypatch):
    monkeypatch.chdir(built.parent)
    assert cli.main(["build-pruner", *given]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not (built.parent / "fresh").exists()


MEASURED = '"threshold": 0.25, "recall": 0.961, "wanted": 0.96, "kept": 0.4, "questions": 9'


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("told", "head"),
    [
        ('{"bits": 4}', True),
        ("[]", True),
        ("{bad", True),
        (f"{{{MEASURED.replace('0.4', 'true')}}}", True),
        (f"{{{MEASURED}}}", False),
    ],
)
def test_the_folder_of_another_program_stays_as_it_is(told, head, overwrite, built, capsys, monkeypatch):
    monkeypatch.setattr(packages, "minilm", lambda: pytest.fail("work was begun"))
    (built / "calibration.json").write_text(told)
    (built / "weights.bin").write_text("of months")
    if not head:
        (built / HEAD).unlink()
    assert cli.main(["build-pruner", *overwrite]) == 2
    error = capsys.readouterr().err
    assert f"{built} is there and holds no pruner that was built here" in error
    assert "Traceback" not in error
    assert (built / "weights.bin").read_text() == "of months"


def test_a_pruner_that_does_not_say_how_it_was_built_is_compared_by_its_recall(built, capsys):
    (built / "calibration.json").write_text(f"{{{MEASURED}}}")
    assert cli.main(["build-pruner", "--seed", "3"]) == 0
    assert cli.main(["build-pruner", "--recall", "0.5"]) == 2
    assert "built with recall=0.96, not recall=0.5" in capsys.readouterr().err
