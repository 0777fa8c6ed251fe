"""Documents cut to what answers a question: one, many, and in pipelines."""

from __future__ import annotations

import numpy as np
import pytest

import keeper
import secateur
from runs.pages import ASKED, PAGE, PARTS
from secateur.errors import DataError, InputError
from secateur.runs import context


def test_one_question_and_many(tmp_path):
    found = secateur.prune_context("htmlrag", PAGE, "Who is the mayor of town5?", "words=12")
    assert "person5" in found.text
    assert found.after["words"] <= 12 < found.before["words"]
    assert [row["kept"] for row in found.trace["page"]].count(True) < len(found.trace["page"])
    many = secateur.prune_context("htmlrag", PAGE, ["mayor of town2", "mayor of town6"], "words=12")
    assert ["person2" in many[0].text, "person6" in many[1].text] == [True, True]
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.txt").write_text("A stranger <b> comes.\n\nThe mayor of town9 is person9.")
    files = [tmp_path / "a.html", tmp_path / "b.txt"]
    found = secateur.prune_context("htmlrag", files, "town9", "words=8")
    assert "person9" in found.text
    assert "&lt;b&gt;" in secateur.prune_context("htmlrag", files, "stranger", "words=10").text


def test_what_was_cut_can_be_looked_at(tmp_path):
    found = secateur.prune_context("htmlrag", "<p>one <i>two</i></p><p>three</p>", "<script>three</script>", "words=2")
    found.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;script&gt;three" in text
    assert "<script" not in text
    assert text.count('class="gone"') == 1


def test_bad_calls_get_one_line(tmp_path):
    with pytest.raises(InputError, match="wanda does not prune what a model reads: use htmlrag"):
        secateur.prune_context("wanda", PAGE, "a", "words=3")
    with pytest.raises(InputError, match="has no option 'embeder': did you mean 'embedder'"):
        secateur.prune_context("htmlrag", PAGE, "a", "words=3", embeder="x")
    with pytest.raises(InputError, match="there is no question"):
        secateur.prune_context("htmlrag", PAGE, "  ", "words=3")
    with pytest.raises(DataError, match=r"none\.html"):
        secateur.prune_context("htmlrag", tmp_path / "none.html", "a", "words=3")
    with pytest.raises(InputError, match="is no folder here, nor found on the Hub"):
        secateur.prune_context("htmlrag", PAGE, "a", "tokens=3", tokenizer="no/such/tokenizer")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"%PDF-1.4\n1 0 obj", "is a PDF"), (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is no text")],
)
def test_files_that_hold_no_text_are_refused(tmp_path, content, what):
    (tmp_path / "report.pdf").write_bytes(content)
    for document in (tmp_path / "report.pdf", content):
        for call in (secateur.prune_context, context.estimate_context):
            with pytest.raises(DataError, match=f"{what}: give HTML, Markdown or plain text"):
                call("htmlrag", document, "a", "words=3")


def test_titles_are_refused_where_none_is_read():
    with pytest.raises(InputError, match="htmlrag reads no titles: leave them out"):
        secateur.prune_context("htmlrag", ["<p>a", "<p>b"], "b", "words=1", titles=["A", None])


def test_text_of_two_bytes_a_letter_is_text(tmp_path):
    (tmp_path / "wide.html").write_bytes("<p>old trees</p>".encode("utf-16"))
    assert "old trees" in secateur.prune_context("htmlrag", tmp_path / "wide.html", "trees", "words=3").text


def test_what_stays_of_each_document_stands_in_their_order(tmp_path):
    files = [tmp_path / "a.html", tmp_path / "b.txt"]
    files[0].write_text(PAGE)
    files[1].write_text("Nobody.\n\nThe mayor of town9 is person9.")
    one = secateur.prune_context("htmlrag", files, "town9 person9", "words=6")
    assert one.documents == ("", one.text)
    two = secateur.prune_context("htmlrag", files, "town3 mayor person3 town9 person9", "words=16")  # two of a heading
    assert ["person3" in two.documents[0], "person9" in two.documents[1]] == [True, True]
    assert "".join(two.documents) == two.text


def out_of_memory(texts):
    if any("memory" in text for text in texts):
        raise RuntimeError("out of\n  memory")
    return np.ones((len(texts), 2))


def test_one_question_that_fails_gives_all_there_is_unless_strict():
    with pytest.raises(RuntimeError, match=r"out of\s+memory"):
        secateur.prune_context("htmlrag", "much memory", "a", "words=1", embedder=out_of_memory)
    with pytest.warns(UserWarning, match="htmlrag cut nothing for 'a': unexpected RuntimeError: out of memory"):
        found = secateur.prune_context(
            "htmlrag", ["<p>much memory</p>", "x"], ["a"], "words=1", embedder=out_of_memory, strict=False
        )[0]
    assert ("much memory" in found.text, found.before, found.after) == (True, {"words": 3.0}, {"words": 3.0})
    assert found.told == {"error": "unexpected RuntimeError: out of memory"}
    assert ["memory" in part for part in found.documents] == [True, False]
    with pytest.warns(UserWarning, match="a document is"):
        assert secateur.prune_context("htmlrag", ["a", None], "a", "words=1", strict=False).text == "a"
    with pytest.warns(UserWarning, match="there is no question"):
        assert secateur.prune_context("htmlrag", "a b", None, "words=1", strict=False).documents == ("a b",)
    with pytest.raises(InputError, match="has no option"):
        secateur.prune_context("htmlrag", "a", "a", "words=1", strict=False, blok=1)


def test_what_one_question_comes_to():
    found = context.estimate_context("htmlrag", [PAGE, PAGE], "mayor of town5", "words=12")
    assert (found.count, found.tried) == (1, 1)
    assert found.after["words"] <= 12 < found.before["words"]


def test_passages_with_titles_and_what_else_is_told(pruner):
    how = {"model": pruner, "always_select_title": True}
    found = secateur.prune_context(
        "provence", [PARTS, PARTS[:1]], ASKED, "tokens=100%", titles=["of this", None], **how
    )
    assert found.text == f"of this {PARTS[1]}"
    assert found.documents == (found.text, "")
    assert len(found.told["reranking_scores"]) == 2
    assert set(found.trace) == {"passage 1", "passage 2"}
    given = [PARTS[2], PARTS[1], PARTS[0]]
    how = {"model": keeper.lexical(), "threshold": -1.0, "reorder": True}
    found = secateur.prune_context("provence", given, ASKED, "tokens=100%", **how)
    assert found.documents == tuple(given)
    assert found.text.split("\n\n")[0] == PARTS[1]


def test_html_and_files_are_read_as_text(pruner, tmp_path):
    page = "".join(f"<p>{part}</p>" for part in PARTS)
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "a.txt").write_text("\n\n".join(PARTS))
    for document in (page, page.encode(), tmp_path / "a.html", tmp_path / "a.txt"):
        found = secateur.prune_context("provence", document, ASKED, "tokens=100%", model=pruner)
        assert found.text == PARTS[1]


def test_half_an_emoji_is_read_as_what_it_is_not(pruner):
    half = "\ud83d"
    given = {"titles": [half], "model": pruner, "threshold": -1.0}
    for document in (f"{ASKED} {half}", [ASKED, half]):
        found = secateur.prune_context("provence", [document], f"{ASKED} {half}", "tokens=100%", **given)
        assert found.text.split() == ["?", *ASKED.split(), "?"]


def test_a_graph_that_was_changed_since_is_read_anew(graph):
    """The first answer stood until the process ended."""
    for drug in ("salbutamol", "prednisone"):
        graph.write_text(f"subject,predicate,object\n{drug},treats,asthma\n")
        found = secateur.prune_context("kg_rag", str(graph), "What treats asthma?", "words=9")
        assert found.text == f"{drug} treats asthma"


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_graph_is_a_file_or_opened_already(recipe, graph):
    for source in (graph, str(graph), secateur.open_graph(graph)):
        found = secateur.prune_context(recipe, source, "What treats asthma?", "words=40")
        assert "salbutamol" in found.text
        assert found.after["words"] <= 40
        assert "notes" in found.told
    with pytest.warns(UserWarning, match=f"{recipe} cut nothing for ' ': there is no question"):
        found = secateur.prune_context(recipe, graph, " ", "words=40", strict=False)
    assert (found.text, found.told) == ("", {"error": "there is no question: say what the documents are to answer"})
