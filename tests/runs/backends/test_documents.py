"""What is read: of a row, a file, a page or a graph."""

from __future__ import annotations

import pytest

from secateur.errors import DataError, InputError
from secateur.runs.backends import documents as readings
from secateur.subjects import KnowledgeGraph, Page, Passages


def test_a_recipe_says_what_it_reads():
    kinds = {"htmlrag": Page, "provence": Passages, "kg_rag": KnowledgeGraph, "paths_over_graph": KnowledgeGraph}
    assert {name: readings.of_recipe(name).kind for name in kinds} == kinds
    assert [readings.of_recipe(name).own for name in kinds] == [True, True, False, False]
    with pytest.raises(InputError, match="wanda does not prune what a model reads"):
        readings.of_recipe("wanda")


def test_documents_of_a_row_know_whether_they_are_html(tmp_path):
    page, passages = readings.of_recipe("htmlrag"), readings.of_recipe("provence")
    for field, value in {"html": "<p>a</p><p>b</p>", "text": "a\n\nb", "passages": [["a", "b"]]}.items():
        documents, titles = readings.of_row({field: value}, None)
        assert titles is None
        assert page.opened(documents, None).text() == "a b"
        assert passages.opened(documents, None).written().split() == ["a", "b"]
    documents, _ = readings.of_row({"text": "a <b> c"}, None)
    assert passages.opened(documents, None).written() == "a <b> c"
    assert page.opened(documents, None).text() == "a <b> c"


def test_titles_of_a_row():
    assert readings.of_row({"text": ["a", "b"], "title": "c"}, None)[1] == ["c", "c"]
    assert readings.of_row({"passages": ["a", "b"], "titles": ["c", None]}, None)[1] == ["c", None]


@pytest.mark.parametrize(
    "row",
    [{}, {"html": 3}, {"text": [["a"]]}, {"passages": [["a", 3]]}, {"passages": {}}, {"text": "a", "titles": [3]},
     {"text": "a", "titles": "b"}, {"file": "a"}],
)  # fmt: skip
def test_a_row_without_documents_is_refused(row):
    with pytest.raises(DataError):
        readings.of_row(row, None)


def test_a_folders_row_names_its_file(tmp_path):
    assert readings.of_row({"file": "a.html"}, tmp_path / "a.html") == ([tmp_path / "a.html"], None)


def test_one_graph_alone(tmp_path):
    graph = readings.of_recipe("kg_rag")
    with pytest.raises(InputError, match="these are 2"):
        graph.opened(["a", "b"], None)
    assert graph.trial().things() is not None


@pytest.mark.parametrize("kind", [str, str.encode])
def test_a_text_without_tags_keeps_its_paragraphs_and_its_signs(kind):
    page, text = readings.of_recipe("htmlrag"), "x<y then cherries win a>b.\n\nApples <lose>."
    found = page.opened([page.read(kind(text))], None)
    assert found.html() == "<section><p>x&lt;y then cherries win a&gt;b.</p><p>Apples &lt;lose&gt;.</p></section>"
    fine = found.split(1)
    assert [fine.text(block) for block in range(len(fine.blocks))] == text.split("\n\n")
    assert page.opened([page.read(kind("<p>a</p><p>b</p>"))], None).html() == "<body><p>a</p><p>b</p></body>"
