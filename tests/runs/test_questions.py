"""Questions from a file: what is read for each, and lines that can't be asked."""

from __future__ import annotations

import json

import pytest

from secateur.errors import DataError
from secateur.runs import questions

TREES = "<h1>Cherry</h1><p>Cherry trees are pruned in summer.</p><h2>Apple</h2><p>Apple trees in winter.</p>"


def test_what_is_read_is_plain_text_whatever_it_was(tmp_path):
    rows = [
        {"question": "When?", "answer": "in summer", "html": TREES},
        {"question": "Who?", "answers": ["Nobody"], "passages": ["A.", ["Nobody owns", "the moon."]]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = questions.read(file).rows
    assert first.answers == ("in summer",)
    assert "Cherry trees are pruned in summer." in first.read_text()
    assert "<" not in first.read_text()
    assert second.read_text() == "A.\n\nNobody owns the moon."


def test_passages_stand_behind_their_titles(tmp_path):
    rows = [
        {"passages": ["Its capital is Lima.", ["It is", "long."]], "titles": ["Peru", None]},
        {"text": "Its capital is Lima.", "title": "Peru"},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": "Which?", "answers": ["Lima"], **row}) + "\n" for row in rows))
    first, second = questions.read(file).rows
    assert first.read_text() == "Peru\nIts capital is Lima.\n\nIt is long."
    assert second.read_text() == "Peru\nIts capital is Lima."


def test_a_file_may_be_named_from_the_folder_of_the_questions_and_counts_among_what_is_asked(tmp_path):
    (tmp_path / "page.html").write_text(TREES)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "When?", "answers": ["in summer"], "files": ["page.html"]}) + "\n")
    before = questions.read(file)
    assert before.rows[0].documents == (tmp_path / "page.html",)
    (tmp_path / "page.html").write_text(TREES.replace("summer", "autumn"))
    assert questions.read(file).digest != before.digest


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Why?", "html": TREES}, "line 1: this line has no answers"),
        ({"question": "Why?", "answers": [" "], "html": TREES}, "line 1: this line has no answers"),
        ({"answers": ["x"], "html": TREES}, "line 1: this line has no question"),
        ({"question": "Why?", "answers": ["x"]}, "line 1: this line has no html, text, passages"),
        ({"question": "Why?", "answers": ["x"], "files": ["none.html"]}, "none.html is no file"),
        ({"question": "Why?", "answers": ["x"], "files": "a.html"}, "no list of paths"),
        (
            {"question": "Why?", "answers": ["x"], "passages": ["A.", "B."], "titles": ["C"]},
            "line 1: this line has 1 titles for 2 passages: give one for each, or null",
        ),
    ],
)
def test_lines_that_can_not_be_asked_are_named(tmp_path, row, words):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words):
        questions.read(tmp_path / "q.jsonl")
