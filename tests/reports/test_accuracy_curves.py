"""Figures, tables and chart of accuracy over the share of the data, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from secateur.reports.accuracy_curves import Curve


def by_hand() -> Curve:
    rows = {
        ("random", 0.1, 0.0): (0.50, 0.60),
        ("random", 0.1, 0.5): (0.70, 0.80),
        ("random", 0.1, 1.0): (0.72, 0.78),
        ("random", 0.2, 0.0): (0.80, 0.80),
        ("random", 0.2, 0.5): (0.80, 0.80),
        ("random", 0.2, 1.0): (0.70, 0.70),
        ("random", 0.8, 0.0): (0.90, 0.80),
        ("random", 0.8, 0.5): (0.80, 0.80),
        ("random", 0.8, 1.0): (0.80, 0.70),
    }
    loyal = {cell: tuple(1 - value / 2 for value in values) for cell, values in rows.items()}
    return Curve(rows, ("random",), (0.1, 0.2, 0.8), (0.0, 0.5, 1.0), (0, 1), loyal)


def test_the_best_alpha_is_the_smallest_of_equals():
    found = by_hand()
    assert [found.best("random", share) for share in found.shares] == [0.5, 0.0, 0.0]


def test_gains_are_paired_over_seeds():
    gain = by_hand().gain("random", 0.1, 0.5)
    assert gain.value == pytest.approx(0.2)
    assert gain.low == pytest.approx(0.2), "both seeds gain as much: no spread is left"
    assert by_hand().accuracy("random", 0.1, 0.5).low < 0.2


def test_the_area_is_the_mean_over_the_logarithm_of_the_share():
    found = by_hand()
    # From 0.1 to 0.2 is one halving, from 0.2 to 0.8 are two.
    expected = ((0.50 + 0.80) / 2 * 1 + (0.80 + 0.90) / 2 * 2) / 3
    assert found.areas("random", 0.0)[0] == pytest.approx(expected)
    assert found.area_gain("random", 0.5).value == pytest.approx(
        np.mean([a - b for a, b in zip(found.areas("random", 0.5), found.areas("random", 0.0), strict=True)])
    )
    level = Curve({("r", f, 0.0): (0.7,) for f in (0.1, 0.5)}, ("r",), (0.1, 0.5), (0.0,), (0,))
    assert level.areas("r", 0.0) == pytest.approx((0.7,))
    single = Curve({("r", 0.1, 0.0): (0.7, 0.9)}, ("r",), (0.1,), (0.0,), (0, 1))
    assert single.areas("r", 0.0) == (0.7, 0.9)


def test_the_sheet_has_a_row_for_each_share_and_tells_the_best():
    sheet = by_hand().sheet()
    accuracy, area, loyal = sheet.tables
    assert loyal.title == "random: label loyalty to the teacher, %"
    assert loyal.rows[1][0] == "10%"
    assert loyal.rows[1][1].startswith("72.5 [")
    assert sheet.figures["accuracy"][0]["label_loyalty"]["value"] == pytest.approx(0.725)
    assert accuracy.rows[0] == ["Kept", "labels alone", "alpha 0.5", "teacher alone", "Best alpha", "Gain of the best"]
    assert [row[0] for row in accuracy.rows[1:]] == ["10%", "20%", "80%"]
    assert accuracy.rows[1][-2] == "0.5"
    assert accuracy.rows[1][-1].startswith("+20.0 [")
    assert area.rows[0][-2:] == ["Gain, alpha 0.5", "Gain, teacher alone"]
    gain = 100 * by_hand().area_gain("random", 1.0).value
    assert sheet.headline.startswith(f"Teacher alone brings {gain:+.1f} [".replace("-", "−"))
    assert sheet.headline.endswith("random examples, 10 to 80%, mean over log f")
    assert [line.name for line in sheet.chart.panels["random"]] == ["labels alone", "alpha 0.5", "teacher alone"]
    assert sheet.figures["accuracy"][0]["by_seed"] == (0.50, 0.60)
    assert len(sheet.figures["accuracy"]) == 9
    assert sheet.figures["best_alpha"][0] == {"rule": "random", "share": 0.1, "alpha": 0.5}
    assert math.isclose(sheet.figures["area_over_log_share"][0]["by_seed"][0], by_hand().areas("random", 0.0)[0])


def several() -> Curve:
    """A smaller and a larger teacher beside that of `by_hand`: the smaller is the best at a tenth."""
    first, others = by_hand(), {}
    for name, rows in {
        "nets.py:wide": {0.1: (0.70, 0.78), 0.2: (0.70, 0.70), 0.8: (0.90, 0.90)},
        "nets.py:small": {0.1: (0.80, 0.84), 0.2: (0.70, 0.70), 0.8: (0.60, 0.60)},
    }.items():
        taught = {("random", share, 1.0): row for share, row in rows.items()}
        loyal = {cell: value for cell, value in first.loyalties.items() if cell[2]}
        others[name] = replace(first, accuracies={**first.accuracies, **taught}, loyalties=loyal)
    return replace(first, others=others, params={"MODEL": 100, "nets.py:wide": 400, "nets.py:small": 25})


def test_the_best_teacher_of_each_share_and_how_far_it_leads():
    found = several()
    assert list(found.teachers) == ["nets.py:small", "MODEL", "nets.py:wide"], "by size"
    best = [found.best_teacher("random", share, 1.0) for share in found.shares]
    assert best == ["nets.py:small", "nets.py:small", "nets.py:wide"], "of equals the smallest"
    lead = found.lead("random", 0.1, 1.0, "nets.py:small")
    assert lead.value == pytest.approx(0.07)
    pairs = np.array([0.80, 0.84]) - np.array([0.72, 0.78])
    assert lead.high - lead.low == pytest.approx(2 * 12.7062 * pairs.std(ddof=1) / np.sqrt(2), rel=1e-4)


def test_several_teachers_are_told_beside_one_another_and_one_alone_as_ever():
    sheet, alone = several().sheet(), by_hand().sheet()
    assert sheet.headline == (
        "Best teacher, random examples, teacher alone: nets.py:small at 10%, nets.py:small at 20%, nets.py:wide at 80%"
    )
    table = sheet.tables[1]
    assert [one.title for one in sheet.tables[:2]] == [
        "random, alpha 0.5: accuracy by teacher", "random, teacher alone: accuracy by teacher",
    ]  # fmt: skip
    assert list(sheet.tables[2:]) == list(alone.tables)
    assert table.rows[0] == ["Kept", "Teacher", "Weights", "Accuracy, %", "Over labels alone", "Over MODEL", ""]
    small, own, wide = table.rows[1:4]
    assert (small[:3], small[-1]) == (["10%", "nets.py:small", "25"], "best")
    assert small[3].startswith("82.0 [")
    assert small[4].startswith("+27.0 [")
    assert small[5].startswith("+7.0 [")
    assert (own[1], own[5], own[6]) == ("MODEL", "", "")
    assert (wide[1], wide[6]) == ("nets.py:wide", "")
    panel = sheet.chart.panels["random, teacher alone"]
    assert [line.name for line in panel] == ["labels alone", "nets.py:small", "MODEL", "nets.py:wide"]
    assert panel[1].points[0][1].value == pytest.approx(82.0)
    assert sheet.figures["best_teacher"][1] == {
        "rule": "random", "share": 0.1, "alpha": 1.0, "teacher": "nets.py:small",
    }  # fmt: skip
    told = next(one for one in sheet.figures["teachers"] if one["alpha"] == 1.0)
    assert (told["teacher"], told["params"], told["by_seed"]) == ("nets.py:small", 25, (0.80, 0.84))
    assert told["lead"]["value"] == pytest.approx(0.07)
    assert set(sheet.figures) == {*alone.figures, "teachers", "best_teacher"}


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (("a/nets.py:wide", "b/nets.py:small"), ["nets.py:small", "MODEL", "nets.py:wide"]),
        (("a/nets.py:net", "b/nets.py:net"), ["b/nets.py:net", "MODEL", "a/nets.py:net"]),
    ],
)
def test_the_chart_names_files_by_their_folders_only_where_it_must(given, drawn):
    found = several()
    sizes = dict(zip(("MODEL", *given), found.params.values(), strict=True))
    renamed = replace(found, others=dict(zip(given, found.others.values(), strict=True)), params=sizes)
    assert [line.name for line in renamed.sheet().chart.panels["random, alpha 0.5"]][1:] == drawn
