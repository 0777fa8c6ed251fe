"""What gives a piece of a document its meaning: headings, terms, heads and captions of tables, leading sentences."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.subjects.text.lines import BLOCKS, SENTENCE
from secateur.subjects.text.tree import Tree

__all__ = [
    "ENDS_HEADINGS",
    "LED",
    "Contexts",
    "count_rows",
    "find_previous",
    "leads",
    "mend_items",
    "mend_rows",
    "number_items",
]

LED = {"ul", "ol", "menu", "dl", "table", "pre", "blockquote", "figure"}
"""What a sentence before it may lead into, with a colon at its end."""

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
ENDS_HEADINGS = {
    "article", "aside", "blockquote", "dd", "details", "dialog", "div", "document", "fieldset", "figure", "footer",
    "form", "header", "li", "main", "nav", "search", "section", "td", "th",
}  # fmt: skip
"""Within these a heading holds until they end; a title (h1) holds on behind a div and a header."""
_OUTLINE = {"article", "aside", "blockquote", "document", "nav", "section"}
"""Within these headings are below those outside, whatever their level."""
_NAMED_BY = {"figure": "figcaption", "details": "summary", "fieldset": "legend", "table": "caption"}
_TERMS = 16
"""How many terms of one definition count, the nearest first: a page may have thousands before each."""
_SHORT = 256
"""Letters of a line up to which it names what is beside or below it in a table; what is longer tells of something."""
_COLUMNS, _ROWS = re.compile(r' colspan="([0-9]{1,5})"'), re.compile(r' rowspan="([0-9]{1,5})"')
_START, _VALUE = re.compile(r' start="(-?[0-9]{1,9})"'), re.compile(r' value="(-?[0-9]{1,9})"')
_SPANNING = 16
"""How many rows with cells that go on into a row count, the nearest of them."""


class Contexts:
    """What the nodes of a tree stand under. owners: the document of each node."""

    def __init__(self, tree: Tree, owners: Sequence[int]) -> None:
        self.tree = tree
        self._heads, self._above = _find_headings(tree, owners)
        self._before = find_previous(tree)
        self._letters = tree.before([0 if tag else len(text) for tag, text in zip(tree.tag, tree.text, strict=True)])
        self._outlines = tree.before([int(tag == "table" or tag in _HEADINGS) for tag in tree.tag])
        self._found = dict[int, list[int]]()
        self._rows, self._names = dict[int, list[int]](), dict[int, list[int]]()
        self._groups = dict[int, list[int]]()
        self._spanning = dict[int, dict[int, list[int]]]()
        self._terms = _find_terms(tree, self._before)

    def find(self, node: int) -> list[int]:
        """The nodes that a node stands under, in page order: each a heading, a term, a row of heads, a line."""
        if node not in self._found:
            self._found[node] = self._find(node)
        return self._found[node]

    def find_led(self, node: int) -> tuple[int, int]:
        """The range of nodes that a node leads to, (0, 0) for none: those right under it.

        Of a heading what comes before the next one; of a term the definitions behind it; of a caption, summary or
        legend what it names; of the name that a row's first cell begins with what else is in the cell; of the line,
        or its last sentence, that ends in a colon the list, table or code behind it.
        """
        tree, above = self.tree, self.tree.parent[node]
        if node <= 0:
            return 0, 0
        if tree.tag[node] in _HEADINGS:
            return tree.end[node], self._find_end(node)
        if _NAMED_BY.get(tree.tag[above]) == tree.tag[node]:
            return above + 1, tree.end[above]
        if tree.tag[node] == "dt":
            return self._find_definitions(node)
        if self._find_name(above) == node:
            return tree.end[node], tree.end[above]
        line = above if tree.tag[node] == SENTENCE and tree.end[above] == tree.end[node] else node
        following = tree.end[line]
        led = following < tree.end[tree.parent[line]] and tree.tag[following] in LED and leads(tree, line)
        return (following, tree.end[following]) if led else (0, 0)

    def _find_end(self, heading: int) -> int:
        """The first node behind a heading that does not stand right under it."""
        end = self.tree.end[heading]
        while end < len(self.tree) and self._heads[end] == heading and self.tree.tag[end] not in _HEADINGS:
            end += 1
        return end

    def _find_definitions(self, term: int) -> tuple[int, int]:
        """The definitions right behind a term, or behind the terms that come after it."""
        tree, begin, last = self.tree, 0, self.tree.end[self.tree.parent[term]]
        end = tree.end[term]
        for _ in range(_TERMS):
            if end >= last or tree.tag[end] != "dt":
                break
            end = tree.end[end]
        begin = end
        while end < last and tree.tag[end] == "dd":
            end = tree.end[end]
        return (begin, end) if end > begin else (0, 0)

    def _find(self, node: int) -> list[int]:
        found, tree, head = set[int](), self.tree, self._heads[node]
        while head:
            found.add(head)
            head = self._above[head]
        child, above = node, tree.parent[node]
        while above >= 0:
            found.update(self._find_beside(child, above))
            child, above = above, tree.parent[above]
        return sorted(
            other for other in found if not other <= node < tree.end[other] and not node < other < tree.end[node]
        )

    def _find_beside(self, child: int, above: int) -> list[int]:
        """What a node stands under among its siblings."""
        tree, tag = self.tree, self.tree.tag[child]
        found = [name for name in [self._find_name(above)] if name not in (0, child)]
        if tag == "dd":
            found += self._terms[child]
        elif tag in ("td", "th") and tree.tag[above] == "tr":
            found += [above + 1] if above + 1 != child and tree.end[above + 1] > above + 2 else []
        elif tag in ("tr", "tbody", "thead", "tfoot"):
            found += [*self._find_rows(child, above), *self._find_spanning(child, above)]
            found += self._find_group(child, above) if tag == "tr" else []
        elif tag in ("ul", "ol", "menu") and tree.tag[above] in ("li", "dd"):
            # What a text says of a term may be a whole section, whose first paragraph leads to no list further on.
            found += [above + 1] if child == tree.end[above + 1] else []
        if tree.tag[above] in _NAMED_BY:
            name = _NAMED_BY[tree.tag[above]]
            if above not in self._names:
                self._names[above] = [other for other in tree.children(above) if tree.tag[other] == name][:1]
            found += [other for other in self._names[above] if other != child]
        if tag in LED and leads(tree, self._before[child]):
            found.append(_last_sentence(tree, self._before[child]))
        if tag == SENTENCE:
            following = tree.end[above]
            if following < len(tree) and tree.tag[following] in LED and self._before[following] == above:
                found += [last for last in [_last_sentence(tree, above)] if leads(tree, above) and last != child]
        return found

    def _find_name(self, cell: int) -> int:
        """The short line that the first cell of a row begins with, if blocks follow it in the cell; 0 for none.

        Tables of functions have it: a name, and below it what it does. A cell with headings or tables is a layout.
        """
        tree, line = self.tree, cell + 1
        if tree.tag[cell] not in ("td", "th") or tree.tag[cell - 1] != "tr" or tree.end[cell] == line:
            return 0
        alone = tree.tag[line] not in BLOCKS or tree.end[line] == tree.end[cell]
        if alone or not self._is_short(line) or self._outlines[tree.end[cell]] > self._outlines[line]:
            return 0
        return 0 if any(tag in BLOCKS for tag in tree.tag[line + 1 : tree.end[line]]) else line

    def _is_short(self, node: int) -> bool:
        return 0 < self._letters[self.tree.end[node]] - self._letters[node] <= _SHORT

    def _find_rows(self, child: int, above: int) -> list[int]:
        """The rows of heads above a row, of no group: two at most that begin its table, and the last one before it."""
        if above not in self._rows:
            rows, groups = list[int](), set(self._find_groups(above))
            for other in self.tree.children(above):
                inner = self.tree.children(other) if self.tree.tag[other] in ("thead", "tbody") else [other]
                rows += [row for row in inner if self._is_of_heads(row) and row not in groups]
            self._rows[above] = rows
        rows = self._rows[above]
        before = bisect_left(rows, child)  # without a list of them: a table may be all heads
        begin = 2 if len(rows) > 1 and rows[1] == self.tree.end[rows[0]] else 1
        return [*rows[: min(begin, before)], *rows[max(0, before - 1) : before]]

    def _find_group(self, row: int, above: int) -> list[int]:
        """The last row before a row that heads a group; none for one that does so itself, or is a foot."""
        groups = self._find_groups(above) if self.tree.tag[above] != "tfoot" else []
        before = bisect_left(groups, row)
        return groups[max(0, before - 1) : before] if groups[before : before + 1] != [row] else []

    def _find_groups(self, above: int) -> list[int]:
        """The rows of a table that head those below them. above: the table, or a part of it.

        A row of heads that begins the table is of all of it. Where such a row ends a table that begins with another,
        they tell of what is above them.
        """
        tree = self.tree
        table = tree.parent[above] if tree.tag[above] in ("tbody", "thead", "tfoot") else above
        if table not in self._groups:
            parts = tree.children(table)
            inner = [row for part in parts for row in (tree.children(part) if tree.tag[part] == "tbody" else [part])]
            rows = [row for row in inner if tree.tag[row] == "tr"]
            found = self._find_lone(rows)
            if found and self._is_of_heads(found[0]) and "tr" not in tree.tag[table : found[0]]:
                found = found[1:]
            first = next((row for row in rows if not self._is_of_heads(row)), 0)
            self._groups[table] = [] if found[-1:] == rows[-1:] and first not in found else found
        return self._groups[table]

    def _find_lone(self, rows: Sequence[int]) -> list[int]:
        """The rows of a table with several columns that say something short in one cell: a head, or one across all."""
        tree, lone = self.tree, dict[int, int]()  # row -> its one cell that says something
        for row in filter(self._is_short, rows):
            cells = [cell for cell in tree.children(row) if self._letters[tree.end[cell]] > self._letters[cell]]
            if len(cells) == 1:
                lone[row] = cells[0]
        widths = [sum(_count_columns(tree, cell) for cell in tree.children(row)) for row in rows] if lone else []
        columns = max(widths, default=1)
        wide = [row for row, cell in lone.items() if tree.tag[cell] == "th" or _count_columns(tree, cell) >= columns]
        return wide if columns > 1 else []

    def _find_spanning(self, child: int, above: int) -> list[int]:
        """The rows before a row with a cell that goes on into it."""
        if above not in self._spanning:
            found = self._spanning[above] = dict[int, list[int]]()
            active = list[tuple[int, int]]()  # (the row before which it ends, a row with a cell that goes on)
            rows = (row for row in self.tree.children(above) if self.tree.tag[row] == "tr")
            for place, row in enumerate(rows):
                active = [(end, other) for end, other in active if end > place][-_SPANNING:]
                found[row] = [other for _, other in active]
                most = max((count_rows(self.tree, cell) for cell in self.tree.children(row)), default=1)
                active += [(place + most, row)] if most > 1 else []
        return self._spanning[above].get(child, [])

    def _is_of_heads(self, node: int) -> bool:
        """Whether a node is a row of heads alone, and perhaps of empty cells."""
        cells = self.tree.children(node) if self.tree.tag[node] == "tr" else []
        tags = {self.tree.tag[cell] for cell in cells if self.tree.end[cell] > cell + 1}
        return "th" in tags and "td" not in tags


def _count_columns(tree: Tree, cell: int) -> int:
    """How many columns a cell takes."""
    found = _COLUMNS.search(tree.text[cell])
    return int(found[1]) if found else 1


def count_rows(tree: Tree, cell: int) -> int:
    """How many rows a cell takes; as many as there are nodes for one that goes to the end of its group."""
    found = _ROWS.search(tree.text[cell]) if tree.tag[cell] in ("td", "th") else None
    return int(found[1]) or len(tree) if found else 1


def mend_rows(tree: Tree, old: Tree, nodes: Sequence[int]) -> Tree:
    """The tree in which each cell takes as many rows as are left of those that it took.

    old: the tree that it is left of. nodes: which node of it each was.
    """
    spanning = [node for node, was in enumerate(nodes) if old.text[was] and 1 < count_rows(old, was) < len(old)]
    if not spanning:
        return tree
    left, texts = set(nodes), list(tree.text)
    place, counts = dict[int, int](), dict[int, list[int]]()  # of a row among its like; how many are left before each
    for row in (node for node, tag in enumerate(old.tag) if tag == "tr"):
        before = counts.setdefault(old.parent[row], [0])
        place[row] = len(before) - 1
        before.append(before[-1] + (row in left))
    for node in spanning:
        row = old.parent[nodes[node]]
        if row in place:
            before, begin = counts[old.parent[row]], place[row]
            stay = before[min(begin + count_rows(old, nodes[node]), len(before) - 1)] - before[begin]
            texts[node] = _ROWS.sub(f' rowspan="{stay}"' if stay > 1 else "", texts[node])
    return replace(tree, text=texts)


def number_items(tree: Tree) -> dict[int, int]:
    """The number of each item of the ordered lists, by HTML's rule (4.4.8)."""
    found = dict[int, int]()
    for node in (node for node, tag in enumerate(tree.tag) if tag == "ol"):
        items = [child for child in tree.children(node) if tree.tag[child] == "li"]
        step, start = -1 if ' reversed="' in tree.text[node] else 1, _START.search(tree.text[node])
        number = int(start[1]) if start else len(items) if step < 0 else 1
        for item in items:
            value = _VALUE.search(tree.text[item])
            found[item] = number = int(value[1]) if value else number
            number += step
    return found


def mend_items(tree: Tree, numbers: Mapping[int, int], nodes: Sequence[int]) -> Tree:
    """The tree in which each item has the number that it had: the first behind a gap says it.

    numbers: those of the items of the tree that it is left of. nodes: which node of it each was.
    """
    texts, shifts = list(tree.text), dict[int, int]()  # shifts: of a list, by how much its last item had another number
    for item, number in number_items(tree).items():
        shift, above = numbers.get(nodes[item], number) - number, tree.parent[item]
        if shift != shifts.get(above, 0):
            texts[item] = f'{_VALUE.sub("", texts[item])} value="{number + shift}"'
        shifts[above] = shift
    return replace(tree, text=texts) if shifts else tree


def _find_terms(tree: Tree, before: Sequence[int]) -> dict[int, list[int]]:
    """The terms right before each definition, or before the definitions that come before it."""
    found = dict[int, list[int]]()
    for node in range(1, len(tree)):
        if tree.tag[node] != "dd":
            continue
        other, terms = before[node], list[int]()
        while other and tree.tag[other] == "dt" and len(terms) < _TERMS:
            terms.append(other)
            other = before[other]
        found[node] = terms or found.get(before[node], terms)
    return found


def _find_headings(tree: Tree, owners: Sequence[int]) -> tuple[list[int], list[int]]:
    """The heading that each node stands under, and that each heading stands under; 0 where there is none."""
    heads, above = [0] * len(tree), [0] * len(tree)
    scopes, head, floor = list[tuple[int, int, int, int]](), 0, 0  # scopes: where each ends, its node, head and floor
    for node in range(1, len(tree)):
        while scopes and scopes[-1][0] <= node:
            _, scope, outer, floor = scopes.pop()
            head = _leave(tree, scope, outer, head, above)
        if tree.parent[node] == 0 and owners[node] != owners[node - 1]:
            head = 0
        heads[node] = head
        level = _HEADINGS.get(tree.tag[node], 0)
        if level:
            while head != floor and head and _HEADINGS[tree.tag[head]] >= level:
                head = above[head]
            heads[node] = above[node] = head
            head = node
        elif tree.tag[node] in ENDS_HEADINGS:
            scopes.append((tree.end[node], node, head, floor))
            floor = head if tree.tag[node] in _OUTLINE else floor
    return heads, above


def _leave(tree: Tree, scope: int, outer: int, head: int, above: Sequence[int]) -> int:
    """The heading that holds behind a scope: the one before it, or a title in it, or what is a group of headings."""
    if tree.tag[scope] not in ("div", "header"):
        return outer
    inside = head
    while inside > scope:
        if tree.tag[inside] == "h1" or tree.end[inside] == tree.end[scope]:
            return inside
        inside = above[inside]
    return outer


def find_previous(tree: Tree) -> list[int]:
    """The sibling before each node, blanks left out; 0 where there is none."""
    found, last = [0] * len(tree), [0] * len(tree)
    for node in range(1, len(tree)):
        found[node] = last[tree.parent[node]]
        if tree.tag[node] or tree.text[node].strip():
            last[tree.parent[node]] = node
    return found


def leads(tree: Tree, node: int) -> bool:
    """Whether a node is a line that ends in a colon, so that what follows belongs to it."""
    if not node or tree.tag[node] in _HEADINGS or tree.tag[node] in LED or tree.tag[node] == "dt":
        return False
    texts = [tree.text[at] for at in range(max(node, tree.end[node] - 8), tree.end[node]) if not tree.tag[at]]
    return "".join(texts).rstrip().endswith((":", "\uff1a"))


def _last_sentence(tree: Tree, line: int) -> int:
    """The last sentence of a line, or the line where no sentence is told from another."""
    if tree.end[line] == line + 1 or tree.tag[line + 1] != SENTENCE:
        return line
    return tree.children(line)[-1]
