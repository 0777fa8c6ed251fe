"""What libraries print around our one line; forked workers are in test_preload.py."""

import logging

import pytest

from secateur._utils import workers


def test_chatty_libraries_log_errors_alone(caplog: pytest.LogCaptureFixture) -> None:
    workers.quiet_libraries()
    with caplog.at_level(logging.WARNING, logger="torchao"):
        logging.getLogger("torchao").warning("no kernels for this device")
        logging.getLogger("torchao").error("broken")
    assert [record.message for record in caplog.records] == ["broken"]


def test_an_error_that_is_no_lost_file_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    workers.ignore_orphan_errors(FileNotFoundError, FileNotFoundError("gone"), None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    workers.ignore_orphan_errors(ValueError, ValueError("real"), None)  # type: ignore[arg-type]
    assert "real" in capsys.readouterr().err
