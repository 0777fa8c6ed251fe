from __future__ import annotations

import shutil

from secateur import cli


def test_report_writes_the_page_anew(places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(places / "small", "small")
    (tmp_path / "small/report.html").unlink()
    (tmp_path / "report.yaml").write_text("run_dir: small\n")
    for words in (["small"], ["--config", "report.yaml"]):
        assert cli.main(["report", *words]) == 0
        assert capsys.readouterr().out == "small/report.html\n"
        assert (tmp_path / "small/report.html").exists()
    assert cli.main(["report", "."]) == 2
    assert "no evidence" in capsys.readouterr().err
