"""The block tree of a page, and what stays of it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from secateur import conformance
from secateur.errors import DataError, InfeasibleError, InputError, RunError
from secateur.select import ranking
from secateur.subjects import Page, open_page
from secateur.subjects.text import markup
from secateur.subjects.text import page as page_module
from secateur.subjects.text.page import DEEPEST, LONGEST
from secateur.vocabulary import Selection

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def source(sections: int = 4) -> str:
    parts = []
    for number in range(sections):
        rows = "".join(f"<tr><td>{word}</td><td>{number}</td></tr>" for word in WORDS[:3])
        parts.append(
            f"<div>lead {number}<h2>Title {number}</h2><p>{' '.join(WORDS)} {number}</p><table>{rows}</table></div>"
        )
    return f"<html><body>{''.join(parts)}<footer><p>end</p></footer></body></html>"


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def keep(page: Page, *indices: int) -> Selection:
    return Selection({"page": np.isin(np.arange(len(page.blocks)), indices)})


def test_a_page_obeys_the_laws_of_subjects():
    laws = conformance.check_subject(
        lambda: open_page(source(), block=8),
        output=lambda page: np.frombuffer(page.html().encode(), dtype=np.uint8).astype(float),
        counted=lambda page: {"words": float(markup.words(page.text()))},
        reload=reloaded,
        measure="words",
    )
    assert {"identity", "predicted = counted", "superset", "original untouched", "round trip"} <= set(laws)


def reloaded(page: Page, folder) -> Page:
    folder.mkdir()
    page.save(folder)
    return open_page(folder / "page.html", block=page.block)


def test_siblings_are_numbered_and_every_path_leads_to_one_tag():
    page = open_page(source(), block=8)
    paths = [(page.path(index), page.blocks[index][1]) for index in range(len(page.blocks))]
    assert len(set(paths)) == len(paths)
    assert (("html", "body", "div2", "p"), False) in paths or (("body", "div2", "p"), False) in paths
    assert "<div0>" in page.html()
    assert "<footer>" not in page.html()  # a lone wrapper
    assert sum(bare for _, bare in page.blocks) == 4  # "lead 0" and so on


@pytest.mark.parametrize("block", [0, 4, 8, 20, 1000])
def test_blocks_hold_every_word_once(block):
    page = open_page(source(), block=block)
    # A split tag's bare text comes before its children, so letters are compared without their order.
    held = "".join(squeezed(page.text(index)) for index in range(len(page.blocks)))
    assert sorted(held) == sorted(squeezed(page.text())) != []
    assert page.units().cost() == {"words": float(markup.words(page.text()))}


def test_a_block_is_as_large_as_asked_unless_it_is_one_piece():
    for block in (8, 20):
        page = open_page(source(), block=block)
        sizes = page.units()["page"].cost["words"]
        whole = [index for index in range(len(sizes)) if sizes[index] > block]
        assert {page.path(index)[-1][:1] for index in whole} <= {"p"}  # a paragraph is not split
    assert len(open_page(source(), block=1000).blocks) == 1


def test_what_stays_stays_in_order_with_its_tags_and_names():
    page = open_page(source(), block=8)
    (index,) = [i for i in range(len(page.blocks)) if page.path(i)[-2:] == ("div2", "p")]
    (title,) = [i for i in range(len(page.blocks)) if page.path(i)[-2:] == ("div1", "h2")]
    smaller, receipt = page.cut(keep(page, index, title))
    assert smaller.html() == f"<body><h2>Title 1</h2><p>{' '.join(WORDS)} 2</p></body>"
    assert receipt.removed == {"page": (len(page.blocks) - 2, len(page.blocks))}
    assert receipt.after == {"words": 13.0}
    assert page.html() == open_page(source(), block=8).html()


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    open_page("<p>one</p>").save(tmp_path)
    before = (tmp_path / "page.html").read_bytes()

    def part(path, data):
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", part)
    with pytest.raises(RunError, match="disk full while writing"):
        open_page("<p>two</p>").save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == before


def test_each_line_beside_blocks_is_a_block_in_its_place():
    page = open_page("<div>loose words <p>a b c</p> more <p>d e f</p></div>", block=2)
    assert [page.text(i) for i in range(len(page.blocks))] == ["loose words", "a b c", "more", "d e f"]
    assert [bare for _, bare in page.blocks] == [True, False, True, False]
    assert page.cut(keep(page, 1, 3))[0].text() == "a b c d e f"
    assert page.cut(keep(page, 0, 2))[0].html() == "<div>loose words \n more </div>"
    assert page.cut(keep(page, 0, 1))[0].html(numbered=False) == "<div>loose words <p>a b c</div>"
    glued = open_page("<div>one<p>a b c</p>two</div>", block=2)
    assert glued.cut(keep(glued, 0, 2))[0].html() == "<div>one\ntwo</div>"


def test_numbers_stay_through_cut_after_cut_and_never_meet():
    page = open_page(source(), block=8)
    keeps = [i for i in range(len(page.blocks)) if page.path(i)[1:2] in (("div1",), ("div3",))]
    smaller = page.cut(keep(page, *keeps))[0]
    assert {smaller.path(i)[1] for i in range(len(smaller.blocks))} == {"div1", "div3"}
    # Of wrappers that are gone, what was in them comes to stand beside others of its tag.
    nested = open_page("<div><p>a b c</p><h6>x</h6></div><div><p>d e f</p><h6>y</h6></div><p>g h i</p>", block=2)
    rest = [i for i in range(len(nested.blocks)) if nested.path(i)[-1] != "h6"]
    smaller = nested.cut(keep(nested, *rest))[0]
    paths = [smaller.path(i) for i in range(len(smaller.blocks))]
    assert len(set(paths)) == 3
    assert smaller.text() == "a b c d e f g h i"


def test_siblings_that_meet_when_tags_around_them_go_are_told_apart():
    """Of each section the first paragraph stays, p0, and the section goes: all paths were body > p0."""
    page = open_page("<section><p>a b</p><p>c d</p></section>" * 4, block=1)
    keep = np.array([page.path(i)[-1] == "p0" for i in range(len(page.blocks))])
    left, _ = page.cut(Selection({"page": keep}))
    assert left.text() == "a b a b a b a b"
    assert len({left.path(i) for i in range(len(left.blocks))}) == 4


def test_what_a_block_stands_under():
    page = open_page(
        "<h1>Manual</h1><section><h2>Lists</h2><p>intro one</p>"
        "<dl><dt>append(x)</dt><dd><p>adds it</p><p>at the end</p></dd>"
        "<dt>pop()</dt><dd>takes it</dd></dl><h2>Sets</h2><p>intro two</p></section>"
        "<table><caption>Codes</caption><thead><tr><th>code</th><th>meaning</th></tr></thead>"
        "<tbody><tr><td>7</td><td>seven</td></tr></tbody></table>",
        block=1,
    )  # fmt: skip
    under = {page.text(i): page.headings(i) for i in range(len(page.blocks))}
    assert under["intro one"] == ["Manual", "Lists"]
    assert under["at the end"] == ["Manual", "Lists", "append(x)"]
    assert under["takes it"] == ["Manual", "Lists", "pop()"]
    assert under["intro two"] == ["Manual", "Sets"]
    assert under["7 seven"] == ["Manual", "Codes", "code meaning"]  # a row is one piece
    assert under["Sets"] == ["Manual"]
    long = open_page(f"<h1>{' '.join(['word'] * 50)}</h1><p>a</p><p>b</p>", block=1)
    assert len(long.headings(len(long.blocks) - 1)[0].split()) == LONGEST


@pytest.mark.parametrize("count", [0, 1, 5, 14, 10_000])
def test_the_head_of_a_page_is_its_first_words_with_their_tags(count):
    page = open_page(source(), block=8)
    head = page.head(count)
    assert head.text().split() == page.text().split()[:count]
    assert set(head.names) <= set(page.names)
    assert page.head(10_000).html() == page.html()


def test_a_page_split_anew_keeps_its_names():
    page = open_page(source(), block=1000)
    finer = page.split(4)
    assert (len(page.blocks), page.block) == (1, 1000)
    assert len(finer.blocks) > 8
    assert finer.split(1000).blocks == page.blocks
    assert finer.text() == page.text()


def test_tags_of_looks_go_and_their_text_stays_where_it_is():
    page = open_page("<p>see <code>csv</code><span>.<b>reader</b></span> and x<sup>2</sup></p><p>b</p>", block=100)
    assert page.html(numbered=False) == "<p>see csv.reader and x<sup>2</sup><p>b"
    assert len(page.tree) == 8  # the root, body, two p, sup, and a text in three of them: side by side they are one
    linked = open_page("<p>see <a href='x'>it</a></p>", attributes=["href"])
    assert linked.html() == '<p>see <a href="x">it</a></p>'
    assert open_page("<p>a <b>c</b></p>", plain=()).html() == "<p>a <b>c</b></p>"


@pytest.mark.parametrize(
    "never",
    [
        'never be started if\n<a href="x"><code>\n  it</code></a> is',
        "never be started if\n<!-- so -->\nit is",
        "never be started if\n<span>\n</span>\nit is",
        "never be started if\n<i hidden>o</i>\n<b>\n it\n</b>\nis",
    ],
)
def test_blanks_around_a_tag_in_a_line_end_no_sentence(never):
    page = open_page(f"<p>Slots are copied now. It must {never} enabled there. Water is wet.</p>", block=1).refine(0)
    assert [page.text(i) for i in range(len(page.blocks))] == [
        "Slots are copied now.",
        "It must never be started if it is enabled there.",
        "Water is wet.",
    ]


def test_blanks_stay_where_lines_and_code_part_them():
    page = open_page("<div>a <p> b </p> c<pre> d <i> e</i>\n\n f</pre> g</div>", plain=())
    texts = [text for tag, text in zip(page.tree.tag, page.tree.text, strict=True) if not tag]
    assert texts == ["a ", " b ", " c", " d ", " e", "\n\n f", " g"]


def test_a_page_may_be_written_without_numbers():
    page = open_page(source(), block=8, numbered=False)
    assert "<div0>" not in page.html()
    assert "<div0>" in page.html(numbered=True)
    assert not any("div0" in page.source(i) for i in range(len(page.blocks)))
    smaller = page.cut(keep(page, 0, 1, 2))[0]
    assert not smaller.numbered
    assert not smaller.head(3).numbered
    assert any("div0" in path for path in map(smaller.path, range(len(smaller.blocks))))


def test_everything_gone_is_an_empty_page():
    page = open_page(source(), block=8)
    empty, receipt = page.cut(keep(page))
    assert (empty.html(), empty.blocks, receipt.after) == ("", [], {"words": 0.0})
    assert open_page("", block=8).html() == ""


def test_several_documents_are_one_page():
    page = open_page(["<p>one two three</p>", b"<p>four five six</p>"], block=2)
    assert page.text() == "one two three four five six"
    assert len(page.blocks) == 2


def test_code_and_depth_are_not_split():
    code = "<pre>" + "".join(f"<span>w{i}</span> " for i in range(50)) + "</pre>"
    assert len(open_page(f"<div>{code}<p>x</p></div>", block=4).blocks) == 2
    deep = open_page("<div>a<div>" * 500 + "x", block=1)
    assert max(len(deep.path(index)) for index in range(len(deep.blocks))) <= DEEPEST + 1


def count(texts):
    """Tokens of a reader: words and tags."""
    return [len(re.findall(r"<[^>]*>|\w+", text)) for text in texts]


@given(st.integers(0, 10_000), st.integers(5, 160), st.integers(0, 80))
@settings(max_examples=60, deadline=None)
def test_a_budget_in_tokens_is_kept_as_measured_and_a_larger_one_keeps_more(seed, limit, more):
    page = open_page(source(), block=8)
    units = page.units(tokens=count)
    scores = {"page": np.random.default_rng(seed).standard_normal(len(page.blocks))}

    def measure(kept):
        return {"tokens": float(count([page.cut(Selection(kept))[0].html()])[0])}

    def chosen(tokens):
        return ranking.by_budget(units, scores, f"tokens={tokens}", measure=measure)

    try:
        selection = chosen(limit)
    except InfeasibleError:
        assert count([page.cut(keep(page))[0].html()])[0] < limit  # nothing at all would fit, and is refused
        return
    assert selection.spent["tokens"] == count([page.cut(selection)[0].html()])[0] <= limit
    assert bool((chosen(limit + more).keep["page"] >= selection.keep["page"]).all())


def test_a_block_costs_the_tokens_of_its_own_source():
    page = open_page(source(), block=8)
    tokens = page.units(tokens=count)["page"].cost["tokens"]
    assert tokens.tolist() == count([page.source(index) for index in range(len(page.blocks))])
    assert page.source(0) == "<h2>Title 0</h2>" or page.blocks[0][1]


def test_a_small_budget_finds_a_block_on_a_page_that_is_all_tags():
    """The tags around two hundred other blocks must not be held against the one that stays."""
    page = open_page(source(200), block=8)
    scores = {"page": -np.arange(float(len(page.blocks)))}
    chosen = ranking.by_budget(
        page.units(tokens=count), scores, "tokens=30",
        measure=lambda kept: {"tokens": float(count([page.cut(Selection(kept))[0].html()])[0])},
    )  # fmt: skip
    assert chosen.keep["page"].any()


def test_bad_input_is_one_line(tmp_path):
    page = open_page(source(), block=8)
    for missing in (tmp_path / "nowhere.html", tmp_path):
        with pytest.raises(DataError, match="path of an HTML file"):
            open_page(missing)
    for nothing in (5, [5]):
        with pytest.raises(InputError, match="this is int"):
            open_page(nothing)
    with pytest.raises(InputError, match="block=nan"):
        open_page("<p>x", block=float("nan"))
    with pytest.raises(InputError, match="at least 0"):
        open_page("<p>x", block=-1)
    with pytest.raises(InputError, match="no 'heads'"):
        page.units("heads")
    with pytest.raises(InputError, match=f"{len(page.blocks)} blocks, and the selection 1"):
        page.cut(Selection({"page": np.ones(1, bool)}))


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_left_of_each_document_stands_in_their_order(apart):
    given = ["<p>one</p>two", "", "three <b>four</b>", "<body><div><p>five</p></div></body>", " "]
    page = open_page(given, block=1, numbered=False, apart=apart)
    assert [markup.words(open_page(part).text()) for part in page.parts()] == [2, 0, 2, 1, 0]
    if not apart:
        assert "".join(page.parts()) == page.html()
    for number, word in enumerate(["one", "two", "four", "five"]):
        index = next(i for i in range(len(page.blocks)) if word in page.text(i))
        left = page.cut(keep(page, index))[0].parts()
        assert [i for i, part in enumerate(left) if part] == [[0, 0, 2, 3][number]]
        assert word in "".join(left)
    assert [bool(part) for part in page.head(3).parts()] == [True, False, True, False, False]


def test_documents_that_are_kept_apart_are_told_by_their_numbers():
    page = open_page(["<p>a one</p><p>a two</p>", "", "<html><body>bare <b>c</b></body></html>", "<ul><li>d</li></ul>"],
                     apart=True, block=1, numbered=False)  # fmt: skip
    assert page.documents() == {
        0: ("<p>a one<p>a two", "a one\n\na two"),
        2: ("<body>bare c</body>", "bare c"),
        3: ("<ul><li>d</ul>", "d"),
    }
    gone = [i for i in range(len(page.blocks)) if page.path(i)[0] != "document0"]
    smaller = page.cut(keep(page, *gone))[0]
    assert set(smaller.documents()) == {2, 3}
    assert set(smaller.cut(keep(smaller, len(smaller.blocks) - 1))[0].documents()) == {3}
    assert set(open_page(["<p>x</p>"], apart=True).documents()) == {0}


HIDDEN = (
    '<p>seen <span hidden>no1</span><b style="color:red; DISPLAY : none">no2</b></p>'
    "<div aria-hidden=true><p>no3 no4</p></div>"
    '<p style="visibility:hidden">no5</p><p hidden=until-found>found</p><p aria-hidden=false>end</p>'
)


def test_what_a_page_hides_goes_unless_it_is_asked_for():
    page = open_page(HIDDEN, block=1)
    assert page.text() == "seen found end"
    assert page.hidden == 5
    assert (
        page.split(0).show_hidden().text()
        == open_page(HIDDEN, hidden=True).text()
        == ("seen no1no2 no3 no4 no5 found end")
    )
    assert open_page("<body hidden style='display:none'><p>all</p></body>").text() == "all"
    assert open_page("<p>one hidden</p>").show_hidden().text() == "one hidden"


def test_the_text_of_a_picture_stands_in_its_place():
    page = open_page('<p>See<img src=x alt="the  map">here</p><img alt=""><figure><img alt="A cat"></figure><p>b</p>')
    assert page.text() == "See the map here A cat b"


TAGS = ["p", "div", "span", "x-made", "b", "ul", "li", "dl", "dt", "dd", "table", "tr", "td", "th", "pre", "h2", "svg"]


def hostile(draw: random.Random, depth: int = 0) -> str:
    """HTML of tags in any order, with words, blanks and empty tags in them."""
    parts = []
    for _ in range(draw.randint(1, 4)):
        what = draw.choice(["words", "words", "blank", *TAGS]) if depth < 4 else "words"
        if what == "words":
            parts.append(" ".join(draw.choices(["one.", "Two:", "three"], k=draw.randint(1, 20))))
        elif what == "blank":
            parts.append(draw.choice([" ", "\n", "<p></p>", "<div> </div>", "<br>"]))
        else:
            parts.append(f"<{what}>{hostile(draw, depth + 1)}</{what}>")
    return "".join(parts)


@pytest.mark.parametrize("seed", range(4))
def test_what_goes_is_as_if_each_block_that_goes_were_emptied(seed):
    draw = random.Random(seed)
    for _ in range(10):
        documents = [hostile(draw), "one <x-made><div>two</div></x-made> three"]
        page = open_page(documents, block=draw.choice([0, 4, 16]), apart=draw.random() < 0.3)
        if page.blocks and draw.random() < 0.5:
            page = page.refine(draw.randrange(len(page.blocks)))
        stays = np.array([draw.random() < 0.5 for _ in page.blocks], bool)
        emptied = [False] * len(page.tree)
        for index in np.flatnonzero(~stays):
            for child in page.tree.children(page.blocks[index][0]):
                emptied[child] = True
        wanted = page._clean(page.tree, range(len(page.tree)), emptied)
        cut, _ = page.cut(Selection({"page": stays}))
        assert cut.html() == wanted.html()
        assert (cut.tree.tag, cut.tree.text, cut.blocks) == (wanted.tree.tag, wanted.tree.text, wanted.blocks)
        assert page.draft(stays)[1] == cut.units().cost()["words"]


def test_a_document_that_comes_back_is_not_parsed_again(monkeypatch):
    read, parse = [], page_module.markup.parse

    def note(html, *more, **options):
        read.append(html)
        return parse(html, *more, **options)

    monkeypatch.setattr(page_module.markup, "parse", note)
    monkeypatch.setattr(page_module, "_TREES", page_module._Remembered(100))
    small, other, large = "<p>a b</p>", f"<p>{'c ' * 40}</p>", f"<p>{'d ' * 60}</p>"
    once = open_page([small, other])
    again = open_page([other, small, small])
    assert read == [small, other]
    assert again.text() == f"{once.text()[4:]} a b a b"
    assert open_page(small, plain=()).text() == "a b"
    assert read[2:] == [small]  # read otherwise
    for _ in range(2):
        assert open_page(large).text() == "d " * 59 + "d"
    assert read[3:] == [large, large]  # longer than all that is remembered
    assert open_page([small, other]).html() == once.html()
    assert read[5:] == [other]  # which had to leave
    assert page_module._TREES.letters <= 100
    monkeypatch.setattr(page_module, "_TREES", few := page_module._Remembered(100, 2))
    for letter in "abc":
        open_page(f"<p>{letter}</p>")
    assert [source for source, *_ in few._trees] == ["<p>b</p>", "<p>c</p>"]
    assert few.letters == 16
