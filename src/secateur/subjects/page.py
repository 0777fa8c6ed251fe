"""Subject `page`: HTML documents as a tree of blocks, of which some stay.

Tan, Dou, Wang, Wang, Chen and Wen, "HtmlRAG: HTML is Better Than Plain Text for Modeling Retrieved Knowledge in RAG
Systems", WWW 2025 (arXiv 2411.02959), section 3: cleaning without loss, and the block tree.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from secateur.errors import DataError, InputError
from secateur.subjects import markup
from secateur.subjects.markup import Tree
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Page", "open_page"]

DEEPEST = 64
"""Below this depth nothing is split further."""


def open_page(
    source: str | bytes | Path | Sequence[str | bytes | Path],
    *,
    block: int = 128,
    protected: Collection[str] = markup.PROTECTED,
    attributes: Collection[str] = (),
) -> Page:
    """One document or several, cleaned and split into blocks of about `block` words.

    Args:
        source: HTML, its bytes, or the path of a file; several are joined in their order.
        block: words above which a tag is split into its children.
        protected: tags that are never unwrapped, since they say what their text is.
        attributes: attributes that stay, such as href; by default none does.

    Raises:
        InputError: `block` below 0, or a document that is neither HTML nor a path.
        DataError: a file that can't be read.
    """
    if not block >= 0:
        raise InputError(f"block={block}: give the words of a block, at least 0")
    given = source if isinstance(source, Sequence) and not isinstance(source, str | bytes) else [source]
    read = [_read(one) for one in given]
    tree, _ = markup.clean(markup.join([markup.parse(one, attributes) for one in read]), protected)
    return Page(tree, block=block, protected=protected)


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

    def __init__(
        self,
        tree: Tree,
        *,
        block: int,
        protected: Collection[str] = markup.PROTECTED,
        names: Sequence[str] | None = None,
    ) -> None:
        self.tree, self.block, self.protected = tree, block, protected
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
        return Page(self.tree, block=block, protected=self.protected, names=self.names)

    def head(self, count: int) -> Page:
        """The first `count` words of the page, with the tags around them."""
        texts, left = list(self.tree.text), count
        for node, tag in enumerate(self.tree.tag):
            if not tag:
                texts[node] = markup.first_words(texts[node], left)
                left -= markup.words(texts[node])
        return self._cleaned(replace(self.tree, text=texts), list(range(len(texts))))

    def save(self, folder: Path) -> None:
        """Write page.html."""
        (folder / "page.html").write_text(self.html(), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------ what stands where

    def html(self) -> str:
        """The page as it now is."""
        return markup.write(self.tree, names=self.names)

    def text(self, index: int | None = None) -> str:
        """The text of a block, or of the whole page."""
        nodes = range(1, len(self.tree)) if index is None else self._nodes(index)
        return " ".join(" ".join(self.tree.text[i] for i in nodes if not self.tree.tag[i]).split())

    def source(self, index: int) -> str:
        """The HTML of a block; of a split tag's bare text, the text."""
        node, bare = self.blocks[index]
        return markup.write(self.tree, self._nodes(index) if bare else [node], self.names)

    def path(self, index: int) -> tuple[str, ...]:
        """The names that lead from the top to a block's tag, such as ("html", "body", "div1", "p0")."""
        node, found = self.blocks[index][0], list[str]()
        while node > 0:
            found.append(self.names[node])
            node = self.tree.parent[node]
        return tuple(reversed(found))

    def _nodes(self, index: int) -> list[int]:
        node, bare = self.blocks[index]
        if bare:
            return [child for child in self.tree.children(node) if not self.tree.tag[child]]
        return list(range(node, self.tree.end[node]))

    # ---------------------------------------------------------------------------------------------------- its two verbs

    def units(self, *axes: str, tokens: Callable[[Sequence[str]], Sequence[int]] | None = None) -> Units:
        """Site "page": the blocks, and what each costs in words and, where they can be counted, in tokens.

        Tokens are those of a block on its own. How many the tags around blocks take shows only when it is settled which
        blocks stay: a selection under a budget measures that (`ranking.by_budget`).

        Args:
            axes: "page" alone.
            tokens: texts -> how many tokens each has for the reader.
        """
        unknown = [axis for axis in axes if axis != "page"]
        if unknown:
            raise InputError(f"a page has no {unknown[0]!r}: its one axis is page")
        count = len(self.blocks)
        cost = {"words": np.array([float(self._size(index)) for index in range(count)])}
        if tokens is not None:
            cost["tokens"] = np.array(tokens([self.source(index) for index in range(count)]), dtype=float)
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
        smaller = self._cleaned(*markup.kept(self.tree, gone, [False] * len(gone)))
        return smaller, Cut({"page": (len(lost), count)}, before, smaller.units().cost())

    def _cleaned(self, tree: Tree, stays: Sequence[int]) -> Page:
        """A page of what is left of this one's tree; `stays` are the nodes it is left of."""
        tree, nodes = markup.clean(tree, self.protected)
        names = [self.names[stays[node]] for node in nodes]
        return Page(tree, block=self.block, protected=self.protected, names=names)


def _number(siblings: Sequence[int], tags: Sequence[str], names: list[str]) -> None:
    """Number siblings of one tag from 0; those that have a number from an earlier cut keep it."""
    many = Counter(tags[node] for node in siblings)
    taken = {names[node] for node in siblings}
    following = Counter[str]()
    for node in siblings:
        tag = tags[node]
        if many[tag] == 1 or names[node] != tag:
            continue
        while f"{tag}{following[tag]}" in taken:
            following[tag] += 1
        names[node] = f"{tag}{following[tag]}"
        taken.add(names[node])
