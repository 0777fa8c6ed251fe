"""Pages that are nested to exhaust whoever reads them, and pages that only look so."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("selectolax")

from secateur.subjects.text import markup
from secateur.subjects.text.nesting import limit_nesting


def depth(source: str) -> int:
    tree = markup.parse(source)
    found = [0] * len(tree)
    for node in range(1, len(tree)):
        found[node] = found[tree.parent[node]] + 1
    return max(found)


def said(source: str) -> list[str]:
    tree = markup.parse(source)
    return " ".join(text for tag, text in zip(tree.tag, tree.text, strict=True) if not tag).split()


@pytest.mark.parametrize(
    "tags", ["<div>", "<div><p>", "<section class='>'>", "<b><div>", "<ul><li>", "<table><tr><td>"]
)
def test_what_is_nested_too_deep_becomes_shallow_and_says_the_same(tags):
    words = [f"w{number}" for number in range(3000)]
    source = "".join(f"{tags}{word}" for word in words) + "</div>" * 3000
    assert depth(limit_nesting(source)) <= 4 * 512 + 4
    assert said(source) == words


def test_what_closes_too_deep_closes_nothing_else():
    deep = "<div>" * 3000 + "x" + "</div>" * 3000
    tree = markup.parse(f"<section>{deep}</section><h1>y</h1>")
    names = {text.strip(): tree.tag[tree.parent[node]] for node, text in enumerate(tree.text) if not tree.tag[node]}
    assert names["x"] == "div"
    assert names["y"] == "h1"
    assert tree.tag[tree.parent[tree.tag.index("h1")]] == "body"


def test_lines_that_are_left_open_fill_no_memory():
    """A browser opens each <font> anew in each paragraph: 4,000,000 tags of these 40 kB."""
    fonts = "".join(f"<font size={number}>" for number in range(2000))
    assert len(markup.parse(f"<p>{fonts}</p>" + "<p>x" * 2000)) < 5000


@pytest.mark.parametrize(
    "source",
    [
        "<p>x<li>y<td>" * 3000,
        "<div><b>x</b></div>" * 3000,
        "<!-- <div> -->" * 3000,
        "<script>'<div>'</script>" * 3000,
        "<svg>" + "<path d='M0'/>" * 3000 + "</svg>",
        "</div>" * 3000,
        "1 < 2 <3 " * 3000,
    ],
)
def test_a_page_that_is_no_deeper_than_others_stays_as_it_is(source):
    assert limit_nesting(source) is source


def test_a_page_that_opens_and_never_ends_is_looked_at_once():
    """Each of these begins a token that runs to the end: it must not be sought anew from each."""
    for part in ("<!--", "<script>", "<p ", "<p a='", "<title>", "<", "</"):
        assert said(limit_nesting(part * 200_000)) is not None


@pytest.mark.timeout(60)
def test_a_large_page_takes_time_and_memory_in_proportion():
    """Of 5 MB, which without a look at its tags would take hours; the guide says what 50 MB take."""
    code = (
        "import resource, sys, time\n"
        "from secateur.subjects import open_page\n"
        "began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "page = open_page('<div>' * 500_000 + 'a b ' * 625_000)\n"
        "print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    seconds, mib = map(float, told.split())
    assert seconds < 20
    assert mib < 500
