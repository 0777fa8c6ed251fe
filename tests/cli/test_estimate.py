"""secateur estimate: peak memory from a configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from secateur import cli


def test_a_config_alone_says_what_each_stage_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.model("llama").config.save_pretrained(tmp_path / "Small")
    words = ["estimate", str(tmp_path / "Small"), "--share", "0.5", "--batch", "2", "--length", "16"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "Small"
    assert found["weights"] < found["score"] < found["training"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "training, with the original as the teacher" in shown
    assert "cpu has" in shown
    assert cli.main(["estimate", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
