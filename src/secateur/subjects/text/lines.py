"""Lines of text in a document: what is inline and what a block by HTML's content model, and sentences of a line.

A sentence is never taken apart by the tags in it: known, obsolete, made up, MathML or a drawing's. What is no block by
HTML's rules and holds none is part of the line that it stands in. As in a browser's layout, a line beside blocks gets a
box of its own, here `LINE`, so that all children of a node are blocks or none is; a box is not written.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from secateur.subjects.text.tree import Tree, split_texts, wrap_ranges

__all__ = ["BLOCKS", "BOXES", "DOCUMENT", "LINE", "PHRASES", "ROOT", "SENTENCE", "box_lines", "box_sentences",
           "find_inline", "find_inline_below", "original_tag"]  # fmt: skip

ROOT = "[documents]"
DOCUMENT = "document"
"""The tag of each of several documents that are to be told apart; no tag of HTML."""
LINE, SENTENCE = "[line]", "[sentence]"
BOXES = frozenset({LINE, SENTENCE})

BLOCKS = frozenset({
    ROOT, DOCUMENT, LINE, SENTENCE, "address", "article", "aside", "blockquote", "body", "caption", "center", "col",
    "colgroup", "dd", "details", "dialog", "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer",
    "form", "frameset", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hgroup", "hr", "html", "legend", "li",
    "main", "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot", "th",
    "thead", "title", "tr", "ul",
})  # fmt: skip
"""Flow content of HTML that is no phrasing content, and the parts of lists and tables."""

PHRASES = frozenset({
    "", "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "nobr", "q", "rb", "rp", "rt", "rtc", "ruby", "s", "samp", "small", "span", "strike",
    "strong", "sub", "sup", "time", "tt", "u", "var",
})  # fmt: skip
"""Text, and tags that say what a piece of a line is or looks like."""

_OF_PHRASES = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", LINE, SENTENCE}
"""Blocks that hold a line and nothing else."""

Split = Callable[[str], Sequence[tuple[int, int]]]
"""Text -> (start, end) of each sentence, in order."""

LEAST = 8
"""Characters of a sentence: what is shorter ("Note.", "1.") goes on to the end of the next."""

MOST = 20_000
"""Sentences of a line: of one with more, several are one piece, so that a text of 50 MB fits into memory."""

CONTAINER = 16
"""Words above which an unknown tag that stands among others of its like, without text around, is a block."""


_NUMBERED = re.compile(r"(h[1-6]|(?!h[1-6]$)[a-z]+)\d+")


@lru_cache(maxsize=4096)
def original_tag(tag: str) -> str:
    """The tag of one that was written with a number, p of p0; any other as it is."""
    found = _NUMBERED.fullmatch(tag)
    return found[1] if found else tag


def find_inline(tree: Tree, held: Sequence[int] | None = None) -> list[bool]:
    """Whether each node is part of a line: text, and what is no block by HTML's content model and holds none.

    held: [nodes + 1] running sums of words. With it, tags that HTML does not know, and its forms and drawings, are
    blocks where nothing around them is text, and one of them is longer than a piece of a sentence.
    """
    inline = find_inline_below(tree, 0)
    if held is None:
        return inline
    for node in range(len(tree)):
        if inline[node] or tree.tag[node] in _OF_PHRASES or tree.end[node] == node + 1:
            continue
        for first, end in _find_runs(tree, node, inline):
            tops = [child for child in _walk(tree, first, end) if held[tree.end[child]] > held[child]]
            longest = max((held[tree.end[child]] - held[child] for child in tops), default=0)
            if longest > CONTAINER and not any(tree.tag[child] in PHRASES for child in tops):
                for child in tops:
                    inline[child] = False
    return inline


def find_inline_below(tree: Tree, top: int) -> list[bool]:
    """`find_inline` of a node and those below it, without `held`."""
    inline = [original_tag(tag) not in BLOCKS for tag in tree.tag[top : tree.end[top]]]
    for place in range(len(inline) - 1, 0, -1):
        if not inline[place]:
            inline[tree.parent[top + place] - top] = False
    return inline


def _walk(tree: Tree, first: int, end: int) -> list[int]:
    """The siblings from `first` to `end`."""
    found = list[int]()
    while first < end:
        found.append(first)
        first = tree.end[first]
    return found


def _find_runs(tree: Tree, node: int, inline: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, end) of each run of children that are part of a line."""
    found, start, child = list[tuple[int, int]](), -1, node + 1
    while child < tree.end[node]:
        if inline[child]:
            start = child if start < 0 else start
        elif start >= 0:
            found.append((start, child))
            start = -1
        child = tree.end[child]
    return [*found, (start, child)] if start >= 0 else found


def box_lines(tree: Tree, held: Sequence[int]) -> tuple[Tree, list[int]]:
    """The tree with a box around each line that stands beside blocks, and which node each was.

    held: [nodes + 1] running sums of words.
    """
    inline, ranges = find_inline(tree, held), list[tuple[int, int]]()
    beside = [False] * len(tree)  # whether a block is among the children
    for node in range(1, len(tree)):
        beside[tree.parent[node]] |= not inline[node]
    beside[0] = True
    for node in range(len(tree)):
        if beside[node]:
            ranges += [(a, b) for a, b in _find_runs(tree, node, inline) if held[b] > held[a]]
    return wrap_ranges(tree, sorted(ranges), LINE) if ranges else (tree, list(range(len(tree))))


def box_sentences(
    tree: Tree, lines: Collection[int], split: Split, last: Collection[int] = ()
) -> tuple[Tree, list[int]]:
    """The tree with a box around each sentence of these lines, and which node each was.

    lines: nodes whose children are all inline. split: text -> places of its sentences. last: those of them of which
    the last sentence alone is told from the
    others. A sentence that ends inside a tag goes on to the end of that tag. Lines of one sentence stay as they are.
    """
    begins, cuts = dict[int, list[tuple[int, int]]](), dict[int, list[int]]()
    for line in lines:
        found = _find_begins(tree, line, split)
        if found:
            begins[line] = found[-1:] if line in last else found
        for node, place in begins.get(line, ()):
            if place:
                cuts.setdefault(node, []).append(place)
    if not begins:
        return tree, list(range(len(tree)))
    parted, nodes = split_texts(tree, cuts)
    new = {old: at for at, old in reversed(list(enumerate(nodes)))}  # the first of what a node became
    ranges = list[tuple[int, int]]()
    for line, places in begins.items():
        bounds = [new[node] + (cuts[node].index(place) + 1 if place else 0) for node, place in places]
        bounds = [new[line] + 1, *bounds, parted.end[new[line]]]
        ranges += pairwise(bounds)
    boxed, origin = wrap_ranges(parted, sorted(ranges), SENTENCE)
    return boxed, [nodes[at] for at in origin]


def _find_begins(tree: Tree, line: int, split: Split) -> list[tuple[int, int]]:
    """(node, place in its text) of each sentence of a line but the first, where it may be cut: right below the line."""
    texts = [node for node in range(line + 1, tree.end[line]) if not tree.tag[node]]
    offsets = [0, *accumulate(len(tree.text[node]) for node in texts)]
    text, found, begin = "".join(tree.text[node] for node in texts), list[tuple[int, int]](), 0
    least = max(LEAST, len(text) // MOST)
    for start, _ in split(text):
        cut = _find_cut(tree, line, texts, offsets, start) if begin < start else None
        if cut is not None and start - begin >= least:
            found.append(cut)
            begin = start
    return found


def _find_cut(
    tree: Tree, line: int, texts: Sequence[int], offsets: Sequence[int], start: int
) -> tuple[int, int] | None:
    """Where a character of a line stands: (node right below the line, place); None inside a tag of it."""
    index = bisect_right(offsets, start) - 1
    node, place = texts[index], start - offsets[index]
    while tree.parent[node] != line:
        if place or node != tree.parent[node] + 1:
            return None
        node = tree.parent[node]
    return node, place
