"""Subject `page`: HTML documents as a tree of blocks, of which some stay.

Tan, Dou, Wang, Wang, Chen and Wen, "HtmlRAG: HTML is Better Than Plain Text for Modeling Retrieved Knowledge in RAG
Systems", WWW 2025 (arXiv 2411.02959), section 3: cleaning without loss, and the block tree.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from secateur._utils.disk import atomic_write
from secateur.errors import DataError, InputError
from secateur.subjects.text import lines, markup, plain_text
from secateur.subjects.text.context import LED, Contexts, find_previous, leads, mend_items, mend_rows, number_items
from secateur.subjects.text.passage import sentences
from secateur.subjects.text.tree import Tree, prune_tree
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Page", "open_page"]

Kind = Literal["html", "text", "markdown"]

DEEPEST = 64
"""Below this depth nothing is split further."""


LONGEST = 16
"""Words of a heading that count as such."""

ROW = 128
"""Words up to which a row of a table, whose cells are lines, is one piece."""

LEAD = 32
"""Words of a paragraph above which its last sentence alone leads into what follows."""

_HEADINGS = {f"h{level}" for level in range(1, 7)}
_HEADS = {"dt", "caption", "figcaption", "summary", "legend", "title"} | _HEADINGS
_WHOLE = {"pre", "tr", "td", "th"} | _HEADS
"""Lines that are no prose: no sentence is told from another in them."""


def open_page(
    source: str | bytes | Path | Sequence[str | bytes | Path],
    *,
    kind: Kind | Sequence[Kind] = "html",
    block: int = 128,
    protected: Collection[str] = markup.PROTECTED,
    attributes: Collection[str] = (),
    plain: Collection[str] = markup.PLAIN,
    numbered: bool = True,
    apart: bool = False,
    hidden: bool = False,
) -> Page:
    """One document or several, cleaned and split into blocks of about `block` words.

    Args:
        source: HTML, its bytes, or the path of a file; several are joined in their order.
        kind: of all documents or of each: "html", "text" or "markdown". What is left of texts and Markdown is written
            as they are (`Page.to_text`), unless HTML is among the documents and they are not kept apart: then all is
            HTML, and tags take the place of Markdown's signs around blocks.
        block: words above which a tag is split into its children.
        protected: tags that are never unwrapped, since they say what their text is.
        attributes: attributes that stay, such as href, or "*" for all, as `keep_attr` of the published package; by
            default none does.
        plain: tags that are always unwrapped where they have no attributes, since they only say how text looks.
        apart: put each document into a tag of its own, so that what is left of each can be told (`Page.documents`).
        hidden: keep what a page hides from who looks at it; else `Page.hidden` says how many words were left out.
        numbered: write siblings with their numbers, as <p0>, and every tag; else as the tags that they are, without
            those that HTML can do without (`markup.write`), which takes fewer tokens.

    Raises:
        InputError: `block` below 0, or a document that is neither HTML nor a path.
        DataError: a file that can't be read.
    """
    if not block >= 0:
        raise InputError(f"block={block}: give the words of a block, at least 0")
    given = source if isinstance(source, Sequence) and not isinstance(source, str | bytes) else [source]
    read = [_read(one) for one in given]
    kinds = [kind] * len(read) if isinstance(kind, str) else list(kind)
    if len(kinds) != len(read) or not set(kinds) <= {"html", "text", "markdown"}:
        raise InputError(f"kind={kind!r}: give html, text or markdown, for all documents or one for each")
    signs = _writes_kinds(kinds, apart)  # else tags are written, which say the same
    how = _Reading(signs, tuple(attributes), hidden, tuple(plain))
    trees = [_TREES.find((one, form, how), _parse) for one, form in zip(read, kinds, strict=True)]
    unseen = sum(tree.hidden for tree in trees)
    reopen = partial(
        open_page, read, kind=kinds, block=block, protected=protected, attributes=attributes, plain=plain,
        numbered=numbered, apart=apart, hidden=True,
    )  # fmt: skip
    tree, names, owners = markup.join(trees, apart=apart), None, [0]
    for index, one in enumerate(trees):
        owners += [index] * (len(one) - (not apart))
    if apart:
        protected, names = {*protected, markup.DOCUMENT}, list(tree.tag)
        for index, node in enumerate(tree.children(0)):
            names[node] = f"{markup.DOCUMENT}{index}"
    numbers = _number_items(tree, owners, kinds)
    tree, nodes = markup.clean(tree, protected)
    tree = mend_items(tree, numbers, nodes)
    names, owners = names and [names[node] for node in nodes], [owners[node] for node in nodes]
    return Page(
        tree, block=block, protected=protected, names=names, numbered=numbered, owners=owners, kinds=kinds,
        apart=apart, hidden=unseen, reopen=reopen if unseen else None,
    )  # fmt: skip


def _writes_kinds(kinds: Sequence[Kind], apart: bool) -> bool:
    """Whether each document is written as what it was: HTML among texts would make them look like HTML."""
    return apart or "html" not in kinds


class _Reading(NamedTuple):
    """How documents are read, see `open_page` and `plain_text.read_markdown`."""

    signs: bool
    attributes: tuple[str, ...]
    hidden: bool
    plain: tuple[str, ...]


_Source = tuple[str | bytes, Kind, _Reading]


def _parse(source: _Source) -> Tree:
    read, form, how = source
    if form == "html":
        return markup.plain(markup.parse(read, how.attributes, hidden=how.hidden), how.plain)
    text = read if isinstance(read, str) else markup.decode(read)
    return plain_text.read_text(text) if form == "text" else plain_text.read_markdown(text, signs=how.signs)


class _Remembered:
    """The trees of the last documents, of at most so many letters together: a question about them brings them back.

    many: documents at most, since a tree of few letters takes a kilobyte, too.
    """

    def __init__(self, most: int, many: int = 2**14) -> None:
        self.most, self.many, self.letters = most, many, 0
        self._trees, self._lock = OrderedDict[_Source, Tree](), threading.Lock()

    def find(self, source: _Source, read: Callable[[_Source], Tree]) -> Tree:
        """The tree of a source, which is read where it is not known."""
        with self._lock:
            if source in self._trees:
                self._trees.move_to_end(source)
                return self._trees[source]
        tree = read(source)
        with self._lock:
            if source not in self._trees and len(source[0]) <= self.most:
                self._trees[source] = tree
                self.letters += len(source[0])
            while self.letters > self.most or len(self._trees) > self.many:
                (gone, *_), _ = self._trees.popitem(last=False)
                self.letters -= len(gone)
        return tree


_TREES = _Remembered(2**22)


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
        kinds: Sequence[Kind] = ("html",),
        apart: bool = False,
        hidden: int = 0,
        reopen: Callable[[], Page] | None = None,
    ) -> None:
        self.block, self.protected, self.numbered, self._kinds, self._apart = block, protected, numbered, kinds, apart
        self.hidden, self._reopen = hidden, reopen
        names, owners = tree.tag if names is None else names, [0] * len(tree) if owners is None else owners
        self._base = _box(tree, names, owners, *lines.box_lines(tree, _count_words(tree)))
        self._held = _count_words(self._base[0])
        self._last = _find_leads(self._base[0], self._held)
        self._box_sentences(-1)

    def _box_sentences(self, fine: int) -> None:
        """Tell sentences apart: the last one of lines that lead into what follows, and all below the node `fine`."""
        tree = self._base[0]
        prose = [line for line in range(fine, tree.end[fine]) if _is_prose(tree, line)] if fine >= 0 else []
        self.tree, self._called, self._owners, self._places = _box(
            *self._base[:3],
            *lines.box_sentences(tree, sorted({*self._last, *prose}), sentences, set(self._last).difference(prose)),
        )
        self._texts = self._held if tree is self.tree else _count_words(self.tree)
        self._inline = lines.find_inline(self.tree, self._texts)
        self._boxes = [tag in lines.BOXES for tag in self.tree.tag]
        self._fine, self._said = fine, dict[int, str]()
        for name in ("_contexts", "_numbers"):  # those of another tree
            self.__dict__.pop(name, None)
        self._split_blocks()

    def _split_blocks(self) -> None:
        """Find the blocks, none of which is known yet of this tree and block size."""
        self.names, self.blocks = self._split(list(self._called), self._fine)
        self._starts = [node for node, _ in self.blocks]
        self._companions = dict[int, list[int]]()

    def _split(self, names: list[str], fine: int) -> tuple[list[str], list[tuple[int, bool]]]:
        """Names of all nodes, and (node, whether it is a box and no tag) of each block, in page order.

        fine: the node of the tree without sentences that is split as far as it goes.
        """
        tree, found = self.tree, list[tuple[int, bool]]()
        inline = self._inline
        depth, finest = [0] * len(tree), [place == fine for place in self._places]
        whole = self._words(0) <= self.block
        queue = deque([0])
        while queue:
            node = queue.popleft()
            children = [child for child in tree.children(node) if not inline[child]]
            _number([child for child in children if tree.tag[child] not in lines.BOXES], tree.tag, names)
            for child in children:
                depth[child] = depth[node] + 1
                finest[child] |= finest[node]
                large = (self._words(child) > self.block and not whole) or finest[child]
                if large and depth[child] < DEEPEST and self._is_split(child, inline):
                    queue.append(child)
                else:
                    found.append((child, tree.tag[child] in lines.BOXES))
        return names, sorted(found)

    def _is_split(self, node: int, inline: Sequence[bool]) -> bool:
        """Whether a node has blocks in it, and is not of one piece."""
        tree = self.tree
        below = [child for child in tree.children(node) if not inline[child]]
        if not below or tree.tag[node] == "pre":
            return False
        if tree.tag[node] != "tr" or self._words(node) > ROW:
            return True
        parts = [[part for part in tree.children(cell) if not inline[part]] for cell in below]
        return any(len(blocks) > 1 or (blocks and self._is_split(blocks[0], inline)) for blocks in parts)

    def _words(self, node: int) -> int:
        return self._texts[self.tree.end[node]] - self._texts[node]

    def split(self, block: int) -> Page:
        """The same page in blocks of about `block` words; names stay as they are."""
        page = copy(self)
        page.block = block
        page._split_blocks() if page._fine < 0 else page._box_sentences(-1)
        return page

    def show_hidden(self) -> Page:
        """The same with what the page hides, in blocks of the same size; of a page that was cut, the page."""
        return self if self._reopen is None else self._reopen().split(self.block)

    def refine(self, index: int) -> Page:
        """The same page with the sentences of a block, and whatever blocks are in it, as blocks in its place."""
        page = copy(self)
        page._reopen = None
        page._box_sentences(self._places[self.blocks[index][0]])
        return page

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
        return self._clean(self.tree.first(texts), range(len(texts)), [False] * len(texts))

    def save(self, folder: Path) -> None:
        """Write page.html."""
        atomic_write(folder / "page.html", self.html())

    # ------------------------------------------------------------------------------------------------ what stands where

    def html(self, *, numbered: bool | None = None) -> str:
        """The page as it now is; `numbered` as `open_page` was told, unless given."""
        return self._write_parts(None, self.numbered if numbered is None else numbered)

    def to_text(self) -> str:
        """What a model is to read: HTML as it now is, and texts and Markdown as such."""
        return self._write(self.tree, self.names, self._owners)

    def _write(self, tree: Tree, names: Sequence[str], owners: Sequence[int]) -> str:
        if not self._writes_kinds():
            return markup.write(tree, None, names if self.numbered else None, brief=not self.numbered)
        return "\n\n".join(filter(None, self._write_documents(tree, names, owners)))

    def _writes_kinds(self) -> bool:
        return _writes_kinds(self._kinds, self._apart)

    def _write_documents(self, tree: Tree, names: Sequence[str], owners: Sequence[int]) -> list[str]:
        """What is written of each document, in the order in which they were given; empty where nothing is left."""
        tops: list[list[int]] = [[] for _ in self._kinds]
        for node in tree.children(0):
            tops[owners[node]] += tree.children(node) if self._apart else [node]
        native, named, brief = self._writes_kinds(), names if self.numbered else None, not self.numbered
        return [
            plain_text.write_source(tree, nodes)
            if native and kind != "html"
            else markup.write(tree, nodes, named, brief=brief)
            for nodes, kind in zip(tops, self._kinds, strict=True)
        ]

    def _write_parts(self, nodes: Sequence[int] | None, numbered: bool) -> str:
        return markup.write(self.tree, nodes, self.names if numbered else None, brief=not numbered)

    def parts(self) -> list[str]:
        """What is written of each document, in the order in which they were given; empty where nothing is left."""
        return self._write_documents(self.tree, self.names, self._owners)

    def documents(self) -> dict[int, tuple[str, str]]:
        """Number of each document of which something is left -> what is written, and its text by blocks.

        Needs `apart`.
        """
        texts: list[list[str]] = [[] for _ in self._kinds]
        for index, (node, _) in enumerate(self.blocks):
            texts[self._owners[node]].append(self.text(index))
        return {
            number: (part, "\n\n".join(texts[number]) if self._kinds[number] == "html" else part)
            for number, part in enumerate(self.parts())
            if part
        }

    def text(self, index: int | None = None) -> str:
        """The text of a block, or of the whole page."""
        return self._join_texts(range(1, len(self.tree)) if index is None else self._nodes(index))

    def source(self, index: int) -> str:
        """What is written of a block: its HTML, or its lines of a text."""
        node = self.blocks[index][0]
        if self._writes_kinds() and self._kinds[self._owners[node]] != "html":
            return plain_text.write_source(self.tree, [node])
        return self._write_parts([node], self.numbered)

    def path(self, index: int) -> tuple[str, ...]:
        """The names that lead from the top to a block's tag, such as ("html", "body", "div1", "p0")."""
        node, found = self.blocks[index][0], list[str]()
        while node > 0:
            if self.tree.tag[node] not in lines.BOXES:
                found.append(self.names[node])
            node = self.tree.parent[node]
        return tuple(reversed(found))

    def owner(self, index: int) -> int:
        """The number of the document that a block is of."""
        return self._owners[self.blocks[index][0]] if self.blocks[index][0] else 0

    def headings(self, index: int) -> list[str]:
        """What a block stands under, from the top: headings, captions and heads of tables, terms, leading sentences."""
        found = self._contexts.find(self.blocks[index][0])
        for node in found:
            if node not in self._said:
                said = self._join_texts(range(node, self.tree.end[node]))
                self._said[node] = markup.first_words(said, LONGEST)
        return [self._said[node] for node in found]

    @cached_property
    def _contexts(self) -> Contexts:
        return Contexts(self.tree, self._owners)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return _number_items(self.tree, self._owners, self._kinds)

    def companions(self, index: int) -> list[int]:
        """The blocks without which a block would lose its meaning.

        The headings above it; of a definition its terms; of a cell or row the heads and caption of its table; of what
        stands in a row's first cell the name that the cell begins with; of an item the item
        and the sentence that it stands under; of code, a list or a table the sentence that leads into it.
        """
        if index not in self._companions:
            found = set[int]()
            for other in self._contexts.find(self.blocks[index][0]):
                found.update(range(*self._span(other, self.tree.end[other])))
            self._companions[index] = sorted(found - {index})
        return self._companions[index]

    def followers(self, index: int) -> list[int]:
        """The blocks that a block leads to, in page order: those right under a heading, a term's definitions, what a
        caption names, and the list, table or code behind a sentence that ends in a colon."""
        first, end = self._contexts.find_led(self.blocks[index][0])
        return [other for other in range(*self._span(first, end)) if other != index] if end else []

    def _span(self, first: int, end: int) -> tuple[int, int]:
        """The blocks that a range of nodes stands in, from the first to before the last."""
        begin = max(0, bisect_right(self._starts, first) - 1)
        begin += self.tree.end[self.blocks[begin][0]] <= first  # what ends before belongs to something else
        return begin, bisect_left(self._starts, end)

    def complete(self, keep: Sequence[bool] | np.ndarray) -> np.ndarray:
        """[blocks] booleans: the blocks of `keep`, and their companions."""
        found = np.array(keep, dtype=bool)
        for index in np.flatnonzero(found).tolist():
            found[self.companions(index)] = True
        return found

    def is_head(self, index: int) -> bool:
        """Whether a block is a heading, a term or a caption: it says what others are about, and little alone."""
        return self.tree.tag[self.blocks[index][0]] in _HEADS

    def rank(self, scores: Sequence[float] | np.ndarray) -> np.ndarray:
        """Numbers of blocks, the best first, of equals the first; right behind each what it leads to, likewise.

        Heads come with what they head: in the place of each stands what it leads to, of the whole section under a
        heading the best block, and they alone at last. scores: [blocks].
        """
        values = np.array(scores, float)
        best = np.argsort(-values, kind="stable").tolist()
        found, waiting = dict[int, None](), best[::-1]
        while waiting:
            block = waiting.pop()
            if block not in found:
                found[block] = None
                led = sorted(self.followers(block), key=lambda i: (values[i], -i))
                led = led[-1:] if self.tree.tag[self.blocks[block][0]] in _HEADINGS else led
                waiting += [other for other in led if other not in found]
        return np.array([*(i for i in found if not self.is_head(i)), *filter(self.is_head, best)], int)

    def _join_texts(self, nodes: Iterable[int]) -> str:
        return " ".join(" ".join(self.tree.text[i] for i in nodes if not self.tree.tag[i]).split())

    def _nodes(self, index: int) -> range:
        node, _ = self.blocks[index]
        return range(node, self.tree.end[node])

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
        cost = self.costs(range(count), counts)
        return Units({"page": Site("page", count, cost)})

    def costs(
        self, blocks: Sequence[int], counts: Mapping[str, Callable[[Sequence[str]], Sequence[int]]]
    ) -> dict[str, np.ndarray]:
        """Measure -> [blocks] what each costs, as `units` counts it."""
        cost = {"words": np.array([float(self._words(self.blocks[i][0])) for i in blocks])}
        sources = [self.source(i) for i in blocks] if counts else []
        return cost | {measure: np.array(counted(sources), dtype=float) for measure, counted in counts.items()}

    def cut(self, selection: Selection) -> tuple[Page, Cut]:
        """The page without the blocks that do not stay, cleaned again; names stay as they are."""
        keep = np.asarray(selection.keep["page"], dtype=bool) if "page" in selection.keep else None
        count = len(self.blocks)
        if keep is not None and keep.shape != (count,):
            raise InputError(
                f"the page has {count} blocks, and the selection {keep.size}: select from this page's units"
            )
        before = self.units().cost()
        stays = list(range(count)) if keep is None else np.flatnonzero(keep).tolist()
        smaller = self._clean(self.tree, range(len(self.tree)), self._mark_gone(stays))
        return smaller, Cut({"page": (count - len(stays), count)}, before, smaller.units().cost())

    def draft(self, keep: np.ndarray) -> tuple[str, int]:
        """What would be written if the blocks of `keep` stayed, and how many words: as `cut`, and much faster."""
        tree, kept, nodes = self._prune(self.tree, self._mark_gone(np.flatnonzero(keep).tolist()), self._boxes)
        names, owners = [self.names[kept[node]] for node in nodes], [self._owners[kept[node]] for node in nodes]
        return self._write(tree, names, owners), _count_words(tree)[-1]

    def _mark_gone(self, stays: Sequence[int]) -> list[bool]:
        """[nodes] what goes where these blocks stay, in order.

        Nothing is looked at below a tag in which nothing stays, so that few blocks of a large page are found at once.
        """
        tree, gone, kept = self.tree, [False] * len(self.tree), [self._starts[index] for index in stays]
        whole, waiting = set(self._starts), [(0, False)]
        while waiting:
            node, shells = waiting.pop()
            children = tree.children(node)
            places = [bisect_left(kept, child) for child in children]
            holds = [at < len(kept) and kept[at] < tree.end[child] for at, child in zip(places, children, strict=True)]
            # A block that is empty then stays where it still ends a line, and where it is a cell before others.
            shells |= tree.tag[node] == "tr"
            shells |= any(stay and self._boxes[child] for child, stay in zip(children, holds, strict=True))
            for child, place, stay in zip(children, places, holds, strict=True):
                tag = tree.tag[child]
                if stay:
                    waiting += [] if kept[place] == child else [(child, False)]
                elif tag and child not in whole and lines.original_tag(tag) not in lines.BLOCKS:
                    waiting.append((child, shells))  # what it is, is said by what is in it
                elif tag and not shells:
                    gone[child] = True
                elif tag:
                    for inner in tree.children(child):
                        gone[inner] = True
        return gone

    def _prune(self, tree: Tree, gone: Sequence[bool], boxes: Sequence[bool]) -> tuple[Tree, list[int], list[int]]:
        """The clean tree without what is gone and without boxes, the nodes before cleaning, and those that are left."""
        whole = tree
        tree, kept = prune_tree(tree, gone, boxes)
        tree, nodes = markup.clean(tree, self.protected)
        origin = [kept[node] for node in nodes]
        return mend_items(mend_rows(tree, whole, origin), self._numbers, origin), kept, nodes

    def _clean(self, tree: Tree, stays: Sequence[int], gone: Sequence[bool]) -> Page:
        """A page of what is left of this one's tree; `stays` are the nodes it is left of."""
        tree, kept, nodes = self._prune(tree, gone, [tag in lines.BOXES for tag in tree.tag])
        origin = [stays[kept[node]] for node in nodes]
        return self._like(
            tree, [self.names[node] for node in origin], [self._owners[node] for node in origin], self.block
        )

    def _like(self, tree: Tree, names: Sequence[str], owners: Sequence[int], block: int) -> Page:
        return Page(
            tree, block=block, protected=self.protected, names=names, numbered=self.numbered, owners=owners,
            kinds=self._kinds, apart=self._apart, hidden=self.hidden,
        )  # fmt: skip


Boxed = tuple[Tree, list[str], list[int], list[int]]
"""A tree with boxes, and of each node its name, its document and which node it was."""


def _box(tree: Tree, names: Sequence[str], owners: Sequence[int], boxed: Tree, nodes: Sequence[int]) -> Boxed:
    """`boxed` with names and owners: of a node what it was, and of a box its tag."""
    called = [tag if tag in lines.BOXES and tree.tag[old] != tag else names[old]
              for tag, old in zip(boxed.tag, nodes, strict=True)]  # fmt: skip
    return boxed, called, [owners[old] for old in nodes], list(nodes)


def _number_items(tree: Tree, owners: Sequence[int], kinds: Sequence[Kind]) -> dict[int, int]:
    """`number_items` of the documents that are HTML: in Markdown, the text of an item holds its number."""
    return {item: number for item, number in number_items(tree).items() if kinds[owners[item]] == "html"}


def _count_words(tree: Tree) -> list[int]:
    return tree.before([0 if tag else markup.words(text) for tag, text in zip(tree.tag, tree.text, strict=True)])


def _is_prose(tree: Tree, node: int) -> bool:
    """Whether a node is a line of text, of which a sentence may stay alone."""
    inside = range(node + 1, tree.end[node])
    return (
        tree.tag[node] in lines.BLOCKS - _WHOLE
        and bool(inside)
        and all(tree.tag[i] not in lines.BLOCKS for i in inside)
    )


def _find_leads(tree: Tree, held: Sequence[int]) -> list[int]:
    """Long paragraphs whose last sentence leads into what follows."""
    previous = find_previous(tree)
    found = [previous[node] for node in range(1, len(tree)) if tree.tag[node] in LED and leads(tree, previous[node])]
    return [line for line in found if held[tree.end[line]] - held[line] > LEAD and _is_prose(tree, line)]


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
