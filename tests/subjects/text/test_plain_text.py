"""Plain text and Markdown: their own structure, and what stays of them as it stood there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")
pytest.importorskip("markdown_it")

from secateur.errors import InputError
from secateur.subjects import Page, open_page
from secateur.subjects.text import plain_text
from secateur.vocabulary import Selection

MARKDOWN = """# Manual

Intro one
goes on.

## Options

It takes:

- `-s` is short
  and goes on
  - nested *one*
- `-v` is long

1. first

   more of first

| code | what |
| ---- | ---- |
| 7    | gives |
| 8    | takes |

```sh
# no heading
git cut
```

> quoted text

[ref]: https://example.org "Ref"
"""


def texts(page: Page) -> list[str]:
    return [page.text(i) for i in range(len(page.blocks))]


def left_of(page: Page, word: str) -> str:
    """What is written where the block with a word is chosen alone, with its companions."""
    keep = np.array([word in page.text(i) for i in range(len(page.blocks))])
    return page.cut(Selection({"page": page.complete(keep)}))[0].to_text()


def test_markdown_is_cut_by_its_own_blocks_and_stays_as_it_was():
    page = open_page(MARKDOWN, kind="markdown", block=1)
    assert page.to_text() == MARKDOWN.strip().replace("goes on\n\n", "goes on\n\n")
    assert texts(page) == [
        "# Manual", "Intro one goes on.", "## Options", "It takes:", "- `-s` is short and goes on", "- nested *one*",
        "- `-v` is long", "1. first", "more of first", "| code | what | | ---- | ---- |", "| 7 | gives |",
        "| 8 | takes |", "```sh # no heading git cut ```", "> quoted text", '[ref]: https://example.org "Ref"',
    ]  # fmt: skip
    assert left_of(page, "gives") == ("# Manual\n\n## Options\n\n| code | what |\n| ---- | ---- |\n| 7    | gives |")
    assert left_of(page, "nested") == (
        "# Manual\n\n## Options\n\nIt takes:\n\n- `-s` is short\n  and goes on\n  - nested *one*"
    )
    assert left_of(page, "git cut") == "# Manual\n\n## Options\n\n```sh\n# no heading\ngit cut\n```"


def test_sentences_of_a_paragraph_stay_where_it_does_not():
    text = "One is here. Two is\nthere. Three is gone.\n\nNext one."
    page = open_page(text, kind="text", block=0)
    assert texts(page) == ["One is here. Two is there. Three is gone.", "Next one."]
    fine = page.refine(0)
    assert texts(fine) == ["One is here.", "Two is there.", "Three is gone.", "Next one."]
    assert fine.to_text() == page.to_text() == text
    for keep, left in {(0, 3): "One is here.\n\nNext one.", (1,): "Two is\nthere."}.items():
        assert fine.cut(Selection({"page": np.isin(np.arange(4), keep)}))[0].to_text() == left


@pytest.mark.parametrize("kind", ["text", "markdown"])
@pytest.mark.parametrize(
    "text", ["word", "", "  \n", "*", "東京の天気", "\0", "\ud83d", "# ", "- ", "> " * 500 + "x", "```\nx", "|a|\n|-|"]
)
def test_a_text_of_a_word_or_of_none_is_some_page(kind, text):
    page = open_page(text, kind=kind)
    assert page.to_text().split() == page.text().split()
    assert page.head(1).text() in page.text()


def test_markdown_that_is_half_html_keeps_every_word():
    text = '# A\n\n<div align="center">\n<b>One</b> two\n</div>\n\nSee <kbd>x</kbd> and <br> y.\n\n'
    text += "<details>\n\nInside *it*.\n\n</details>"
    page = open_page(text, kind="markdown", block=1)
    assert page.to_text() == text
    assert left_of(page, "Inside") == "# A\n\nInside *it*."


ROWS = ["# a", "text b. Text c.", "- d", "  - e", "1. f", "|g|h|", "|-|-|", "```", "> i", "", "", "    j", "<div>",
        "</div>", "k\n===", "---", "[l]: m", "***", "\t- n"]  # fmt: skip


@given(st.lists(st.sampled_from(ROWS), max_size=14))
@settings(max_examples=150, deadline=None)
def test_all_words_of_markdown_stay_in_their_order(rows):
    words = "\n".join(rows).split()
    page = open_page("\n".join(rows), kind="markdown", block=1)
    signs = {"---", "***", "-", "|-|-|", "```", "==="}  # lines of signs alone may go
    assert [word for word in page.to_text().split() if word not in signs] == [
        word for word in words if word not in signs
    ]
    among = open_page(["<p>z", "\n".join(rows)], kind=["html", "markdown"], block=1)
    assert re.findall(r"\w+", among.text()) == ["z", *re.findall(r"\w+", page.text())]
    half = page.complete(np.arange(len(page.blocks)) % 2 == 0)
    assert page.cut(Selection({"page": half}))[0].to_text() == page.draft(half)[0]


def test_html_among_texts_makes_them_html_unless_they_are_apart():
    documents, kinds = ["<p>a b</p><p>c</p>", "x < y.\n\nz", "# t\n\nu"], ["html", "text", "markdown"]
    page = open_page(documents, kind=kinds, numbered=False)
    assert page.to_text() == page.html()
    assert "<p>x &lt; y.<p>z<h1>t</h1><p>u" in page.to_text()
    page = open_page(documents, kind=kinds, numbered=False, apart=True)
    assert [text for text, _ in page.documents().values()] == ["<p>a b<p>c", *documents[1:]]
    assert open_page(documents[1:], kind=kinds[1:]).to_text() == "x < y.\n\nz\n\n# t\n\nu"
    with pytest.raises(InputError, match="give html, text or markdown"):
        open_page("a", kind="pdf")


def test_markdown_among_html_has_tags_and_not_the_signs_that_say_the_same():
    page = open_page(["<p>a", MARKDOWN], kind=["html", "markdown"], numbered=False)
    assert page.to_text() == (
        "<p>a<h1>Manual</h1><p>Intro one\ngoes on.<h2>Options</h2><p>It takes:"
        "<ul><li>`-s` is short\nand goes on<ul><li>nested *one*</ul><li>`-v` is long</ul>"
        "<ol><li><p>1. first<p>more of first</ol>"
        "<table><tr><th>code<th>what<tr><td>7<td>gives<tr><td>8<td>takes</table>"
        "<pre>```sh\n# no heading\ngit cut\n```</pre><p>quoted text"
        '<p>[ref]: https://example.org "Ref"'
    )
    # A cell without words is a cell; one beyond the table's head loses no word; a fence without words is none.
    odd = "|b||\n|-|-|\n||c|\n|d|e|f|\n\n```\n```\n\n```\n# g\n```"
    page = open_page(["<p>a", odd], kind=["html", "markdown"], numbered=False)
    assert page.to_text() == "<p>a</p><table><tr><th>b<th><tr><td><td>c<tr><td>|d|e|f|</table><pre># g</pre>"


def test_signs_of_markdown():
    assert plain_text.count_signs(MARKDOWN) > 5
    assert plain_text.count_signs("A text.\n\n- one thing\n\nIt costs #5, or 1 < 2.") == 0
    assert plain_text.count_signs("- one\n- two") == 2


SIGNS = "=-~^\"'`#*+.:_"


@pytest.mark.parametrize("sign", SIGNS)
def test_an_underlined_line_is_a_heading_whatever_the_sign(sign):
    """Headings underlined by ~ were read as the fences of code, and half of a text was cut with it."""
    text = (
        f"Trees\n{6 * sign}\n\nMuch is said.\n\nApple\n{5 * sign}\nPruned in winter.\n\nPear\n{4 * sign}\n\nIn March."
    )
    assert plain_text.count_signs(text) == 0
    page = open_page(text, kind="text", block=1)
    assert page.to_text() == text
    assert [page.path(i)[-1].rstrip("0123456789") for i in range(6)] == ["h", "p"] * 3
    assert page.companions(3) == [2]
    assert left_of(page, "winter") == f"Apple\n{5 * sign}\nPruned in winter."


def test_headings_stand_under_those_of_signs_that_came_before():
    text = "====\nBook\n====\n\nPart\n----\n\nOne\n~~~\n\nText one.\n\nTwo\n~~~\n\nText two.\n\nLast\n----\n\nThe end."
    page = open_page(text, kind="text", block=1)
    assert [page.path(i)[-1][:2] for i in range(len(page.blocks))] == ["h1", "h2", "h3", "p0", "h3", "p1", "h2", "p2"]
    assert left_of(page, "two.") == "====\nBook\n====\n\nPart\n----\n\nTwo\n~~~\n\nText two."
    assert left_of(page, "end.") == "====\nBook\n====\n\nLast\n----\n\nThe end."


@pytest.mark.parametrize(
    "text",
    ["-----", "a\n\n-----\n\nb", "one\nlast of it\n----------", "A long line of many words\n---", ">>> go\n...",
     "  a\n  =", "===  ===\na    b\n===  ===\n1    2\n===  ==="],
)  # fmt: skip
def test_a_line_of_signs_below_no_line_of_its_length_is_no_underline(text):
    page = open_page(text, kind="text", block=1)
    assert not any(page.path(i)[-1].startswith("h") for i in range(len(page.blocks)))
    assert page.to_text() == text.strip()
    assert plain_text.count_signs(text) == 0


@pytest.mark.parametrize(
    ("text", "signs"),
    [("Run\n```\ngo\n```", 1), ("It runs:\n~~~\ncode\n~~~", 2), ("~~~\nx\n~~~", 1), ("a|b\n---|---", 1),
     ("# a\n\nb\n-", 1), ("Apple\n^^^^^\n\n- one\n- two", 0), ("Apple\n-----\n\n- one\n- two", 2),
     ("Apple\r\n~~~~~\r\n\r\n- a\r\n- b", 0), ("# a\n\nNote well\n*********\n\n## b", 2),
     ("Note well\n_________\n\n| a | b |\n|---|---|", 1), ("a\n" + "-" * 5 + "  " * 10_000 + "x|", 0)],
)  # fmt: skip
def test_underlines_are_told_from_fences(text, signs):
    assert plain_text.count_signs(text) == signs


MANUAL = """CUT(1)               Manual

NAME
       cut - takes parts

OPTIONS
       -a, --all
           Takes all of what there is, whatever it
           may be.

           Without names it takes everything.

       -n
           Takes none.

       The order is one of these:

           first

           last

       - an item that goes on in
         the next line
"""


def test_what_stands_deeper_belongs_to_the_line_above_it():
    """A manual page read as text lost the answer below a term: each paragraph stood alone."""
    page = open_page(MANUAL, kind="text", block=1)
    assert texts(page) == [
        "CUT(1) Manual", "NAME", "cut - takes parts", "OPTIONS", "-a, --all",
        "Takes all of what there is, whatever it may be.", "Without names it takes everything.", "-n", "Takes none.",
        "The order is one of these:", "first", "last", "- an item that goes on in the next line",
    ]  # fmt: skip
    assert left_of(page, "everything") == "OPTIONS\n       -a, --all\n\nWithout names it takes everything."
    assert left_of(page, "none") == "OPTIONS\n\n-n\n           Takes none."
    assert left_of(page, "last") == "OPTIONS\n\nThe order is one of these:\n\nlast"
    assert [page.followers(i) for i in (1, 4, 7, 9)] == [[2], [5, 6], [8], [10, 11]]
    assert page.to_text().split() == MANUAL.split()


HELP = """OPTIONS
       -e     Treat warnings as errors and stop at the first of them, so that
              a build which must be clean ends early.

              The status is then 3.

       O_EXCL Make it anew: it
              must not be there.

              Links are not followed.

  -f, --file FILE       use FILE

                        more than once
"""


def test_a_term_may_stand_in_the_line_of_what_is_said_of_it():
    """Of manual pages and helps a later paragraph lost its option, which stands in the first line of the first one."""
    page = open_page(HELP, kind="text", block=1)
    assert [text for text in texts(page) if text in {"-e", "O_EXCL", "-f, --file FILE"}] == [
        "-e", "O_EXCL", "-f, --file FILE"
    ]  # fmt: skip
    assert left_of(page, "status") == "OPTIONS\n       -e\n\nThe status is then 3."
    assert left_of(page, "Links") == "OPTIONS\n\nO_EXCL\n\nLinks are not followed."
    assert left_of(page, "more than once") == "OPTIONS\n\n-f, --file FILE\n\nmore than once"
    assert left_of(page, "use FILE").endswith("-f, --file FILE       use FILE")
    assert page.to_text().startswith("OPTIONS\n       -e     Treat warnings as errors and stop")
    assert page.to_text().split() == HELP.split()


@pytest.mark.parametrize(
    "source",
    [
        "Smith, J. and B. Doe\n    wrote this.\n\n    More.",
        "It is all  one line of prose\nthat goes on.\n\nMore.",
        "1. An item  of several\n   lines.\n\n   More.",
    ],
)
def test_a_paragraph_that_hangs_by_chance_has_no_term(source):
    page = open_page(source, kind="text", block=1)
    assert "dt" not in page.tree.tag


@pytest.mark.parametrize(
    ("source", "companions"),
    [
        ("It takes:\n\n- one\n\n- two\n\nMore.", [[], [0], [0], []]),
        ("He said:\n\nIt is so.\n\nMore.", [[], [0], []]),
        ("    It was late\nand dark.\n\nHe went\n\n     home.", [[], [], []]),
        ("Title of it\n\nText as deep as it.\n\n  One that goes on.", [[], [], []]),
        ("def cut(x):\n    return x\n\ndef paste(x):\n    y = x\nend", [[], []]),
        ("It ends in a colon:", [[]]),
        ("\n".join(" " * i + "go" for i in range(60)), None),
    ],
)
def test_indentation_says_nothing_in_prose_and_a_colon_leads_to_one_paragraph(source, companions):
    page = open_page(source, kind="text", block=1)
    found = [page.companions(i) for i in range(len(page.blocks))]
    assert max(map(len, found)) <= 6
    assert companions is None or found == companions
    assert page.to_text().split() == source.split()
