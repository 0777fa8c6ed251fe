"""What a run of distilling leaves."""

from __future__ import annotations

import json

from secateur.runs.backends import network
from secateur.runs.distilling import results
from secateur.vocabulary import Evidence, Figure, Recovery


def test_figures_come_back_from_what_json_holds():
    row = {"params": Figure(3.0), "accuracy": Figure(0.5, 0.4, 0.6, "", 7)}
    first, second, why = json.loads(json.dumps(results.plain(row, {}, "no labels")))
    assert results.figures(first) == row
    assert (second, why) == ({}, "no labels")


def test_the_card_says_who_was_taught_by_whom_and_how_to_load_it(of_networks, tmp_path):
    pupil, _ = of_networks()
    row = Evidence(
        recipe="distill", target="3 steps", before={"params": Figure(15.0)}, after={"params": Figure(15.0)},
        recovery=Recovery(steps=3), verdict="met: all", environment={"measured_at": "noon"},
        settings={"model": "nets/thin", "teachers": ["nets/wide", "nets/other"]},
    )  # fmt: skip
    results.save(network, pupil, row, "out", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "# thin taught by wide and other" in card
    assert "in 3 steps. Verdict: met: all." in card
    assert 'torch.export.load("out/model.pt2")' in card
    assert (tmp_path / "model.pt2").is_file()
