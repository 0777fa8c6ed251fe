"""A map that was measured, and what it is used for."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.runs.regime_map import MAGNITUDE, RANDOM, Key, RegimeMap, Siblings

NAMES, DENSITIES = ("epochs 10", "epochs 80", "epochs 160"), (0.05, 0.2, 0.8)
ERRORS = np.array([[0.12, 0.11, 0.11], [0.14, 0.10, 0.10], [0.17, 0.10, 0.09]])
BARRIERS = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.6, 0.1, 0.0]])
ALIKE = np.array([[0.93, 0.94, 0.95], [0.91, 0.97, 0.98], [0.88, 0.92, 0.99]])


def drawn(errors=ERRORS, seeds=(0, 1), barriers=BARRIERS, masks=MAGNITUDE):
    found = {}
    for row, name in enumerate(NAMES):
        for column, density in enumerate(DENSITIES):
            found[Key(masks, name, density)] = tuple(
                Siblings(
                    seed,
                    density,
                    (errors[row, column] + 0.001 * seed,) * 2,
                    ((0.1, 0.1 + barriers[row, column], 0.1),),
                    (ALIKE[row, column],),
                )
                for seed in seeds
            )
    return found


def mapped(cells=None, **how):
    dense = {"epochs 10": (0.2, 0.2), "epochs 80": (0.1, 0.1), "epochs 160": (0.08, 0.09)}
    given = {"start": 2, **how}
    return RegimeMap("epochs", NAMES, DENSITIES, (0, 1), drawn() if cells is None else cells, dense, **given)


def test_the_published_map_gives_the_published_advice():
    one = mapped()
    assert [[one.regime(row, column) for column in range(3)] for row in range(3)] == [
        ["II-A", "II-A", "II-A"],
        ["I", "II-B", "II-B"],
        ["I", "I", "II-B"],
    ]
    assert one.split == pytest.approx((0.93 + 0.99) / 2)
    assert [one.walk(column).chosen for column in range(3)] == [0, 1, 2]
    assert [one.walk(column).path for column in range(3)] == [(2, 1, 0), (2, 1), (2,)]
    assert one.choices(0) == {
        "usual training": 2,
        "advice": 0,
        "connected and most alike": 0,
        "most accurate before pruning": 2,
        "best on the map": 0,
    }
    assert one.gain("advice", 0).value == pytest.approx(5.0)
    assert one.gain("advice", 2).value == 0.0
    assert [sign.shows for sign in one.signs()] == [True, True, True, True, True]


def test_signs_that_do_not_show_are_told():
    flat = mapped(drawn(ERRORS[:, ::-1], barriers=0 * BARRIERS))
    assert [sign.shows for sign in flat.signs()] == [False, False, False, False, True]
    assert any("Regime I does not show" in note for note in flat.sheet().notes)
    assert not any("Regime I does not show" in note for note in mapped().sheet().notes)
    inside = mapped(drawn(barriers=-0.05 * (BARRIERS > 0.5)))
    assert inside.connectivities[2, 0] > 0
    assert not inside.signs()[3].shows, "fewer errors between siblings are no barrier"
    off = mapped(drawn(barriers=0 * BARRIERS), similar=1.0, beyond=("epochs 5", "epochs 320"))
    told = "5% of the weights: epochs 160 is in II-A, and nothing cooler was measured: try epochs 320"
    assert off.sheet().notes[1] == told


def test_the_sheet_says_what_to_prune_and_keeps_every_cell():
    page = mapped({**drawn(), **drawn(masks=RANDOM)}, early=("epochs 10",)).sheet()
    assert page.headline.startswith(
        "advice against the usual training (epochs 160): +1.7 points of accuracy, mean over "
    )
    assert page.headline.endswith("0.0 points worse at most; regimes on the map: I, II-A, II-B")
    regimes, errors, uses, signs, control = page.tables
    cells = ["I: mc −0.60, CKA 0.880", "I: mc −0.10, CKA 0.920", "II-B: mc 0.00, CKA 0.990"]
    assert regimes.rows[3] == ["epochs 160", *cells]
    assert errors.rows[1] == ["epochs 10", "20.0", "12.0", "11.1", "11.1"]
    assert uses.rows[1][2:4] == ["I: warmer", "epochs 10: +5.0 [+5.0 to +5.0]"]
    assert uses.rows[1][-2:] == ["+2.7", "3 of 3"], "a random temperature, and what the advice looked at"
    assert control.title == "The same with random masks, %"
    assert len(signs.rows) == 6
    (heat,) = page.more
    assert list(heat.rows) == list(NAMES)
    assert np.min(heat.panels["Test error, points above the best of each density"], axis=0).tolist() == [0, 0, 0]
    assert len(page.items) == 2 * 9 * 2
    assert page.figures["uses"][0]["path"] == ["epochs 160", "epochs 80", "epochs 10"]
    assert page.figures["uses"][0]["random_temperature_error"] == pytest.approx(ERRORS[:, 0].mean() + 0.0005)
    assert any("epochs 10: before the first decay" in note for note in page.notes)


def test_a_part_of_a_map_has_the_advice_alone():
    cells = {key: one for key, one in drawn().items() if key.temperature != "epochs 10"}
    part = mapped({key: one for key, one in cells.items() if key.density != 0.05}, similar=0.96)
    assert part.walk(1).chosen == 1
    assert part.choices(1)["best on the map"] is None
    assert part.signs() == []
    assert mapped(drawn(), ordered=False, start=2).advised == "connected and most alike"
