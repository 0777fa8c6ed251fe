"""What is read: of a row, a file or a page."""

from __future__ import annotations

import pytest

from secateur.errors import DataError, InputError
from secateur.runs.backends import documents as reading
from secateur.runs.backends.documents import Pages, PassageTexts
from secateur.runs.backends.graph import Graphs


def test_a_recipe_says_what_it_reads():
    kinds = {"htmlrag": Pages, "provence": PassageTexts, "kg_rag": Graphs, "paths_over_graph": Graphs}
    assert {name: type(reading.of_document_recipe(name)) for name in kinds} == kinds
    assert [reading.of_document_recipe(name).brings_documents for name in kinds] == [True, True, False, False]
    assert reading.with_documents() == ["htmlrag", "provence"]
    with pytest.raises(InputError, match="wanda does not prune what a model reads"):
        reading.of_document_recipe("wanda")


def test_documents_of_a_row_know_whether_they_are_html():
    page, passages = Pages(), PassageTexts()
    for field, value in {"html": "<p>a</p><p>b</p>", "text": "a\n\nb", "passages": [["a", "b"]]}.items():
        documents, titles = reading.read_row({field: value}, None)
        assert titles is None
        assert page.open(documents).text() == "a b"
        assert passages.open(documents).to_text().split() == ["a", "b"]
    documents, _ = reading.read_row({"text": "a <b> c"}, None)
    assert passages.open(documents).to_text() == page.open(documents).text() == "a <b> c"


@pytest.mark.parametrize(
    ("row", "titles"),
    [({"text": ["a", "b"], "title": "c"}, ["c", "c"]), ({"passages": ["a", "b"], "titles": ["c", None]}, ["c", None])],
)
def test_titles_of_a_row(row, titles):
    assert reading.read_row(row, None)[1] == titles


@pytest.mark.parametrize(
    "row",
    [{}, {"html": 3}, {"text": [["a"]]}, {"passages": [["a", 3]]}, {"passages": {}}, {"text": "a", "titles": [3]},
     {"text": "a", "titles": "b"}, {"file": "a"}],
)  # fmt: skip
def test_a_row_without_documents_is_refused(row):
    with pytest.raises(DataError):
        reading.read_row(row, None)


def test_a_folders_row_names_its_file(tmp_path):
    assert reading.read_row({"file": "a.html"}, tmp_path / "a.html") == ([tmp_path / "a.html"], None)


@pytest.mark.parametrize("kind", [str, str.encode])
def test_a_text_without_tags_keeps_its_paragraphs_and_its_signs(kind):
    page, text = Pages(), "x<y then cherries win a>b.\n\nApples <lose>."
    plain = page.open(page.read_document(kind(text)))
    assert plain.html() == "<p>x&lt;y then cherries win a&gt;b.<p>Apples &lt;lose&gt;."
    fine = plain.split(1)
    assert [fine.text(block) for block in range(len(fine.blocks))] == text.split("\n\n")
    assert page.open(page.read_document(kind("<p>a</p><p>b</p>"))).html() == "<p>a<p>b"


def test_paragraphs_are_those_between_blank_lines():
    page = Pages().open_documents(["a\nb\r\n\r\n  \n\nc <d>"])
    assert page.html() == "<p>a\nb<p>c &lt;d&gt;"
    assert page.to_text() == "a\nb\n\nc <d>"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("<p>a</p>", "html"), ("a b.\n\nc", "text"), ("# a\n\nb", "markdown"), ("- a\n- b", "markdown"), ("a - b", "text"),
     ("<!DOCTYPE html><pre># a\n# b\n# c</pre>", "html"), ("<div><pre># a</pre></div>", "html"), ("a <b>c</b>", "html"),
     ('<p align="center">x</p>\n\n# a\n\n- b\n- c\n- d', "markdown"), ("| a | b |\n|---|---|\n| 1 | 2 |", "markdown"),
     ("", "text"), ("word", "text"), ("Use the <b> tag. Never use <font> here.", "text"), ("<p>a<p>b", "html"),
     ("Start a line with <br> or <p>, end it with </p> .", "text"), ("Map<String, List<Button>>, List<Input>", "text"),
     ("# a\n\n```html\n<!doctype html>\n<html><body><p>b</p></body></html>\n```\n\nc", "markdown"),
     ("# a\n\nIt begins with `<html>`, ends with ``</html>``.", "markdown"), ("a<br>b", "html"),
     ('### a\n<a id="a"></a>\n\nRun `a <b> <c>` with `--d=<e>`.', "markdown"), ("# a<a name=b></a>\n\nb", "markdown"),
     ("<details>\n\nSet `-a <n>`.\n\n</details>", "text"),
     ("<h1 align=center>a</h1>\n\n## b\n\nc", "markdown"), ("a<b>c</b>\n\n```ts\nd<e>\n```", "markdown"),
     ("| <a id=b>b</a> | c <d> |", "text"),
     ("<b>a</b> `b <p>`", "text"), ("<h2>a</h2>\n<p>b</p>\n<pre>\n# c\n</pre>", "html"),
     ("- <b>a</b>\n- b", "markdown"),
     ("<div>\n# a\n<p>b</p>\n</div>", "html"), ("# a\n\nIt begins with <html>, <b>so</b>.", "markdown"),
     ("<h2>a</h2>\n<script>\nx = `<p>`\n</script>", "html"),
     ("Name\n----\n\nput <head> before <a>b</a>", "text"), ("Name\n----\n\n<html><p>b</p></html>", "text"),
     ("a <b>\nc</b>", "html"), ("~~~\n<p>a</p>\n```\n<p>b</p>", "markdown")],
)  # fmt: skip
def test_what_a_text_is(text, kind, tmp_path):
    assert reading.kind_of(text) == kind
    (tmp_path / "a.md").write_text(text)
    assert reading.kind_of(Pages().read_document(tmp_path / "a.md")) == "markdown"


def test_files_that_are_text_by_name_are_no_markdown(tmp_path):
    for name in ("a.txt", "a.rst"):
        (tmp_path / name).write_text("# a\n\n- b\n- <p>c</p>\n\n~~~\nd")
        assert reading.kind_of(Pages().read_document(tmp_path / name)) == "text"


@pytest.mark.parametrize(
    "source",
    ["“é”".encode("cp1252"), "“é”".encode("utf-16"), "“é”".encode("utf-8-sig"), "“é”".encode()],
    ids=["cp1252", "utf-16", "utf-8-sig", "utf-8"],
)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".markdown"])
def test_texts_of_files_are_decoded_as_pages_are(source, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(source)
    assert Pages().open(path).to_text() == PassageTexts().open(path).to_text() == "“é”"
    assert PassageTexts().open(source).to_text() == "“é”"


def test_a_text_about_pages_is_not_decoded_by_what_it_tells_of_them(tmp_path):
    (tmp_path / "a.txt").write_text('Write <meta charset="latin-1"> for é.', encoding="utf-8")
    assert Pages().open(tmp_path / "a.txt").to_text() == 'Write <meta charset="latin-1"> for é.'
