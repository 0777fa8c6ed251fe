"""HTML as arrays: parsed by a browser's rules, cleaned without loss, serialised. No recursion, whatever the depth.

A page is hostile: nested ten thousand deep, in no known encoding, all markup and no text. Lexbor reads it as a browser
would; what is kept of it are flat lists, in which a subtree is a range, so that no step depends on the depth.
"""

from __future__ import annotations

import codecs
import html
import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from secateur.errors import MissingExtraError
from secateur.subjects.text import nesting
from secateur.subjects.text.context import ENDS_HEADINGS
from secateur.subjects.text.lines import (
    BLOCKS,
    BOXES,
    DOCUMENT,
    PHRASES,
    ROOT,
    find_inline,
    find_inline_below,
    original_tag,
)
from secateur.subjects.text.tree import Tree, prune_tree

try:
    from selectolax.lexbor import LexborHTMLParser
except ImportError as error:
    raise MissingExtraError("reading HTML needs selectolax: pip install 'secateur[context]'") from error

__all__ = [
    "DOCUMENT",
    "PLAIN",
    "PROTECTED",
    "clean",
    "decode",
    "first_words",
    "is_html",
    "join",
    "parse",
    "plain",
    "stems",
    "terms",
    "whole",
    "words",
    "write",
]

PROTECTED = frozenset({"table", "tr", "td", "th", "ul", "ol", "li", "dl", "dt", "dd", "pre"}) | {
    f"h{level}" for level in range(1, 7)
}
"""Tags that say what their text is: cleaning never unwraps them."""

_UNSEEN = {"script", "style", "template", "iframe", "noembed", "noframes", "!doctype"}
_BREAKS = {"br", "hr"}
_LITERAL = {"xmp": "pre", "plaintext": "pre", "listing": "pre"}
"""Tags whose text is not parsed, and what is written in their place, since ours is escaped."""

_RAW = {"title", "textarea"}
"""Tags that hold text alone, except inside a drawing; what is written must not depend on the drawing around it."""

_CELLS = {"td", "th"}
_SPANS = ("colspan", "rowspan")
_MANY = re.compile(r"[ \t\n\f\r]*\+?0*([0-9]{1,5})")
"""How many columns or rows a cell takes, by HTML's rule for numbers (2.3.4.2): what is behind the digits is nothing."""

_INTEGER = re.compile(r"[ \t\n\f\r]*\+?(-?[0-9]{1,9})")
_NUMBERING = {
    "ol": {"start": _INTEGER, "reversed": re.compile(r"()"), "type": re.compile(r"([aAiI])\Z")},
    "li": {"value": _INTEGER},
}
"""Attributes that say which numbers the items of a list have, and what of their values does."""

_SPACED = {"pre", "textarea"}

PLAIN = PHRASES - {"", "sub", "sup", "del", "ins", "s", "strike", "q", "bdo", "ruby", "rb", "rp", "rt", "rtc"}
"""Tags in a line that say only how their text looks: manuals spend half of their tokens on them."""
_FOREIGN = {"math", "svg"}
"""What holds tags of another language, in which they say how their texts belong together."""
_ALT = {"img", "area", "input"}
"""What stands for a text, in its attribute alt."""

# Every letter of a script without spaces is a word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_TERM = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BLANKS = re.compile(r"[ \t\n\r\f]+")
_BLANK = {" ", "\n"}
"""What is left of blanks, by `_one_blank`."""
_BLANK_LINES = re.compile(r"[ \t\r\f]*\n(?:[ \t\r\f]*\n)+")
_NAME = re.compile(r"[^\s\"'<>/=\x00-\x1f]+")
"""Of an attribute that can be written: a page may name one `"><script>`."""
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


def decode(source: bytes) -> str:
    """Text of a page's bytes: by its byte order mark, its <meta charset>, as UTF-8, or else as Windows-1252."""
    marks = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    for mark, name in marks.items():
        if source.startswith(mark):
            return source[len(mark) :].decode(name, "replace")
    found = _CHARSET.search(source[:4096])
    if found:
        try:
            name = codecs.lookup(found[1].decode("ascii")).name
            # What names itself UTF-16 in letters of one byte is not; and codecs such as base64 are no text.
            return source.decode("utf-8" if name.startswith(("utf-16", "utf-32")) else name, "replace")
        except (LookupError, UnicodeError):
            pass
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError:
        return source.decode("cp1252", "replace")


_TAG = re.compile(
    r"<(?:!doctype\b[^<>]*|/[a-z][a-z0-9]*\s*|([a-z][a-z0-9]*)(?:\s+[^<>\s=]+\s*=[^<>]*|\s*/?))>", re.IGNORECASE
)
_KNOWN = PROTECTED | PHRASES | _UNSEEN | _BREAKS | set(_LITERAL) | _RAW | {
    "address", "area", "article", "aside", "audio", "base", "blockquote", "body", "button", "canvas", "caption",
    "center", "col", "colgroup", "datalist", "details", "dialog", "dir", "div", "embed", "fieldset", "figcaption",
    "figure", "footer", "form", "frame", "frameset", "head", "header", "hgroup", "html", "img", "input", "legend",
    "link", "main", "map", "math", "menu", "meta", "meter", "nav", "noscript", "object", "optgroup", "option",
    "output", "p", "param", "picture", "progress", "search", "section", "select", "slot",
    "source", "summary", "svg", "tbody", "tfoot", "thead", "track", "video", "wbr",
}  # fmt: skip


_WRAPPERS = {"article", "body", "center", "div", "footer", "header", "hgroup", "html", "main", "section"}
_ENDING_LINES = {
    "address", "article", "aside", "blockquote", "center", "details", "dialog", "dir", "div", "dl", "fieldset",
    "figcaption", "figure", "footer", "form", "header", "hgroup", "main", "menu", "nav", "ol", "pre", "search",
    "section", "ul",
}  # fmt: skip
"""Blocks that end the p before them, and whose own end closes what is open in them."""
_HEADINGS = {f"h{level}" for level in range(1, 7)}
_CLOSED_BEFORE: Mapping[str, Collection[str]] = {
    "dd": {"dd", "dt"}, "dt": {"dd", "dt"}, "li": {"li"}, "p": {*_ENDING_LINES, *_HEADINGS, "p"},
    "tbody": {"tbody", "tfoot"}, "td": {"td", "th"}, "th": {"td", "th"}, "thead": {"tbody", "tfoot"}, "tr": {"tr"},
}  # fmt: skip
"""Tag -> what, right behind it, closes it. A table closes no p where a page has no doctype."""
_CLOSED_WITH: Mapping[str, Collection[str]] = {
    "dd": {*_ENDING_LINES, ROOT}, "li": {*_ENDING_LINES, ROOT}, "p": {*_ENDING_LINES, "dd", "li", "td", "th", ROOT},
    "tbody": {"table"}, "td": {"tr"}, "th": {"tr"}, "tfoot": {"table"}, "tr": {"table", "tbody", "tfoot", "thead"},
}  # fmt: skip
"""Tag -> what closes it where nothing is left in it."""
_STANDS_ALONE = {"area", "br", "hr", "img", "input", "link", "meta", "source", "wbr"}
"""Tags that hold nothing."""
_MAY_STAY_OPEN = _STANDS_ALONE | {
    "body", "dd", "dt", "head", "html", "li", "option", "p", "tbody", "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip
"""Tags that need no closing one."""
_SPEAKS_OF = re.compile(r"[\s.,;:!?)]|\Z")
"""What stands behind a tag that a sentence speaks of."""


def is_html(text: str) -> bool:
    """Whether a text is HTML: it has a tag of it, and does not just say that one thing is < another, or > a third.

    An opening tag counts where HTML has its name and what follows the name are attributes with values; one without
    attributes where it needs no closing one; a closing one always. Neither counts amid a sentence, with blanks around
    it: "Never use the <p> tag".
    """
    return any(_is_of_page(text, found) for found in _TAG.finditer(text))


def _is_of_page(text: str, found: re.Match[str]) -> bool:
    """Whether a tag is one of a page, and not the type of a list or what a sentence speaks of."""
    name, start = (found[1] or "").lower(), found.start()
    if name and name not in _KNOWN:
        return False
    if "=" in found[0] or found[0].startswith("<!"):
        return True
    before = text[max(0, start - 2) : start]
    if before[-1:] == " " and before[0] not in " \t\n>" and _SPEAKS_OF.match(text, found.end()):
        return False
    if name and before[-1:].isalnum():  # List<Input>
        return name in ("br", "hr", "img", "wbr")
    return not name or name in _MAY_STAY_OPEN


def whole(text: str) -> str:
    """The text with a question mark for each lone half of a surrogate pair, which can't be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")


def words(text: str) -> int:
    """How many words: runs without blanks, and each letter of scripts that write none."""
    return len(_WORD.findall(text))


def first_words(text: str, count: int) -> str:
    """The text up to and with its `count`-th word, as `words` counts."""
    end, left = 0, max(0, count) + 1
    for found in islice(_WORD.finditer(text), left):
        left -= 1
        if left:
            end = found.end()
    return text if left else text[:end]


def terms(text: str) -> list[str]:
    """What a search compares: words in lower case without punctuation, single letters of scripts without blanks."""
    return _TERM.findall(text.lower())


def stems(text: str) -> list[str]:
    """The terms of a text, underscores as spaces, without the commonest endings of English."""
    return [re.sub(r"(?:ing|ed|es|s|e)$", "", term) or term for term in terms(text.replace("_", " "))]


_MAY_HIDE = re.compile(r"hidden|display\s*:\s*none", re.IGNORECASE)
_NOT_SHOWN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)


def parse(source: str | bytes, attributes: Collection[str] = (), *, hidden: bool = True) -> Tree:
    """One document, without what is never seen: scripts, styles, comments, and attributes but those asked for.

    attributes: "*" asks for all of them, but those whose names can't be written; how many columns and rows a cell takes
    always stays, and how a list numbers its items. hidden: keep what the page hides by its own markup (`hidden`,
    `aria-hidden="true"`, a style of `display: none` or `visibility: hidden`); without, the tree says how many words
    were left out. Blanks on both sides of a tag in a line are one, as within a text. The text of a picture (`alt`)
    stands in its place.
    """
    if isinstance(source, bytes):
        source = decode(source)
    source = whole(source).replace("\0", "\ufffd")  # a NUL is no text in HTML
    tag, text, parent, end = [ROOT], [""], [-1], [0]
    parser = LexborHTMLParser(nesting.limit_nesting(source))
    node, above, spaced, unseen = parser.root, [0], 0, 0
    ends_blank = False  # whether the line ends in a blank, which is one with those that follow it behind tags in a line
    hides = not hidden and _MAY_HIDE.search(source) is not None
    while node is not None:
        name = node.tag
        down = False
        if name == "-text":
            said = node.text_content or ""
            if not spaced:
                said = _BLANKS.sub(_one_blank, said)
                said = said[ends_blank and said[:1] in _BLANK :]
            if said:
                tag.append("")
                text.append(said)
                parent.append(above[-1])
                end.append(len(tag))
                ends_blank = not spaced and said[-1] in _BLANK
        elif name in _BREAKS:
            ends_blank = False
            tag.append("")
            text.append("\n")
            parent.append(above[-1])
            end.append(len(tag))
        elif hides and name and name[0] not in "-#!" and _is_hidden(name, node.attributes):
            unseen += words(node.text(deep=True, separator=" "))
        elif name in _ALT and (node.attributes.get("alt") or "").strip():
            tag.append("")
            text.append(f" {_BLANKS.sub(' ', node.attributes['alt'] or '').strip()} ")
            parent.append(above[-1])
            end.append(len(tag))
        elif name and name[0] not in "-#!" and name not in _UNSEEN:
            tag.append("desc" if name in _RAW and _has_tags(node) else _LITERAL.get(name, name))
            given = node.attributes if attributes or name in _CELLS or name in _NUMBERING else {}
            stay = [key for key in given if _NAME.fullmatch(key)] if "*" in attributes else [*attributes]
            spans = _read_spans(given) if name in _CELLS else _read_numbering(name, given)
            given, stay = {**given, **spans}, [key for key in stay if key not in (*_SPANS, *spans)] + [*spans]
            text.append("".join(f' {key}="{html.escape(given[key] or "")}"' for key in stay if key in given))
            parent.append(above[-1])
            end.append(0)
            down = node.child is not None
            ends_blank &= original_tag(tag[-1]) not in BLOCKS
            if down:
                spaced += tag[-1] in _SPACED
                above.append(len(tag) - 1)
            else:
                end[-1] = len(tag)
        if down:
            node = node.child
            continue
        while node is not None and node.next is None:
            node = node.parent
            if len(above) == 1:
                node = None
                break
            spaced -= tag[above[-1]] in _SPACED
            ends_blank &= original_tag(tag[above[-1]]) not in BLOCKS
            end[above.pop()] = len(tag)
        node = node.next if node is not None else None
    for left in above:
        end[left] = len(tag)
    return Tree(tag, text, parent, end, unseen)


def _read_spans(attributes: Mapping[str, str | None]) -> dict[str, str]:
    """How many columns and rows a cell takes, where it is not one: values of other cells would stand under other heads.

    A rowspan of 0 goes to the end of the group of rows.
    """
    found = {key: _MANY.match(attributes.get(key) or "") for key in _SPANS}
    counts = {key: str(int(match[1])) for key, match in found.items() if match}
    return {key: count for key, count in counts.items() if count not in ("1", "0" if key == "colspan" else "1")}


def _read_numbering(tag: str, attributes: Mapping[str, str | None]) -> dict[str, str]:
    """How a list numbers its items, where it does not count from 1 in figures; and the number that an item gives."""
    patterns = _NUMBERING.get(tag, {})
    found = {key: pattern.match(attributes[key] or "") for key, pattern in patterns.items() if key in attributes}
    return {key: match[1] for key, match in found.items() if match}


def _is_hidden(tag: str, attributes: Mapping[str, str | None]) -> bool:
    """Whether a page hides an element and all that is in it; a page that hides all is shown by its script."""
    if tag in ("html", "body") or tag in _UNSEEN:
        return False
    return (
        ("hidden" in attributes and (attributes["hidden"] or "").lower() != "until-found")
        or (attributes.get("aria-hidden") or "").lower() == "true"
        or bool(_NOT_SHOWN.search(attributes.get("style") or ""))
    )


def _has_tags(node: Any) -> bool:
    child = node.child
    while child is not None:
        if child.tag[:1] != "-":
            return True
        child = child.next
    return False


def _one_blank(found: re.Match[str]) -> str:
    return "\n" if "\n" in found[0] else " "


def join(trees: Sequence[Tree], *, apart: bool = False) -> Tree:
    """All documents under one root, in order; `apart` in a tag each, `DOCUMENT`."""
    tag, text, parent, end = [ROOT], [""], [-1], [0]
    for tree in trees:
        top, first = (len(tag), 0) if apart else (0, 1)
        shift = len(tag) - first
        tag += [DOCUMENT, *tree.tag[1:]] if apart else tree.tag[1:]
        text += tree.text[first:]
        parent += [top if not above else above + shift for above in tree.parent[first:]]
        parent[top] = -1 if not top else 0
        end += [last + shift for last in tree.end[first:]]
    end[0] = len(tag)
    return Tree(tag, text, parent, end)


def plain(tree: Tree, tags: Collection[str] = PLAIN) -> Tree:
    """The tree without the tags of `tags` that have no attributes; what they hold stays, as one text where it is.

    With them go tags in a line that HTML does not know, unless none goes: nobody knows what they would say.
    """
    hidden, inline = tree.hidden, find_inline(tree) if tags else []
    foreign, loose = [False] * len(tree), [False] * len(tree)
    for node in range(1, len(tree)):
        tag, above = tree.tag[node], tree.parent[node]
        foreign[node] = foreign[above] or tree.tag[above] in _FOREIGN
        unknown = bool(tags) and bool(tag) and original_tag(tag) not in _KNOWN and inline[node] and not foreign[node]
        loose[node] = (tag in tags or unknown) and not tree.text[node]
    tree, _ = prune_tree(tree, [False] * len(tree), loose)
    texts, gone, run = list(tree.text), [False] * len(tree), list[int]()
    for node in range(1, len(tree)):
        if not tree.tag[node] and run and tree.parent[run[0]] == tree.parent[node]:
            gone[node] = True
            run.append(node)
            continue
        _merge(texts, run)
        run = [] if tree.tag[node] else [node]
    _merge(texts, run)
    return replace(prune_tree(replace(tree, text=texts), gone, [False] * len(tree))[0], hidden=hidden)


def _merge(texts: list[str], run: Sequence[int]) -> None:
    """The texts of `run` at once in the first of them: one after another would copy all of it each time."""
    if len(run) > 1:
        texts[run[0]] = "".join([texts[node] for node in run])


def clean(tree: Tree, protected: Collection[str] = PROTECTED) -> tuple[Tree, list[int]]:
    """The same text in fewer tags, and which nodes are left: no tag without text, no tag around one other alone.

    An empty cell stays in a row that has text, so that each value stays under its head. A tag whose
    text is all that of its one element is unwrapped, so that of a chain the innermost stays; `protected`
    ones stay too. Text is that without blanks.
    """
    count = len(tree)
    full = [0 if tag else int(not text.isspace() and bool(text)) for tag, text in zip(tree.tag, tree.text, strict=True)]
    held = tree.before(full)
    blank = [bool(tree.tag[i]) and i > 0 and held[tree.end[i]] == held[i] for i in range(count)]
    held_by_row = [tree.tag[i] in _CELLS and tree.tag[tree.parent[i]] == "tr" for i in range(count)]
    blank = [gone and not (held_by_row[i] and not blank[tree.parent[i]]) for i, gone in enumerate(blank)]
    inline = find_inline(tree)
    tree, blank = _broken(tree, blank, inline)
    elements, only = [0] * count, [0] * count  # children that are elements with text, and the last of them
    for i in range(1, count):
        if tree.tag[i] and not blank[i]:
            elements[tree.parent[i]] += 1
            only[tree.parent[i]] = i
    bare = [
        i > 0
        and elements[i] == 1
        and tree.tag[i] not in protected
        and held[tree.end[i]] - held[i] == held[tree.end[only[i]]] - held[only[i]]
        for i in range(count)
    ]
    return prune_tree(
        tree, [gone or loose for gone, loose in zip(blank, _loose(tree, blank, inline), strict=True)], bare
    )


def _broken(tree: Tree, blank: list[bool], inline: Sequence[bool]) -> tuple[Tree, list[bool]]:
    """An empty block between two texts ends a line, so that their words do not become one: it is a text of that."""
    tag, text, found = list(tree.tag), list(tree.text), list(blank)
    beside, between = [False] * len(tree), [0] * len(tree)  # of a tag's children: text before, and an empty block since
    for i in range(1, len(tree)):
        above = tree.parent[i]
        if blank[above] or (not tree.tag[i] and not tree.text[i].strip()):
            continue
        if blank[i]:
            between[above] = i if beside[above] and not inline[i] else between[above]
            continue
        if inline[i] and between[above]:
            node = between[above]
            tag[node], text[node] = "", "\n"
            found[node : tree.end[node]] = [False, *[True] * (tree.end[node] - node - 1)]
        beside[above], between[above] = inline[i], 0
    return replace(tree, tag=tag, text=text), found


def _loose(tree: Tree, blank: Sequence[bool], inline: Sequence[bool]) -> list[bool]:
    """Text nodes of blanks that a browser does not show: after a block, or at the start of one."""
    loose = [False] * len(tree)
    spaced = [tag in _SPACED for tag in tree.tag]  # where blanks are shown as they are
    beside = [False] * len(tree)  # whether the last thing seen in an element was text or a tag in a line
    for i in range(1, len(tree)):
        above = tree.parent[i]
        spaced[i] |= spaced[above]
        if spaced[i]:
            continue
        if tree.tag[i]:
            if not blank[i]:
                beside[above] = inline[i]
        elif not tree.text[i].isspace():
            beside[above] = bool(tree.text[i])
        elif not beside[above]:
            loose[i] = True
    return loose


def write(
    tree: Tree, nodes: Sequence[int] | None = None, names: Sequence[str] | None = None, *, brief: bool = False
) -> str:
    """HTML of the whole tree or of the subtrees of `nodes`, without blank lines. `names` stand in for tags.

    brief: write no section or div around blocks, and no closing tag where HTML's syntax needs none (13.1.2.4), so that
    a model reads more text for its tokens; a parser finds the same lines, where tags are nested as HTML has them.
    """
    tags = tree.tag if names is None else names
    steps = list[tuple[int, bool]]()  # (node, whether it ends here)
    for top in tree.children(0) if nodes is None else nodes:
        opened, inside = list[int](), tree.tag[top : tree.end[top]]
        hides = [tag in BOXES for tag in inside]
        if brief and not _WRAPPERS.isdisjoint(inside):
            hides = [gone or wraps for gone, wraps in zip(hides, _find_wrappers(tree, top), strict=True)]
        for node in range(top, tree.end[top]):
            while opened and tree.end[opened[-1]] <= node:
                steps.append((opened.pop(), True))
            if not hides[node - top]:
                steps.append((node, False))
                opened += [node] if tree.tag[node] else []
        steps += [(node, True) for node in reversed(opened)]
    parts = list[str]()
    for (node, ends), (following, after) in zip(steps, [*steps[1:], (0, True)], strict=False):
        tag = tree.tag[node]
        if not tag:
            parts.append(html.escape(tree.text[node], quote=False))
        elif not ends:
            parts.append(f"<{tags[node]}{tree.text[node]}>")
        elif not brief or tree.tag[following] not in (_CLOSED_WITH if after else _CLOSED_BEFORE).get(tag, ()):
            parts.append(f"</{tags[node]}>")
    return _BLANK_LINES.sub("\n", "".join(parts)).strip()


def _find_wrappers(tree: Tree, top: int) -> list[bool]:
    """Whether a node, and each below it, is a tag without attributes that says nothing of the blocks in it, and holds
    no line.

    One that ends what its heading is of stays, unless a heading as high follows.
    """
    inside = range(top, tree.end[top])
    inline, found = find_inline_below(tree, top), [tree.tag[node] in _WRAPPERS for node in inside]
    first, last = [0] * len(inside), [0] * len(inside)  # children
    for place, node in enumerate(inside):
        found[place] &= not tree.text[node] and tree.end[node] > node + 1
        above = tree.parent[node] - top
        if place:
            found[above] &= not inline[place] and tree.tag[node] not in BOXES
            first[above] = first[above] or node
            last[above] = node
    heads = [node for node in inside if tree.tag[node] in _HEADINGS]
    for place, node in enumerate(inside):
        found[place] = (
            found[place]
            and original_tag(tree.tag[first[place]]) in BLOCKS
            and original_tag(tree.tag[last[place]]) in BLOCKS
            and not _ends_heading(tree, node, heads)
        )
    return found


def _ends_heading(tree: Tree, node: int, heads: Sequence[int]) -> bool:
    """Whether what follows a tag would come under a heading in it, if the tag were not there."""
    inside = heads[bisect_left(heads, node) : bisect_left(heads, tree.end[node])]
    following = tree.end[node]
    while following < len(tree) and tree.tag[following] in _WRAPPERS and tree.end[following] > following + 1:
        following += 1
    if not inside or following >= len(tree) or tree.tag[node] not in ENDS_HEADINGS:
        return False
    highest = min(tree.tag[head] for head in inside)
    if tree.tag[node] in ("div", "header") and (highest == "h1" or tree.end[inside[-1]] == tree.end[node]):
        return False  # a title, and a group of headings, hold on
    return not (tree.tag[following] in _HEADINGS and tree.tag[following] <= highest)
