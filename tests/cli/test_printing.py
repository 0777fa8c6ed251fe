from __future__ import annotations

from dataclasses import dataclass

import pytest
import typer

from secateur.cli import printing
from secateur.vocabulary import Cut, Evidence


def row(removed: dict[str, tuple[int, int]], verdict: str = "met") -> Evidence:
    cut = Cut(before={"params": 2.0}, after={"params": 1.0}, removed=removed)
    return Evidence("toy", "params=50%", cut=cut, verdict=verdict)


@dataclass
class Estimate:
    title = "a trial"
    failed, tried = 1, 8

    def rows(self) -> list[list[str]]:
        return [["Measure"], ["words"]]


def test_evidence_says_how_many_units_of_each_kind_went(capsys):
    removed = {"layers.0.heads": (1, 4), "layers.1.heads": (0, 4), "layers.0.neurons": (0, 8)}
    printing.print_first(row(removed))
    printing.print_first(row({}))
    printed = capsys.readouterr().out
    assert "cut: 1 of 8 heads\n" in printed
    assert "cut: nothing\n" in printed


def test_units_of_some_layers_are_not_taken_for_all_that_there_are(capsys):
    """A Qwen2 of 24 layers that lost one was told to have lost "2 of 2 kv_groups, 14 of 14 heads"."""
    printing.print_first(row({"layers": (1, 24), "layers.3.kv_groups": (2, 2), "layers.3.heads": (14, 14)}))
    printing.print_first(row({"layers.3.kv_groups": (1, 2), "layers.4.kv_groups": (1, 2), "channels": (8, 32)}))
    printed = capsys.readouterr().out
    assert "cut: 1 of 24 layers, 2 of 2 kv_groups in 1 layer, 14 of 14 heads in 1 layer\n" in printed
    assert "cut: 2 of 4 kv_groups in 2 layers, 8 of 32 channels\n" in printed


def test_places_are_of_what_is_there_and_a_missed_target_ends_with_one(tmp_path, capsys):
    (tmp_path / "report.html").touch()
    printing.print_places([row({"a.heads": (1, 2)})], tmp_path)
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines() if "  " in line} == {"result", "report"}
    with pytest.raises(typer.Exit):
        printing.print_places([row({}, "missed: by a mile")], tmp_path / "none")
    assert capsys.readouterr().out == ""


def test_an_estimate_says_how_many_lines_would_fail(capsys):
    printing.print_estimate(Estimate())
    printed = capsys.readouterr().out
    assert "1 of 8 lines would have an error" in printed
    assert printed.endswith("verdict: dry run\n")
