"""What gives a piece its meaning stays with it: terms, heads of tables, leading sentences, headings."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("selectolax")

from secateur.subjects import Page, open_page
from secateur.vocabulary import Selection


def with_companions(page: Page, word: str) -> str:
    """What is left where the block with a word is chosen alone."""
    keep = np.array([word in page.text(i) for i in range(len(page.blocks))])
    return page.cut(Selection({"page": page.complete(keep)}))[0].text()


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("<dl><dt>-s</dt><dt>--short</dt><dd>gives less</dd><dt>-v</dt><dd>more</dd></dl>", "-s --short gives less"),
        ("<dl><dt>-s</dt><dd>one</dd><dd><p>it gives</p><p>x</p></dd></dl>", "-s it gives"),
        ("<p>o</p><dl><dt><p>-s</p><p>-t</p></dt><dd>gives</dd><dt>-v</dt><dd>o</dd></dl>", "-s -t gives"),
        ("<h1>A</h1><div><h2>B</h2><p>o</p></div><div><h2>C</h2><div>t</div><p>gives</p></div>", "A C gives"),
        ("<div><h1>A</h1><h2>NAME</h2><p>x</p></div><div><h2>C</h2><p>gives</p></div>", "A C gives"),
        ("<h1>A</h1><h2>B</h2><p>o</p><h2>C</h2><h3>D</h3><p>gives</p>", "A C D gives"),
        ("<nav><h3>Menu</h3><ul><li>a</li><li>b</li></ul></nav><main><p>gives</p><p>o</p></main>", "gives"),
        ("<article><h1>A</h1><section><h1>B</h1><p>gives</p><p>o</p></section></article>", "A B gives"),
        ("<p>It takes:</p><ul><li>a</li><li>gives</li></ul><p>o</p>", "It takes: gives"),
        ("<p>It takes.</p><ul><li>a</li><li>gives</li></ul><p>o</p>", "gives"),
        ("<ul><li>Outer<ul><li>a</li><li>gives</li></ul></li><li>o</li></ul>", "Outer gives"),
        ("<p>For example:</p><pre>gives</pre><p>o</p>", "For example: gives"),
        ("<figure><pre>gives</pre><figcaption>Listing 1</figcaption></figure><p>o</p>", "gives Listing 1"),
        ("<details><summary>More</summary><p>gives</p><p>x</p></details><p>o</p>", "More gives"),
        (
            "<table><caption>Codes</caption><tr><th>code</th><th>what</th></tr><tr><td>7</td><td>gives</td></tr>"
            "<tr><td>8</td><td>o</td></tr></table>",
            "Codes code what 7 gives",
        ),
        (
            "<table><tr><td></td><th>code</th><th>what</th></tr><tr><td></td><td>7</td><td>gives</td></tr>"
            "<tr><td>8</td><td>x</td><td>o</td></tr></table>",
            "code what 7 gives",
        ),
        (
            "<table><thead><tr><th>code</th><th>what</th></tr></thead><tbody><tr><td><p>7</p></td><td><p>gives</p></td>"
            "</tr><tr><td>8</td><td>o</td></tr></tbody></table>",
            "code what 7 gives",
        ),
        (
            "<table><tr><th>code</th><th>what</th></tr><tr><td>7</td><td><p>gives</p><p>x</p></td></tr></table><p>o</p>",
            "code what 7 gives",
        ),
        ("<table><tr><td><p>f()</p><p>gives</p><p>x</p></td></tr><tr><td><p>g()</p><p>o</p></table>", "f() gives"),
        ("<table><tr><td>f()<p>x</p><ul><li>a</li><li>gives</li></ul></td></tr><tr><td>g()</table>", "f() gives"),
        ("<table><tr><td><p>x</p><h2>A</h2><p>gives</p></td></tr></table>", "A gives"),
        (f"<table><tr><td><p>{'word ' * 60}</p><p>gives</p></td></tr></table>", "gives"),
    ],
)  # fmt: skip
def test_nothing_is_cut_from_what_gives_it_meaning(source, left):
    assert with_companions(open_page(source, block=1), "gives") == left


@pytest.mark.parametrize(
    ("source", "led"),
    [
        ("<dl><dt>names</dt><dt>-s</dt><dd><p>a</p><p>b</p></dd><dd>c</dd><dt>-v</dt><dd>d</dd></dl>", "a b c"),
        ("<p>names these:</p><ul><li>a</li><li>b</li></ul><p>o</p>", "a b"),
        ("<p>names these.</p><ul><li>a</li><li>b</li></ul><p>o</p>", ""),
        ("<table><tr><td><p>names</p><p>a</p><pre>b</pre><td><p>o</p><p>o</p></table>", "a b"),
        (f"<p>It {'is ' * 40}long. It names these:</p><pre>a b</pre><p>o</p>", "a b"),
        ("<h1>A</h1><h2>names</h2><p>a</p><ul><li>b</li></ul><h3>C</h3><p>c</p><h2>D</h2><p>d</p>", "a b"),
        ("<div><h2>names</h2><p>a</p></div><p>o</p>", "a"),
        ("<table><caption>names</caption><tr><td>a<td>b<tr><td>c<td>d</table><p>o</p>", "a b c d"),
        ("<figure><pre>a</pre><figcaption>names</figcaption></figure><p>o</p>", "a"),
        ("<p>o</p><dl><dt>names</dt></dl><h2>last</h2>", ""),
    ],
)  # fmt: skip
def test_what_names_or_announces_something_leads_to_it(source, led):
    page = open_page(source, block=1)
    (block,) = (i for i in range(len(page.blocks)) if "names" in page.text(i) and page.text(i) != "b")
    assert " ".join(page.text(i) for i in page.followers(block)) == led


def test_of_a_long_paragraph_the_last_sentence_alone_leads():
    long = " ".join(f"w{i}" for i in range(40))
    page = open_page(f"<p>It is {long}. These are known here:</p><ul><li>gives a</li><li>b</li></ul>", block=1)
    assert with_companions(page, "gives") == "These are known here: gives a"
    assert with_companions(page, "w3 ") == f"It is {long}. These are known here:"
    assert with_companions(
        open_page("<p>一つ目です。次の通り：</p><ul><li>gives</li><li>b</li></ul>", block=1), "gives"
    ) == ("一つ目です。次の通り： gives")


def test_documents_do_not_head_one_another():
    page = open_page(["<h1>A</h1><p>one</p>", "<p>gives</p><p>o</p>"], block=1)
    assert with_companions(page, "gives") == "gives"


def test_rows_and_lists_of_many_take_time_that_grows_as_they_do():
    rows = "".join(f"<dt>t{i}</dt><dd>d{i} <ul><li>a</li></ul></dd>" for i in range(3000))
    page = open_page(f"<dl>{rows}</dl>", block=1)
    assert page.complete(np.ones(len(page.blocks), bool)).all()


@pytest.mark.parametrize(
    "source",
    [
        "<details>" + "".join(f"<summary>w{i}</summary><p>a b</p>" for i in range(500)) + "</details>",
        "<dl>" + "".join(f"<dt>w{i}</dt>" for i in range(500)) + "<dd>x y</dd>" * 200 + "</dl>",
        "<table>" + "".join(f"<tr><th>w{i}</th></tr>" for i in range(900)) + "</table>",
        "<figure>" + "<figcaption>a</figcaption>" * 500 + "</figure>",
    ],
    ids=["summaries", "terms", "heads", "captions"],
)
def test_blocks_of_a_page_that_means_harm_have_few_companions(source):
    page = open_page(source, block=1)
    assert len(page.blocks) > 400
    assert sum(len(page.companions(block)) for block in range(len(page.blocks))) <= 16 * len(page.blocks)


def test_rows_of_heads_are_not_read_again_for_each_row():
    class Rows(list):
        reads = 0

        def __iter__(self):
            Rows.reads += len(self)
            return super().__iter__()

    page = open_page("<table>" + "<tr><th>a</th></tr>" * 900 + "<tr><td>b</td></tr></table>", block=1)
    page.companions(0)
    contexts = page._contexts
    contexts._rows = {above: Rows(rows) for above, rows in contexts._rows.items()}
    contexts._found.clear()
    assert [len(contexts.find(node)) for node, _ in page.blocks][-3:] == [3, 3, 3]
    assert Rows.reads < 10 * len(page.blocks)


def test_a_row_keeps_the_cell_that_goes_on_into_it_and_that_cell_its_rows():
    rows = '<tr><td rowspan="3">kind<td>one<tr><td>two<tr><td>three<tr><td>other<td>four'
    page = open_page(f"<table>{rows}</table>", block=1, numbered=False)
    assert [page.text(i) for i in range(4)] == ["kind one", "two", "three", "other four"]
    assert [page.companions(i) for i in range(4)] == [[], [0], [0], []]
    left = page.cut(Selection({"page": page.complete(np.array([False, False, True, True]))}))[0]
    assert left.html() == '<table><tbody><tr><td rowspan="2">kind<td>one<tr><td>three<tr><td>other<td>four</table>'
    alone = left.cut(Selection({"page": np.array([True, False, True])}))[0]
    assert alone.html() == "<table><tbody><tr><td>kind<td>one<tr><td>other<td>four</table>"


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ("<tr><th>code<th>name<tr><td colspan=2>A<tr><td>1<td>o<tr><td colspan=2>B<tr><td>2<td>gives<tr><td colspan=2>C"
         "<tr><td>3<td>o", "code name B 2 gives"),
        ("<tr><td colspan=9>A<tr><td>1<td>o<tr><td colspan=9>B<tr><td>2<td>o<tr><td>3<td>gives", "B 3 gives"),
        ("<tr><th>code<th>name<tr><th colspan=2>A<tr><td>1<td>o<tr><th colspan=2>B<tr><td>2<td>gives<tr><td>3<td>o",
         "code name B 2 gives"),
        ("<thead><tr><th>code<th>name<tbody><tr><th scope=rowgroup>A<td><tr><td>1<td>o<tbody><tr><th scope=rowgroup>B"
         "<td><tr><td>2<td>gives", "code name B 2 gives"),
        ("<tr><th colspan=2>codes<tr><th>code<th>name<tr><th colspan=2>A<tr><td>1<td>o<tr><th colspan=2>B<tr><td>2<td>"
         "gives", "codes code name B 2 gives"),
        ("<tr><th>code<th>name<tr><td>1<td>o<tr><td colspan=2>tells of 1<tr><td>2<td>gives<tr><td colspan=2>tells of 2",
         "code name 2 gives"),
        (f"<tr><td colspan=2>A<tr><td>1<td>o<tr><td colspan=2>{'word ' * 60}<tr><td>2<td>gives", "A 2 gives"),
        ("<tr><td>A<tr><td>gives<tr><td>o", "gives"),
        ("<thead><tr><th>code<th>name<tr><th>gives<th>o", "code name gives o"),
        ("<tr><td colspan=2>A<tr><td>1<td>o<tr><td colspan=2>gives<tr><td>2<td>o", "gives"),
    ],
)  # fmt: skip
def test_a_row_across_all_columns_heads_the_rows_until_the_next_one(rows, left):
    assert with_companions(open_page(f"<table>{rows}</table>", block=1), "gives") == left


def test_a_cell_of_a_hundred_rows_takes_those_that_are_left():
    rows = "".join(f"<tr>{'<th rowspan=100>fruit' * (not i)}<td>n{i}" for i in range(100))
    page = open_page(f"<table>{rows}</table>", block=1, numbered=False)
    assert page.companions(99) == [0]
    assert 'rowspan="100"' in page.cut(Selection({"page": np.ones(100, bool)}))[0].html()
    keep = page.complete(np.isin(np.arange(100), (70, 99)))
    assert 'rowspan="3"' in page.cut(Selection({"page": keep}))[0].html()
    open_ended = open_page(f"<table>{rows.replace('100', '0')}</table>", block=1, numbered=False)
    assert open_ended.companions(99) == [0]
    assert 'rowspan="0"' in open_ended.cut(Selection({"page": keep}))[0].html()


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("<ol><li>a<li>b<li>gives<li>c<li>gives it", '<ol><li value="3">gives<li value="5">gives it</ol>'),
        ("<ol><li>a<li>gives<li>gives it", '<ol><li value="2">gives<li>gives it</ol>'),
        ("<ol start=7 type=a><li>gives<li value=12>a<li>gives it",
         '<ol start="7" type="a"><li>gives<li value="13">gives it</ol>'),
        ("<ol><li>a<li>gives<li value=12>gives it", '<ol><li value="2">gives<li value="12">gives it</ol>'),
        ("<ol start=x type=disc><li>gives<li value=' +12px'>gives it<li>a",
         '<ol><li>gives<li value="12">gives it</ol>'),
        ("<ol reversed><li>a<li>gives<li>b", '<ol reversed=""><li value="2">gives</ol>'),
        ("<ol><li>a<ol><li>b<li>gives</ol><li>gives it",
         '<ol><li>a<ol><li value="2">gives</ol><li>gives it</ol>'),
        ("<ol><li><li>gives<li>a", '<ol><li value="2">gives</ol>'),
        ("<ul><li>a<li>gives", "<ul><li>gives</ul>"),
    ],
)  # fmt: skip
def test_an_item_keeps_its_number(source, left):
    page = open_page(source, block=1, numbered=False)
    keep = page.complete(np.array(["gives" in page.text(i) for i in range(len(page.blocks))]))
    smaller = page.cut(Selection({"page": keep}))[0]
    assert smaller.html() == page.draft(keep)[0] == left
    assert smaller.cut(Selection({}))[0].html() == left


def test_an_item_of_markdown_has_its_number_in_its_text():
    page = open_page(["7. a\n8. gives\n9. b\n", "<p>o</p>"], kind=["markdown", "html"], block=1, numbered=False)
    keep = np.array(["gives" in page.text(i) for i in range(len(page.blocks))])
    assert page.cut(Selection({"page": keep}))[0].html() == "<ol><li>8. gives</ol>"


def test_a_cell_that_goes_leaves_an_empty_one():
    cells = [f"<td>{' '.join(f'w{i}' for i in range(cell * 99, cell * 99 + 99))}</td>" for cell in range(3)]
    page = open_page(f"<table><tr>{''.join(cells)}</tr></table>", block=20)
    assert len(page.blocks) == 3
    assert page.cut(Selection({"page": np.array([True, False, True])}))[0].html(numbered=False) == (
        f"<table><tr>{cells[0]}<td></td>{cells[2]}</table>".replace("</td>", "")
    )
    assert not page.cut(Selection({"page": np.array([False] * 3)}))[0].html()


def test_the_first_paragraph_of_what_is_said_of_a_term_leads_to_no_list_further_on():
    """Of texts that is a whole section: a list in it paid for the first paragraph, whatever that was about."""
    source = "Term\n    First paragraph.\n\n    Second one:\n\n    - an item\n\n    - another"
    page = open_page(source, kind="text", block=1)
    item = next(i for i, block in enumerate(page.blocks) if "another" in page.text(i))
    assert "First paragraph." not in [page.text(i) for i in page.companions(item)]
