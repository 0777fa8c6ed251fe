"""What training tells: a bar on a terminal and in a notebook, lines elsewhere."""

import io
import sys

import pytest

from cells import stand_in
from secateur.recover.training import progress


def test_lines_come_at_intervals_and_at_the_end(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.show_progress(True, "distillation", 100, 0) as lines:
        for step in range(100):
            now[0] = step
            lines.show(float(step), "9 tokens/s")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "distillation: step 61 of 100: loss 60, 9 tokens/s",
        "distillation: step 100 of 100: loss 99, 9 tokens/s",
    ]


@pytest.mark.parametrize(("wanted", "title"), [(False, "training"), (True, "")])
def test_nothing_is_said_where_nobody_asks(wanted, title, capsys):
    with progress.show_progress(wanted, title, 1, 0) as lines:
        lines.show(1.0, "")
        lines.note("evaluation")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.show_progress(True, "training", 2, 0) as bar:
        bar.show(1.5, "9 tokens/s")
        bar.note("evaluation 3")
    assert "training: evaluation" in sys.stderr.getvalue()
    assert "1/2" in sys.stderr.getvalue()


def test_a_notebook_gets_a_bar_and_no_lines(monkeypatch, capsys):
    outputs = stand_in(monkeypatch)
    with progress.show_progress(True, "training", 2, 0) as bar:
        bar.show(1.5, "9 tokens/s")
        bar.show(1.25, "9 tokens/s")
    (looks,) = outputs
    assert "training" in looks[-1]
    assert "2/2" in looks[-1]
    assert "loss 1.25" in looks[-1]
    assert capsys.readouterr().err == ""
