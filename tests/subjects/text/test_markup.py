"""HTML read, cleaned and written: real rules of browsers, and pages that mean harm."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from secateur.subjects.text import markup
from secateur.subjects.text.markup import PROTECTED, Tree


def cleaned(source: str | bytes, protected=PROTECTED) -> str:
    return markup.write(markup.clean(markup.parse(source), protected)[0])


def bare(tree: Tree) -> str:
    """All text, without blanks."""
    return re.sub(r"\s", "", "".join(text for tag, text in zip(tree.tag, tree.text, strict=True) if not tag))


def sound(tree: Tree) -> None:
    """Parents come first, and a subtree is a range inside its parent's."""
    assert tree.parent[0] == -1
    assert tree.end[0] == len(tree) == len(tree.text) == len(tree.parent) == len(tree.end)
    for node in range(1, len(tree)):
        above = tree.parent[node]
        assert above < node < tree.end[node] <= tree.end[above]
        assert tree.tag[above]
    below = [[] for _ in range(len(tree))]
    for node in range(1, len(tree)):
        below[tree.parent[node]].append(node)
    assert [tree.children(node) for node in range(len(tree))] == below


PAGE = """<!doctype html><html lang=en><head><title>A &amp; B</title><style>p{}</style>
<script>if (a < b) alert("x")</script></head>
<body class="x"><!-- note --><div id=1><div><p>One   <b>bold</b> word.</p></div></div>
<img src=x><div> </div><table><tr><td>7<td>8</table>
<ul><li>only</ul></body></html>"""


def test_cleaning_drops_what_is_not_seen_and_keeps_every_word():
    tree = markup.parse(PAGE)
    sound(tree)
    assert cleaned(PAGE) == (
        "<html><title>A &amp; B</title><body><p>One <b>bold</b> word.</p><table><tr><td>7</td><td>8</td></tr></table>"
        "<ul><li>only</li></ul></body></html>"
    )
    assert bare(tree) == bare(markup.clean(tree)[0]) == "A&BOneboldword.78only"


def test_without_protection_lone_wrappers_collapse_to_the_innermost():
    assert "<ul>" not in cleaned(PAGE, protected=())
    assert cleaned("<div><section><div><p>x</p></div></section></div>") == "<p>x</p>"
    assert cleaned("<div>y<section><p>x</p></section></div>") == "<div>y<p>x</p></div>"


def test_asked_for_attributes_stay_and_are_escaped():
    tree = markup.clean(markup.parse('<p class="c"><a href="/?a=1&b=%22" id=q title>x</a> y</p>', ["href", "title"]))[0]
    assert markup.write(tree) == '<p><a href="/?a=1&amp;b=%22" title="">x</a> y</p>'
    assert markup.write(markup.parse("<a href='\"><script>'>x</a>", ["href"])).count("<script") == 0


def test_all_attributes_stay_where_all_are_asked_for_and_none_that_breaks_what_is_written():
    source = """<p id=a class="b c" data-x=1 onclick="f('&quot;')" hidden "<script=1 'q><b style=x>y</b> z</p>"""
    tree = markup.clean(markup.parse(source, ["*"]))[0]
    once = markup.write(tree)
    assert once.startswith('<p id="a" class="b c" data-x="1" onclick="f(&#x27;&quot;&#x27;)" hidden="">')
    assert "<script" not in once
    assert markup.write(markup.clean(markup.parse(once, ["*"]))[0]) == once


def test_lines_of_code_keep_their_blanks_and_breaks_part_words():
    assert cleaned("<pre>  a\n\n    b <i>c</i>\n</pre>") == "<pre>  a\n    b <i>c</i>\n</pre>"
    assert markup.clean(markup.parse("one<br>two<hr>three"))[0].text[-5:] == ["one", "\n", "two", "\n", "three"]


def test_a_blank_between_words_stays_and_one_between_blocks_goes():
    assert cleaned("<p>\n <b>a</b>  <i>b</i>\n</p>  <p>c</p>") == "<body><p><b>a</b> <i>b</i>\n</p><p>c</p></body>"


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("<div>one<p> <i></i> </p>two</div>", "<div>one\ntwo</div>"),
        ("<div>one<p></p><div></div> <b>two</b></div>", "<div>one\n <b>two</b></div>"),
        ("<div>one<span></span>two</div>", "<div>onetwo</div>"),
        ("<div>one<p></p><p>two</p></div>", "<div>one<p>two</p></div>"),
        ("<div><p></p>one<p></p></div>", "<div>one</div>"),
    ],
)
def test_an_empty_block_between_two_texts_parts_their_words(source, left):
    """Found by fuzzing: what was said and what was written counted other words."""
    assert cleaned(source) == left


@pytest.mark.parametrize(
    ("row", "left"),
    [
        ("<td>depth<td><td>64", "<td>depth</td><td></td><td>64</td>"),
        ("<th><th>a", "<th></th><th>a</th>"),
        ("<td> <i> </i><td>a", "<td></td><td>a</td>"),
        ("<td><td><p><table><tr><td><td>b</table>", "<td></td><td><table><tr><td></td><td>b</td></tr></table></td>"),
        ("<td>a<tr><td><td> </td>", "<td>a</td>"),
    ],
)
def test_an_empty_cell_stays_in_a_row_of_others_so_that_values_stay_under_their_heads(row, left):
    assert cleaned(f"<table><tr>{row}</table>") == f"<table><tr>{left}</tr></table>"


@pytest.mark.parametrize("tag", ["xmp", "plaintext", "listing", "textarea", "title", "noscript", "noembed", "iframe"])
def test_text_that_is_not_parsed_stays_text(tag):
    once = cleaned(f"<p>x</p><{tag}>a<b>&amp;</{tag}>")
    assert cleaned(once) == once


def test_several_documents_are_one_tree_in_their_order():
    trees = [markup.parse(f"<p>{word}</p><p>x</p>") for word in ("one", "two")]
    tree = markup.join(trees)
    sound(tree)
    assert bare(tree) == "onextwox"
    assert len(tree.children(0)) == 2


def test_kept_nodes_are_renumbered():
    tree = markup.parse("<div><p>a<b>b</b></p><p>c</p></div>")
    gone = [tag == "b" for tag in tree.tag]
    unwrapped = [tag in ("html", "body", "head") for tag in tree.tag]
    smaller, nodes = markup.prune_tree(tree, gone, unwrapped)
    sound(smaller)
    assert markup.write(smaller) == "<div><p>a</p><p>c</p></div>"
    assert [tree.tag[node] for node in nodes] == list(smaller.tag)


MARKUP = st.lists(
    st.one_of(
        st.sampled_from(
            ["<p>", "</p>", "<div>", "</div>", "<b>", "</b>", "<i>", "<a href=x>", "<table>", "<tr>", "<td>",
             "</table>", "<ul>", "<li>", "</ul>", "<pre>", "</pre>", "<br>", "<hr>", "<!-- c -->", "<script>",
             "</script>", "<svg>",
             "<math>", "<template>", "<select>", "<option>", "<form>", "<h1>", "<dl>", "<dt>", "<dd>", "<body>",
             "<textarea>", "</textarea>", "<xmp>", "</xmp>", "<title>", "&amp;", "&lt;", "&#0;", "&nbsp;", "\n", "  "]
        ),
        st.text(max_size=8),
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(MARKUP)
@example("<svg><title>&amp;<p>&amp;")
@settings(max_examples=400, deadline=None)
def test_any_page_is_read_cleaned_and_read_again_with_the_same_words(source):
    tree = markup.parse(source)
    sound(tree)
    clean, nodes = markup.clean(tree)
    sound(clean)
    assert bare(clean) == bare(tree)
    ends = [
        not tag and text == "\n" for tag, text in zip(clean.tag, clean.text, strict=True)
    ]  # what was an empty block
    assert all(end or tree.tag[node] == tag for node, tag, end in zip(nodes, clean.tag, ends, strict=True))
    once = markup.write(clean)
    assert bare(markup.parse(once)) == bare(tree)
    twice = cleaned(once)
    assert cleaned(twice) == twice
    known = markup.parse(twice)
    assert telling(markup.parse(markup.write(known, brief=True))) == telling(known)


def telling(tree):
    """Tags that say something, and texts; blanks at the end of a line are none."""
    parts = [tag or text.rstrip() for tag, text in zip(tree.tag, tree.text, strict=True)]
    return [part for part in parts if part and part not in {"html", "head", "body", "div"}]


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("<section><h2>t</h2><p>a</p><p>b</p></section>", "<h2>t</h2><p>a<p>b"),
        ("<div>a</div><div>b</div>", "<div>a</div><div>b</div>"),
        ("<div>a<p>b</p>c</div><div>d<p>e</p></div>", "<div>a<p>b</p>c</div><div>d<p>e</div>"),
        ("<div class=x><p>a</p><p>b</p></div>", '<div class="x"><p>a<p>b</div>'),
        ("<div><p>a</p>b</div><p>c</p>", "<div><p>a</p>b</div><p>c"),
        ("<p>c</p><span><p>a</p><p>b</p></span><p>c</p>", "<p>c</p><span><p>a<p>b</p></span><p>c"),
        ("<button><p>a</p><p>b</p></button>", "<button><p>a<p>b</p></button>"),
        ("<dl><dt>t</dt><dd>a</dd></dl>", "<dl><dt>t<dd>a</dl>"),
        ("<p>a</p><table><tr><td>b</td><td>c</td></tr></table>", "<p>a</p><table><tr><td>b<td>c</table>"),
        ("<div><h3>t</h3><p>a</p></div><p>b</p>", "<div><h3>t</h3><p>a</div><p>b"),  # b is not of t
        ("<div><h3>t</h3><p>a</p></div><h2>u</h2><p>b</p>", "<h3>t</h3><p>a<h2>u</h2><p>b"),
        ("<header><h1>t</h1><p>a</p></header><p>b</p>", "<h1>t</h1><p>a<p>b"),
        ("<section><h2>t</h2><p>a</p></section><section><h2>u</h2><p>b</p></section>", "<h2>t</h2><p>a<h2>u</h2><p>b"),
        ("<p>a</p><div><object>b<p>c</p></object><p>d</p></div>", "<p>a<div><object>b<p>c</p></object><p>d</div>"),
        ("<ul><li>a<ul><li>b</li></ul></li></ul>", "<ul><li>a<ul><li>b</ul></ul>"),
        (
            "<table><caption>c</caption><tr><th>a</th><th>b</th></tr><tr><td><p>d</p></td><td>e</td></tr></table>",
            "<table><caption>c</caption><tbody><tr><th>a<th>b<tr><td><p>d<td>e</table>",
        ),
    ],
)
def test_tags_that_html_can_do_without_are_not_written(source, written):
    found = markup.write(markup.clean(markup.parse(source, ["class"]))[0], brief=True)
    assert found == written
    assert markup.write(markup.clean(markup.parse(found, ["class"]))[0], brief=True) == written


def test_a_cell_says_how_many_columns_and_rows_it_takes():
    rows = '<tr><th rowspan=" 02 ">a<th COLSPAN="2px" class=x>b<tr><td colspan=1>c<td rowspan="x">d'
    rows += "<td rowspan=0 colspan=0>e"
    found = markup.write(markup.clean(markup.parse(f"<table>{rows}</table>"))[0], brief=True)
    assert found == ('<table><tbody><tr><th rowspan="2">a<th colspan="2">b<tr><td>c<td>d<td rowspan="0">e</table>')


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_some_page(source):
    sound(markup.parse(source))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("é".encode(), "é"),
        ("é".encode("latin-1"), "é"),
        ("é".encode("utf-16"), "é"),
        (b'<meta charset="shift_jis">' + "東".encode("shift_jis"), "東"),
        (b"<meta charset=utf-16>" + "é".encode(), "é"),
        (b"<meta charset=base64>eHh4", "eHh4"),
        (b"<meta charset=no-such>x", "x"),
        (b"a\0b", "a\ufffdb"),
    ],
)
def test_bytes_are_decoded_as_browsers_do(source, text):
    assert bare(markup.parse(source)) == text


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 10_000 + "x",
        "<b>" * 3_000 + "x",
        "<table>" * 2_000 + "x",
        "<a>" * 2_000,
        "&" * 300_000,
        "<!--" * 100_000,
        "<p " + "a=1 " * 100_000 + ">x",
        "x" * 3_000_000,
        "<script>" * 50_000,
        "<![CDATA[" * 10_000,
        "",
        "\0\ud800<",
    ],
    ids=range(12),
)
@pytest.mark.timeout(60)
def test_pages_that_mean_harm_come_to_an_end(source):
    once = cleaned(source)
    assert cleaned(cleaned(once)) == cleaned(once)


def test_words_are_runs_without_blanks_or_letters_of_scripts_that_write_none():
    assert markup.words("two words") == 2
    assert markup.words("東京の天気") == 5
    assert markup.words("東京 weather") == 3
    assert markup.words(" \n") == 0


def test_terms_are_words_as_a_search_compares_them():
    assert markup.terms("The Cat's mat, re.match!") == ["the", "cat", "s", "mat", "re", "match"]
    assert markup.terms("東京 ABC") == ["東", "京", "abc"]


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("a b  c", 2, "a b"),
        ("a b c", 3, "a b c"),
        ("a b ", 5, "a b "),
        ("a", 0, ""),
        ("", 3, ""),
        ("東京 x", 2, "東京"),
    ],
)
def test_first_words_are_counted_as_words_are(text, count, expected):
    assert markup.first_words(text, count) == expected
    assert markup.words(expected) == min(count, markup.words(text))


@pytest.mark.parametrize(
    ("text", "is_html"),
    [("a <p>b", True), ("<!DOCTYPE html>a", True), ("<a href='b'>c", True), ("a<br/>b", True), ("a</b>", True),
     ("<x>a</x>", True), ("<DIV class=a>", True), ("a < b > c", False), ("x<y then cherries win a>b", False),
     ("x<b and then a>c", False), ("List<String>", False), ("in <module>", False), ("<" * 99_999 + "a b=" * 9, False),
     ("<a b=" + " " * 99_999, False), ("", False)],
)  # fmt: skip
def test_a_text_is_html_where_it_has_a_tag_that_is_one(text, is_html):
    assert markup.is_html(text) is is_html


def test_what_is_written_of_a_part_reads_that_part_alone(monkeypatch):
    """Of each block of a manual its whole page was read: nine tenths of the time of a cut."""
    tree = markup.clean(markup.parse("<div><h2>a</h2><div><p>b</p><p>c</p></div></div>" * 200))[0]
    read, find = [], markup.find_inline_below
    monkeypatch.setattr(markup, "find_inline_below", lambda tree, top: read.append(find(tree, top)) or read[-1])
    parts = [markup.write(tree, [node], brief=True) for node in tree.children(tree.tag.index("body"))]
    assert "\n".join(parts) == "\n".join(["<h2>a</h2><p>b<p>c"] * 200)
    assert sum(map(len, read)) < len(tree)
