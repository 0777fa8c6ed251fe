"""What cutting many lines would come to, from the first of them."""

from __future__ import annotations

from secateur.runs.estimates import Estimate


def test_all_lines_come_to_as_much_as_the_first_do_on_average():
    found = Estimate("kg_rag", "tokens=50%", 40, 8, 1, 2.0, {"tokens": 800.0}, {"tokens": 400.0}, 16, 3200)
    assert found.title == "kg_rag, tokens=50%, the first 8 of 40 lines"
    rows = {row[0]: row[1:] for row in found.rows()}
    assert rows["Tokens"] == ["tokens=50%", "800", "400", "−50.0\u00a0%"]
    assert rows["Tokens, all 40, estimated"] == ["–", "4.00\u00a0k", "2.00\u00a0k", "−50.0\u00a0%"]
    assert rows["Time a question"][2] == "250\u00a0ms"
    assert rows["Time on one process, all 40, estimated"][2] == "10.0\u00a0s"
    assert rows["Calls of the language model, all 40, estimated"][2] == "80"
    assert rows["Its tokens, all 40, estimated"][2] == "16.0\u00a0k"


def test_a_limit_of_the_run_bounds_what_it_would_take():
    found = Estimate("kg_rag", "words=9", 40, 8, 0, 2.0, {}, {}, 16, 3200, most_calls=50, most_tokens=500)
    assert [row[3] for row in found.rows()[-2:]] == ["50", "500"]


def test_where_all_were_tried_and_nobody_was_asked_nothing_more_is_told():
    found = Estimate("htmlrag", "words=2", 1, 1, 0, 0.5, {"words": 9.0}, {"words": 2.0})
    assert [row[0] for row in found.rows()[1:]] == ["Words", "Time a question", "Time on one process, all 1, estimated"]
