"""Depth limit for hostile pages: one pass over the tags finds excessive nesting and makes it shallower.

A browser's rules take long where many tags are open: each new one looks through all of them, so that half a megabyte of
<div> keeps a parser busy for a minute; and each paragraph opens anew what lines before it left open, so that 40 kB of
<font> and <p> fill 2 GiB.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

__all__ = ["DEEPEST", "limit_nesting"]

DEEPEST = 512
"""Tags that are open at once where a page is made shallower; Chromium opens as many."""

_RISKY, _LEFT, _FEW = 2048, 64, 2000
"""Open tags, and open tags of looks, above which a page is made shallower; and `<` below which nobody need look."""

_ATTRIBUTES = r"""(?:[^>"'=]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?|["'])*+(?:>|\Z)"""
_TOKEN = re.compile(
    r"<!--(?:>|->|.*?(?:--!?>|\Z))"
    rf"|<(?P<raw>script|style|iframe|noembed|noframes|xmp|textarea|title)(?=[\s/>]){_ATTRIBUTES}"
    r"(?:.*?</(?P=raw)(?=[\s/>])|.*)"
    rf"|<(?P<end>/?)(?P<name>[a-z][^\s/>]*+){_ATTRIBUTES}",
    re.IGNORECASE | re.DOTALL,
)
"""A comment, text that is not parsed with its tag, or a tag. Each runs to the end of the page where it has none."""

_LOOKS = {"b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
"""What a browser opens anew in the next paragraph; and <a>, of which never two are open."""

_LINE = _LOOKS | {"a", "span", "sub", "sup", "mark", "label", "abbr", "cite", "kbd", "q", "samp", "var", "time"}
_ALONE = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
    "p", "li", "dd", "dt", "option", "optgroup", "tr", "td", "th", "tbody", "thead", "tfoot", "colgroup", "caption",
    "rp", "rt", "html", "head", "body",
}  # fmt: skip
"""Tags that hold nothing, or that another of their kind closes: they nest in others alone."""


def limit_nesting(source: str) -> str:
    """The page as it is; or, where too many of its tags are open at once, with those further in left out.

    What they hold stays. In such a page tags of looks (b, i, font) are left out, too. A page that is written to deceive
    this look, as by tags that a browser would not close here, is not found out.
    """
    if source.count("<") < _FEW or not _risky(source):
        return source
    opened, left, depth, parts, at = Counter[str](), Counter[str](), 0, list[str](), 0
    for start, end, name, closes in _tags(source):
        parts.append(source[at:start])
        at, stays = end, name not in _LOOKS
        if closes and left[name]:
            left[name] -= 1
            stays = False
        elif closes and opened[name]:
            opened[name] -= 1
            depth -= 1
        elif not closes and stays:
            stays = depth < DEEPEST
            (opened if stays else left)[name] += 1
            depth += stays
        parts.append(source[start:end] if stays else "" if name in _LINE else "\n")
    return "".join([*parts, source[at:]])


def _risky(source: str) -> bool:
    opened, depth, loose = Counter[str](), 0, 0
    for _, _, name, closes in _tags(source):
        if closes and not opened[name]:
            continue
        step = -1 if closes else 1
        opened[name] += step
        depth += step
        loose += step if name in _LOOKS else 0
        if depth > _RISKY or loose > _LEFT:
            return True
    return False


def _tags(source: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, name, whether it closes) of each tag that nests."""
    for found in _TOKEN.finditer(source):
        name = (found["name"] or "").lower()
        if name and name not in _ALONE and not source.endswith("/>", found.start(), found.end()):
            yield found.start(), found.end(), name, bool(found["end"])
