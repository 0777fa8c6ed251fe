from __future__ import annotations

from commands import forked, words_of
from secateur import cli, studies


def test_without_a_name_all_studies_are_listed(capsys):
    assert cli.main(["study"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(studies.cards())


def test_help_shows_the_options_of_the_study_and_an_unknown_one_is_refused(tmp_path, capsys):
    target = words_of(forked(tmp_path, "study", "lossless", "--help").stdout).partition("--target ")[2]
    assert "(required)" in target[:250]
    assert cli.main(["study", "losless"]) == 2
    assert "did you mean 'lossless'" in capsys.readouterr().err
