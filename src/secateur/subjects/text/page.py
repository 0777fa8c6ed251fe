"""Subject `page`: HTML documents as a tree of blocks, of which some stay.

Tan, Dou, Wang, Wang, Chen and Wen, "HtmlRAG: HTML is Better Than Plain Text for Modeling Retrieved Knowledge in RAG
Systems", WWW 2025 (arXiv 2411.02959), section 3: cleaning without loss, and the block tree.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from secateur._utils.disk import atomic_write
from secateur.errors import DataError, InputError
from secateur.subjects.text import markup
from secateur.subjects.text.markup import Tree
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Page", "open_page"]

DEEPEST = 64
"""Below this depth nothing is split further."""


LONGEST = 16
"""Words of a heading that count as such."""

_HIGHEST = {f"h{level}" for level in range(1, 7)}
_HEADINGS = _HIGHEST | {"dt", "caption"}


def open_page(
    source: str | bytes | Path | Sequence[str | bytes | Path],
    *,
    block: int = 128,
    protected: Collection[str] = markup.PROTECTED,
    attributes: Collection[str] = (),
    plain: Collection[str] = markup.PLAIN,
    numbered: bool = True,
    apart: bool = False,
) -> Page:
    """One document or several, cleaned and split into blocks of about `block` words.

    Args:
        source: HTML, its bytes, or the path of a file; several are joined in their order.
        block: words above which a tag is split into its children.
        protected: tags that are never unwrapped, since they say what their text is.
        attributes: attributes that stay, such as href, or "*" for all, as `keep_attr` of the published package; by
            default none does.
        plain: tags that are always unwrapped where they have no attributes, since they only say how text looks.
        apart: put each document into a tag of its own, so that what is left of each can be told (`Page.documents`).
        numbered: write siblings with their numbers, as <p0>; else as the tags that they are, which takes fewer tokens.

    Raises:
        InputError: `block` below 0, or a document that is neither HTML nor a path.
        DataError: a file that can't be read.
    """
    if not block >= 0:
        raise InputError(f"block={block}: give the words of a block, at least 0")
    given = source if isinstance(source, Sequence) and not isinstance(source, str | bytes) else [source]
    read = [_read(one) for one in given]
    trees = [markup.plain(markup.parse(one, attributes), plain) for one in read]
    tree, names, owners = markup.join(trees, apart=apart), None, [0]
    for index, one in enumerate(trees):
        owners += [index] * (len(one) - (not apart))
    if apart:
        protected, names = {*protected, markup.DOCUMENT}, list(tree.tag)
        for index, node in enumerate(tree.children(0)):
            names[node] = f"{markup.DOCUMENT}{index}"
    tree, nodes = markup.clean(tree, protected)
    names, owners = names and [names[node] for node in nodes], [owners[node] for node in nodes]
    return Page(tree, block=block, protected=protected, names=names, numbered=numbered, owners=owners, many=len(trees))


def _read(source: object) -> str | bytes:
    if isinstance(source, Path):
        try:
            return source.read_bytes()
        except OSError as error:
            raise DataError(f"{source}: {error.strerror}: give the path of an HTML file") from error
    if not isinstance(source, str | bytes):
        raise InputError(f"a document is HTML, its bytes or a path, and this is {type(source).__name__}")
    return source


class Page:
    """A cleaned tree and its blocks: the tags that are not split, and the bare text of each tag that is.

    The text of every word stands in exactly one block. Siblings of one name are numbered (`html > body > div1 > p0`),
    so that each path leads to one tag; numbers stay in what is written.
    """

    backend = "secateur.runs.backends.documents:Pages"

    def __init__(
        self,
        tree: Tree,
        *,
        block: int,
        protected: Collection[str] = markup.PROTECTED,
        names: Sequence[str] | None = None,
        numbered: bool = True,
        owners: Sequence[int] | None = None,
        many: int = 1,
    ) -> None:
        self.tree, self.block, self.protected, self.numbered = tree, block, protected, numbered
        self._owners, self._many = [0] * len(tree) if owners is None else owners, many
        self._texts = tree.before(
            [0 if tag else markup.words(text) for tag, text in zip(tree.tag, tree.text, strict=True)]
        )
        self.names, self.blocks = self._split(list(tree.tag if names is None else names))

    def _split(self, names: list[str]) -> tuple[list[str], list[tuple[int, bool]]]:
        """Names of all nodes, and (node, whether it is the bare text of a split tag) of each block, in page order."""
        tree, found = self.tree, list[tuple[int, bool]]()
        depth = [0] * len(tree)
        whole = self._words(0) <= self.block
        queue = deque([0])
        while queue:
            node = queue.popleft()
            children = tree.children(node)
            tags = [child for child in children if tree.tag[child]]
            _number(tags, tree.tag, names)
            for child in tags:
                depth[child] = depth[node] + 1
                splits = self._words(child) > self.block and depth[child] < DEEPEST and not whole
                below = {tree.tag[grandchild] for grandchild in tree.children(child)}
                if splits and tree.tag[child] != "pre" and not below <= markup.INLINE:
                    queue.append(child)
                else:
                    found.append((child, False))
            if any(not tree.tag[child] and self._words(child) for child in children):
                found.append((node, True))
        return names, sorted(found)

    def _words(self, node: int) -> int:
        return self._texts[self.tree.end[node]] - self._texts[node]

    def split(self, block: int) -> Page:
        """The same page in blocks of about `block` words; names stay as they are."""
        return self._like(self.tree, self.names, self._owners, block)

    def head(self, count: int, *, letters: bool = False) -> Page:
        """The first `count` words of the page, or letters, with the tags around them."""
        texts, left = list[str](), max(0, count)
        for tag, text in zip(self.tree.tag, self.tree.text, strict=True):
            if not tag and not left:  # nothing behind it stays, so that a short head of a large page is made at once
                break
            if not tag:
                text = text[:left] if letters else markup.first_words(text, left)
                left -= len(text) if letters else markup.words(text)
            texts.append(text)
        nodes = range(len(texts))
        return self._clean(self.tree.first(texts), nodes)

    def save(self, folder: Path) -> None:
        """Write page.html."""
        atomic_write(folder / "page.html", self.html())

    # ------------------------------------------------------------------------------------------------ what stands where

    def html(self, *, numbered: bool | None = None) -> str:
        """The page as it now is; `numbered` as `open_page` was told, unless given."""
        return self._write_parts(None, self.numbered if numbered is None else numbered)

    def to_text(self) -> str:
        """What a model is to read: the page as it now is."""
        return self.html()

    def _write_parts(self, nodes: Sequence[int] | None, numbered: bool) -> str:
        return markup.write(self.tree, nodes, self.names if numbered else None)

    def parts(self) -> list[str]:
        """What is written of each document, in the order in which they were given; empty where nothing is left."""
        tops: list[list[int]] = [[] for _ in range(self._many)]
        for node in self.tree.children(0):
            tops[self._owners[node]].append(node)
        return [self._write_parts(nodes, self.numbered) for nodes in tops]

    def documents(self) -> dict[int, tuple[str, str]]:
        """Number of each document of which something is left -> its HTML, and its text by blocks. Needs `apart`."""
        tops = [node for node in self.tree.children(0) if self.tree.tag[node] == markup.DOCUMENT]
        texts: dict[int, list[str]] = {node: [] for node in tops}
        for index, (node, _) in enumerate(self.blocks):
            top = next((top for top in tops if top <= node < self.tree.end[top]), None)
            if top is not None:
                texts[top].append(self.text(index))
        return {
            int(self.names[top].removeprefix(markup.DOCUMENT)): (
                self._write_parts(self.tree.children(top), self.numbered), "\n\n".join(texts[top]),
            )
            for top in tops
        }  # fmt: skip

    def text(self, index: int | None = None) -> str:
        """The text of a block, or of the whole page."""
        return self._find_heads(range(1, len(self.tree)) if index is None else self._nodes(index))

    def source(self, index: int) -> str:
        """The HTML of a block; of a split tag's bare text, the text."""
        node, bare = self.blocks[index]
        return self._write_parts(self._nodes(index) if bare else [node], self.numbered)

    def path(self, index: int) -> tuple[str, ...]:
        """The names that lead from the top to a block's tag, such as ("html", "body", "div1", "p0")."""
        node, found = self.blocks[index][0], list[str]()
        while node > 0:
            found.append(self.names[node])
            node = self.tree.parent[node]
        return tuple(reversed(found))

    def owner(self, index: int) -> int:
        """The number of the document that a block is of."""
        return self._owners[self.blocks[index][0]] if self.blocks[index][0] else 0

    def headings(self, index: int) -> list[str]:
        """What a block stands under, from the top: headings, captions and heads of tables, terms of definitions."""
        node, found = self.blocks[index][0], list[str]()
        while node > 0:
            if self._heads[node]:
                head = self._heads[node]
                found.append(markup.first_words(self._find_heads(range(head, self.tree.end[head])), LONGEST))
            node = self.tree.parent[node]
        return list(reversed(found))

    @cached_property
    def _heads(self) -> list[int]:
        """The last heading before each node among its siblings; 0 where there is none."""
        found, last = [0] * len(self.tree), dict[int, int]()
        for node in range(1, len(self.tree)):
            above = self.tree.parent[node]
            found[node] = last.get(above, 0)
            if self.tree.tag[node] in _HEADINGS or self._heads_a_table(node):
                found[node], last[above] = 0 if self.tree.tag[node] in _HIGHEST else found[node], node
        return found

    def _heads_a_table(self, node: int) -> bool:
        """Whether a node is a row of heads alone."""
        tags = {self.tree.tag[child] for child in self.tree.children(node)} if self.tree.tag[node] == "tr" else set()
        return "th" in tags and "td" not in tags

    def _find_heads(self, nodes: Iterable[int]) -> str:
        return " ".join(" ".join(self.tree.text[i] for i in nodes if not self.tree.tag[i]).split())

    def _nodes(self, index: int) -> list[int]:
        node, bare = self.blocks[index]
        if bare:
            return [child for child in self.tree.children(node) if not self.tree.tag[child]]
        return list(range(node, self.tree.end[node]))

    # ---------------------------------------------------------------------------------------------------- its two verbs

    def units(self, *axes: str, **counts: Callable[[Sequence[str]], Sequence[int]]) -> Units:
        """Site "page": the blocks, and what each costs in words and whatever else can be counted, such as tokens.

        Counted is the HTML of a block on its own. How many the tags around blocks take shows only when it is settled
        which blocks stay: a selection under a budget measures that (`ranking.by_budget`).

        Args:
            axes: "page" alone.
            counts: measure -> (texts -> how many each has), such as tokens=encoders.counter("gpt2").
        """
        unknown = [axis for axis in axes if axis != "page"]
        if unknown:
            raise InputError(f"a page has no {unknown[0]!r}: its one axis is page")
        count = len(self.blocks)
        cost = {"words": np.array([float(self._size(index)) for index in range(count)])}
        sources = [self.source(index) for index in range(count)] if counts else []
        for measure, counted in counts.items():
            cost[measure] = np.array(counted(sources), dtype=float)
        return Units({"page": Site("page", count, cost)})

    def _size(self, index: int) -> int:
        node, bare = self.blocks[index]
        return sum(self._words(child) for child in self._nodes(index)) if bare else self._words(node)

    def cut(self, selection: Selection) -> tuple[Page, Cut]:
        """The page without the blocks that do not stay, cleaned again; names stay as they are."""
        keep = np.asarray(selection.keep["page"], dtype=bool) if "page" in selection.keep else None
        count = len(self.blocks)
        if keep is not None and keep.shape != (count,):
            raise InputError(
                f"the page has {count} blocks, and the selection {keep.size}: select from this page's units"
            )
        before = self.units().cost()
        lost = [] if keep is None else np.flatnonzero(~keep).tolist()
        gone = [False] * len(self.tree)
        for index in lost:
            for node in self._nodes(index):
                gone[node] = True
        smaller = self._clean(*markup.prune_tree(self.tree, gone, [False] * len(gone)))
        return smaller, Cut({"page": (len(lost), count)}, before, smaller.units().cost())

    def _clean(self, tree: Tree, stays: Sequence[int]) -> Page:
        """A page of what is left of this one's tree; `stays` are the nodes it is left of."""
        tree, nodes = markup.clean(tree, self.protected)
        owners = [self._owners[stays[node]] for node in nodes]
        return self._like(tree, [self.names[stays[node]] for node in nodes], owners, self.block)

    def _like(self, tree: Tree, names: Sequence[str], owners: Sequence[int], block: int) -> Page:
        return Page(
            tree, block=block, protected=self.protected, names=names, numbered=self.numbered, owners=owners,
            many=self._many,
        )  # fmt: skip


def _number(siblings: Sequence[int], tags: Sequence[str], names: list[str]) -> None:
    """Number siblings of one tag from 0; those that have one from an earlier cut keep it, but where they meet.

    Tags that had one number each in tags around them meet where those tags are unwrapped.
    """
    many = Counter(tags[node] for node in siblings)
    taken = {names[node] for node in siblings}
    following, met = Counter[str](), set[str]()
    for node in siblings:
        tag = tags[node]
        if many[tag] == 1 or (names[node] != tag and names[node] not in met):
            met.add(names[node])
            continue
        while f"{tag}{following[tag]}" in taken:
            following[tag] += 1
        names[node] = f"{tag}{following[tag]}"
        taken.add(names[node])
