"""The sheet of a study: its page in the look of the reports, and its file."""

from __future__ import annotations

import json
import math
import re

from measure import samples
from secateur.reports import report, sheet
from secateur.reports.charts import Dots, Line
from secateur.reports.sheet import Chart, Scatter, Sheet, Table
from secateur.vocabulary import Figure

HOSTILE = '"><script>alert(1)</script>'
ONE = Sheet(
    "curve",
    f"It brings 3 points {HOSTILE}",
    [Table("Accuracy", [["Kept", "alpha 1"], ["5%", "91.0 [88.5 to 93.5]"], [HOSTILE, "–"]], "Over 3 seeds.")],
    {"accuracy": [{"by_seed": (0.5, math.inf), "mean": 0.5}]},
    ["a note"],
    Chart("Curves", {"": [Line("alpha 1", [(5.0, Figure(91.0, 88.5, 93.5)), (100.0, Figure(94.0))])]}, "kept", "%"),
)


def test_points_are_written_with_one_decimal_and_a_sign_where_asked_for():
    assert sheet.points(Figure(93.14, 92.0, 94.16)) == "93.1 [92.0 to 94.2]"
    assert sheet.points(Figure(-1.0, -2.0, 0.5), signed=True) == "−1.0 [−2.0 to +0.5]"
    assert sheet.points(Figure(3.0), signed=True) == "+3.0"


def test_one_seed_is_no_mean():
    assert sheet.over((0, 1)) == "Mean over 2 seeds with its 95 % interval"
    assert sheet.over((7,)) == "Of seed 7 alone"


def test_the_page_says_all_and_runs_nothing():
    page = sheet.render(ONE, about=["net.py:build", HOSTILE], run_yaml="study: curve\n")
    assert "<script" not in page
    assert page.count("&lt;script") == 4  # title, name, headline, row
    assert '<span class="num">91.0</span><span class="spread">88.5 to 93.5</span>' in page
    assert '<td><span class="num">–</span></td>' in page
    for words in ("study curve", "a note", "Over 3 seeds.", "study: curve"):
        assert words in page
    assert page.count('<svg class="chart') == 2
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert "<svg" not in sheet.render(Sheet("ridge", "no chart", []))


def test_numbers_are_of_one_line_and_words_are_not():
    page = sheet.render(Sheet("rag", "lost", [Table("", [["a", "b", "c"], ["x", "−3.5", "first words, htmlrag"]])]))
    assert '<span class="num">−3.5</span>' in page
    assert '<span class="words">first words, htmlrag</span>' in page


def test_it_looks_like_a_report():
    style = re.compile(r"<style>(.*?)</style>", re.DOTALL)
    (ours,), (theirs,) = (style.findall(page) for page in (sheet.render(ONE), report.render(samples.result())))
    assert ours == theirs
    assert len(ours) > 1000


def test_the_file_holds_settings_and_figures_seed_by_seed(tmp_path):
    sheet.write(tmp_path, ONE, {"seeds": (0, 1), "model": "net.py:build"}, environment={"cpu": "x"})
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["settings"] == {"seeds": [0, 1], "model": "net.py:build"}
    assert found["figures"] == {"accuracy": [{"by_seed": [0.5, {"float": "inf"}], "mean": 0.5}]}
    assert (found["study"], found["format"], found["notes"]) == ("curve", 1, ["a note"])
    assert "net.py:build" in (tmp_path / "study.html").read_text()


def test_a_scatter_stands_where_curves_do():
    one = Sheet("oracle", "Found", [], chart=Scatter("All", {"": [Dots("a", [(1.0, 2.0)])]}, "x", "y", "Each a cut."))
    page = sheet.render(one)
    assert 'id="scatter-w' in page
    assert "Each a cut." in page


def test_further_drawings_and_files_stand_beside(tmp_path):
    more = [
        sheet.Heat("Where", {"share": [[1.0, 2.0]]}, ["q"], ["0", "1"], "block", "Grey falls."),
        sheet.Scatter("Cost", {"time": [Dots("a", [(1.0, 2.0)])]}, "x", "y"),
    ]
    one = Sheet("reasoning", "it", [], more=more, files={"protect.json": "{}"})
    page = sheet.render(one)
    assert page.count('<svg class="chart') == 4
    for words in ("Where", "Cost", "Grey falls."):
        assert words in page
    sheet.write(tmp_path, one, {}, environment={})
    assert (tmp_path / "protect.json").read_text() == "{}"


def test_a_line_of_items_is_one_line_whatever_a_model_writes(tmp_path):
    items = [{"text": "a\u2028b\x85c \ud83d"}]  # the last is half a letter
    sheet.write(tmp_path, Sheet("kick", "h", [], {}, items=items), {}, environment={})
    (line,) = (tmp_path / "items.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == items[0]
