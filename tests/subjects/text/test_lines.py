"""Lines: what is inline and what a block, and sentences that no tag takes apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from secateur.subjects import Page, open_page
from secateur.subjects.text import lines, markup
from secateur.vocabulary import Selection


def texts(page: Page) -> list[str]:
    return [page.text(i) for i in range(len(page.blocks))]


@pytest.mark.parametrize(
    "tag", ["acronym", "nobr", "math", "ruby", "svg", "button", "x-strong", "blink", "sup", "select"]
)
def test_no_tag_takes_a_sentence_apart(tag):
    """ "must NEVER take" came out as "must take": each tag that was in no list was a block."""
    for source in (
        f"<p>You must <{tag}>NEVER</{tag}> take it.</p><p>b</p>",
        f"<div>You must <{tag}>NEVER</{tag}> take it.<p>b</p></div>",
        f"<ul><li>You must <{tag}>NEVER</{tag}> take it.</li><li>b</li></ul>",
        f"<div><{tag}>You</{tag}> must <b>NEVER</b> <i>take it.</i><p>b</p></div>",
    ):
        page = open_page(source, block=1)
        assert texts(page)[0].split() == ["You", "must", "NEVER", "take", "it."]
        left = page.cut(Selection({"page": np.arange(len(page.blocks)) == 0}))[0]
        assert left.text().split() == ["You", "must", "NEVER", "take", "it."]


def test_a_made_up_tag_is_a_block_where_it_holds_one_or_stands_for_one():
    page = open_page("<x-card><p>one two</p><p>three</p></x-card><x-card><p>four</p></x-card>", block=1)
    assert texts(page) == ["one two", "three", "four"]
    long = " ".join(f"w{i}" for i in range(lines.CONTAINER + 1))
    page = open_page(f"<main><x-item>{long}</x-item><x-item>b</x-item></main><p>c</p>", block=1, plain=())
    assert texts(page) == [long, "b", "c"]
    page = open_page("<main><x-a>You must</x-a> <x-b>not.</x-b></main><p>c</p>", block=1)
    assert texts(page) == ["You must not.", "c"]


def test_made_up_tags_go_as_those_of_looks_do_but_not_inside_formulas():
    assert open_page("<p>un<x-y>believ</x-y>able <my-b id=1>b</my-b></p>").html() == "<p>unbelievable b</p>"
    assert open_page("<p><x-y>a</x-y> b</p>", plain=()).html() == "<p><x-y>a</x-y> b</p>"
    formula = "<p>is <math><mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac></math></p>"
    assert open_page(formula).html() == formula


TAGS = ["p", "div", "b", "span", "nobr", "x-y", "blink", "sup", "math", "svg", "button", "ul", "li", "td", "dd", "dt",
        "q", "section", "table", "tr", "ruby", "select", "option", "h2", "pre", "label", "x-z"]  # fmt: skip
TREES = st.recursive(
    st.integers(0, 99).map(lambda number: f" w{number} "),
    lambda inner: st.tuples(st.sampled_from(TAGS), st.lists(inner, max_size=4)).map(
        lambda pair: f"<{pair[0]}>{''.join(pair[1])}</{pair[0]}>"
    ),
    max_leaves=24,
)


@given(TREES, st.sampled_from([0, 2, 8]))
@settings(max_examples=120, deadline=None)
def test_all_words_stay_in_their_order_and_each_in_one_block(source, block):
    words = " ".join(text for tag, text in _read(source) if not tag).split()
    page = open_page(source, block=block, numbered=False)
    assert " ".join(texts(page)).split() == page.text().split() == words
    assert open_page(page.html()).text().split() == words
    for index in range(min(2, len(page.blocks))):
        assert " ".join(texts(page.refine(index))).split() == words
    half = page.complete(np.arange(len(page.blocks)) % 2 == 0)
    left = " ".join(text for text, stays in zip(texts(page), half, strict=True) if stays)
    assert page.cut(Selection({"page": half}))[0].text().split() == left.split()
    written, count = page.draft(half)
    assert (open_page(written).text().split(), count) == (left.split(), len(left.split()))


def _read(source):
    tree = markup.parse(source)
    return zip(tree.tag, tree.text, strict=True)


def test_sentences_are_told_apart_and_tags_in_them_stay_whole():
    text = "Dr. A went to it. He <q>saw. It is there</q> now and then. Note. He left x<sup>2</sup> then."
    page = open_page(f"<p>{text}</p><p>b</p>", block=100)
    (line, _) = page.split(0).blocks[0]
    fine = page.split(0).refine(0)
    assert line
    assert texts(fine) == [
        "Dr. A went to it.", "He saw. It is there now and then.", "Note. He left x 2 then.", "b",
    ]  # fmt: skip
    assert fine.html(numbered=False) == page.html(numbered=False)
    left = fine.cut(Selection({"page": np.array([False, True, False, True])}))[0]
    assert left.html(numbered=False) == "<p>He <q>saw. It is there</q> now and then. <p>b"
    assert texts(fine.split(0)) == texts(page.split(0))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("東京の天気は晴れです。明日は雨です！", ["東京の天気は晴れです。", "明日は雨です！"]),
        ("هذه جملة أولى. هل هذه جملة ثانية؟ نعم هي هذه.", ["هذه جملة أولى.", "هل هذه جملة ثانية؟", "نعم هي هذه."]),
        ("זה משפט ראשון. וזה משפט שני.", ["זה משפט ראשון.", "וזה משפט שני."]),
        ("word", ["word"]),
    ],
)
def test_sentences_of_any_script(text, parts):
    page = open_page(f"<p>{text}</p>", block=0).refine(0)
    assert texts(page) == parts
    assert page.html() == f"<p>{text}</p>"
