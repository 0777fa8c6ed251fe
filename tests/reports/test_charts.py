"""The report's charts, drawn from made-up evidence and read back as XML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from measure import samples
from secateur.reports import charts
from secateur.vocabulary import Cut, Evidence, Figure, Recovery

SVG = "{http://www.w3.org/2000/svg}"
CUT = Cut(
    {
        "layers.0.heads": (1, 4),
        "layers.1.heads": (4, 4),
        "layers.0.neurons": (16, 64),
        "layers.1.neurons": (64, 64),
    },
    {"params": 100.0},
    {"params": 40.0},
)


def drawings(text: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(f"<page>{text}</page>"))


def words(drawing: ElementTree.Element) -> list[str]:
    return ["".join(node.itertext()).strip() for node in drawing.iter(f"{SVG}text")]


LOSSES = Recovery(4, losses=((0, 4.0), (1, 3.0), (2, math.nan), (3, 1.5)))


def test_a_chart_is_a_wide_and_a_narrow_drawing_in_the_page_s_own_colours():
    text = charts.losses(LOSSES, "loss")
    wide, narrow = drawings(text)
    assert (wide.get("class"), narrow.get("class")) == ("chart wide", "chart narrow")
    assert wide.get("aria-hidden") == "true"
    assert "var(--accent)" in text
    assert not re.search("#0101", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)  # both stand in one page
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert charts.losses(LOSSES, "loss") == text  # nothing of the clock or of chance


def test_kept_counts_per_layer_are_read_from_the_receipt():
    assert charts.layers(CUT) == {"heads": [(3, 4), (0, 4)], "neurons": [(48, 64), (0, 64)]}
    deeper = Cut({"layers": (1, 3), "layers.1.heads": (2, 4)}, {}, {})
    assert charts.layers(deeper) == {"heads": [None, (2, 4), None]}
    assert charts.layers(Cut({"channels": (8, 64)}, {}, {})) == {}


def test_a_cut_is_bars_with_their_numbers_and_a_no_op_has_none():
    assert charts.panels(CUT) == [
        ("Attention heads kept, by layer", [("0", 0.75, "3 / 4", False), ("1", 0.0, "layer removed", True)]),
        ("FFN neurons kept, by layer", [("0", 0.75, "48 / 64", False), ("1", 0.0, "layer removed", True)]),
    ]
    assert charts.panels(Cut({"layers.0.heads": (0, 4)}, {}, {})) == []
    assert charts.panels(Cut({"channels": (16, 64)}, {}, {})) == [("Kept", [("channels", 0.75, "48 / 64", False)])]
    assert charts.panels(Cut({"x": (10**6, 10**7)}, {}, {}))[0][1][0].words == "90.0%"


def test_one_thing_gone_is_no_layer_gone_and_what_is_not_named_stays():
    half = Cut({"layers": (0, 2), "layers.0.heads": (4, 4), "layers.1.neurons": (1, 2)}, {}, {})
    (_, heads), (_, neurons) = charts.panels(half)
    assert heads == [("0", 0.0, "removed", True), ("1", 1.0, "all", False)]
    assert neurons == [("0", 1.0, "all", False), ("1", 0.5, "1 / 2", False)]


def test_groups_that_all_stay_have_no_panel():
    groups = {"layers.0.heads": (2, 4), "layers.0.kv_groups": (0, 2)}
    assert [title for title, _ in charts.panels(Cut(groups, {}, {}))] == ["Attention heads kept, by layer"]


def test_many_rows_are_lines_with_every_eighth_named():
    ((_, bars),) = charts.panels(Cut({f"layers.{layer}.neurons": (1, 4) for layer in range(41)}, {}, {}))
    assert [bar.name for bar in bars if bar.name] == ["0", "8", "16", "24", "32", "40"]
    assert {bar.words for bar in bars} == {""}


def test_losses_are_drawn_to_the_last_finite_one():
    (wide, _) = drawings(charts.losses(LOSSES, "loss"))
    assert "1.5" in words(wide)
    assert charts.losses(Recovery(1, losses=((0, 4.0), (1, math.nan))), "loss") == ""


def test_losses_over_orders_of_magnitude_have_plain_numbers_at_their_ticks():
    drawn = charts.losses(Recovery(60, losses=tuple((i, 300.0 / (1 + i) ** 1.5) for i in range(60))), "loss")
    for drawing in drawings(drawn):
        shown = words(drawing)
        assert {"100", "10", "1"} <= set(shown)
        assert not [word for word in shown if "$" in word or "\\" in word]


def test_no_word_leaves_its_drawing():
    """By the widths that the layout goes by: words start, end or have their middle where the drawing says."""
    long = Recovery(90_000, losses=tuple((i * 10_000, 1e4 + i) for i in range(10)))
    for drawing in drawings(charts.losses(long, "loss") + charts.quality([samples.result()], "quality")):
        width, height = (float(part) for part in drawing.get("viewBox", "").split()[2:])
        for node in drawing.iter(f"{SVG}text"):
            style, text = node.get("style", ""), "".join(node.itertext()).strip()
            size = float(re.search(r"font-size: ([\d.]+)px", style)[1])
            wide = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0]
            x, y = (float(node.get(axis)) for axis in "xy")
            start = x - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[re.search(r"text-anchor: (\w+)", style)[1]]
            assert start >= -0.5, text
            assert start + wide <= width + 0.5, text
            assert size <= y <= height, text


def test_quality_names_the_original_the_result_and_the_baselines():
    row: Evidence = samples.result()
    (wide, narrow) = drawings(charts.quality([row], "quality"))
    for drawing in (wide, narrow):
        shown = words(drawing)
        assert "original" in shown
        assert row.recipe in shown
        assert set(row.baselines) <= set(shown)
    assert charts.quality([], "quality") == ""


def test_curves_are_panels_of_lines_with_one_legend():
    lines = [
        charts.Line("labels alone", [(5.0, Figure(80.0, 70.0, 190.0)), (100.0, Figure(94.0))], 0.0),
        charts.Line("alpha 1", [(5.0, Figure(91.0)), (100.0, Figure(94.0))]),
    ]
    text = charts.curves({"random": lines, "el2n": lines}, "curves", x="kept, %", y="accuracy", log=True)
    for drawing in drawings(text):
        said = words(drawing)
        assert said.count("labels alone") == said.count("alpha 1") == 1
        assert said.count("random: accuracy") == said.count("el2n: accuracy") == 1
        assert {"5", "100"} <= set(said), "each x that was tried has its tick"
    assert charts.curves({"random": lines, "el2n": lines}, "curves", x="kept, %", y="accuracy", log=True) == text


def test_whiskers_end_where_a_figure_can_not_be():
    wide = charts.Line("a", [(0.0, Figure(50.0, -900.0, 900.0)), (1.0, Figure(60.0))])
    free, bound = (
        charts.curves({"": [wide]}, "curves", x="x", y="y", bounds=bounds)
        for bounds in ((-math.inf, math.inf), (0.0, 100.0))
    )
    assert any("800" in word or "1000" in word or "500" in word for word in words(drawings(free)[0]))
    assert max(float(word) for word in words(drawings(bound)[0]) if word.replace("−", "").isdigit()) <= 120


def test_a_marked_place_is_a_line_of_its_own():
    lines = {"": [charts.Line("a", [(0.0, Figure(1.0)), (1.0, Figure(2.0))])]}
    assert charts.curves(lines, "c", x="x", y="y", mark=0.5) != charts.curves(lines, "c", x="x", y="y")


def test_a_scatter_names_its_points_once_and_draws_lines_through_its_star():
    cloud = charts.Dots("candidates", [(1.0, 90.0), (2.0, 91.0), (3.0, 80.0)], 0.4)
    panels = {
        "conv1": [cloud, charts.Dots("oracle", [(1.0, 90.0)], star=True)],
        "conv2": [cloud, charts.Dots("l1", [(2.0, 91.0)], 0.0)],
    }
    text = charts.scatter(panels, "scatter", x="loss", y="accuracy")
    for drawing in drawings(text):
        said = words(drawing)
        assert said.count("candidates") == said.count("oracle") == said.count("l1") == 1
        assert {"conv1: accuracy", "conv2: accuracy"} <= set(said)
    assert charts.scatter(panels, "scatter", x="loss", y="accuracy") == text
    plain = charts.scatter({"conv1": panels["conv1"][:1]}, "s", x="x", y="y")
    starred = charts.scatter({"conv1": panels["conv1"]}, "s", x="x", y="y")
    assert starred.count("stroke-dasharray") == plain.count("stroke-dasharray") + 4, "two lines, in two drawings"


def test_points_of_several_series_and_fields_of_numbers_are_drawn():
    wanda, rtn = charts.Dots("wanda", [(0.5, 80.0), (0.7, 90.0)]), charts.Dots("rtn", [(0.2, 60.0)], 0.0)
    panels = {"time": [wanda, rtn], "bytes": [wanda]}
    text = charts.scatter(panels, "s", x="share", y="score", log=True)
    for drawing in drawings(text):
        said = words(drawing)
        assert said.count("wanda") == said.count("rtn") == 1
        assert "time: score" in said
    rows = [[0.5, -0.25, math.nan], [0.0, 0.1, 0.2]]
    heat = charts.heat({"shift": rows}, "h", rows=["q_proj", "k_proj"], columns=["0", "1", "2"], x="block")
    for drawing in drawings(heat):
        assert {"q_proj", "k_proj", "0", "2", "block", "shift, up to 0.5"} <= set(words(drawing))
    assert heat != charts.heat(
        {"shift": [[1.0] * 3] * 2}, "h", rows=["q_proj", "k_proj"], columns=["0", "1", "2"], x="block"
    )
