"""Documents as arrays: nodes in document order, in which a subtree is a range. No recursion, whatever the depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

__all__ = ["Tree", "prune_tree", "split_texts", "wrap_ranges"]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Nodes in document order. Node 0 holds all documents; the subtree of node i is the range [i, end[i])."""

    tag: Sequence[str]
    """Of elements, in lower case; "" for text. In brackets: a box around nodes, which is not written."""
    text: Sequence[str]
    """Of text nodes and, with a leading blank each, the attributes of elements."""
    parent: Sequence[int]
    end: Sequence[int]
    hidden: int = 0
    """Words that the page hides from who looks at it, and that were left out when it was read."""

    def __len__(self) -> int:
        return len(self.tag)

    def children(self, node: int) -> list[int]:
        """The nodes right below, text among them."""
        found, child = [], node + 1
        while child < self.end[node]:
            found.append(child)
            child = self.end[child]
        return found

    def before(self, count: Sequence[int]) -> list[int]:
        """[nodes + 1] running sums of a count per node: what a subtree holds is the difference at its ends."""
        return [0, *accumulate(count)]

    def first(self, texts: Sequence[str]) -> Tree:
        """As many of the first nodes as there are texts, with these."""
        count = len(texts)
        return Tree(self.tag[:count], texts, self.parent[:count], [min(end, count) for end in self.end[:count]])


def prune_tree(tree: Tree, gone: Sequence[bool], unwrapped: Sequence[bool]) -> tuple[Tree, list[int]]:
    """The tree without the subtrees of `gone` and the tags of `unwrapped`, and which nodes those are."""
    place, nodes = [-1] * len(tree), list[int]()
    tag, text, parent, end = list[str](), list[str](), list[int](), list[int]()
    node, opened = 0, list[int]()  # opened: kept elements around the node, as they now are numbered

    while node < len(tree):
        while opened and tree.end[nodes[opened[-1]]] <= node:
            end[opened.pop()] = len(tag)
        if gone[node]:
            node = tree.end[node]
            continue
        if not unwrapped[node]:
            place[node] = len(tag)
            nodes.append(node)
            tag.append(tree.tag[node])
            text.append(tree.text[node])
            parent.append(opened[-1] if opened else -1)
            end.append(len(tag))
            if tree.end[node] > node + 1:
                opened.append(place[node])
        node += 1
    while opened:
        end[opened.pop()] = len(tag)
    return Tree(tag, text, parent, end), nodes


def wrap_ranges(tree: Tree, ranges: Sequence[tuple[int, int]], tag: str) -> tuple[Tree, list[int]]:
    """The tree with an element of `tag` around each range of siblings, and which node each was; of a new one the first.

    ranges: (first node, end of the last), in order, apart from one another and none inside another.
    """
    starts = [0] * (len(tree) + 1)  # how many ranges begin before each node
    for first, _ in ranges:
        starts[first + 1] += 1
    starts = list(accumulate(starts))
    tags, texts, parents, ends, nodes = list[str](), list[str](), list[int](), list[int](), list[int]()
    place, box, until = 0, 0, 0
    for node in range(len(tree)):
        above = tree.parent[node]
        if place < len(ranges) and ranges[place][0] == node:
            box, until = len(tags), ranges[place][1]
            place += 1
            _add(tags, tag, texts, "", parents, above + starts[above + 1], ends, until + starts[until])
            nodes.append(node)
        inside = node < until and above < nodes[box]
        end = tree.end[node]
        below = box if inside else above + (starts[above + 1] if above >= 0 else 0)
        _add(tags, tree.tag[node], texts, tree.text[node], parents, below, ends, end + starts[end])
        nodes.append(node)
    return Tree(tags, texts, parents, ends), nodes


def _add(
    tags: list[str], tag: str, texts: list[str], text: str, parents: list[int], parent: int, ends: list[int], end: int
) -> None:
    tags.append(tag)
    texts.append(text)
    parents.append(parent)
    ends.append(end)


def split_texts(tree: Tree, places: Mapping[int, Sequence[int]]) -> tuple[Tree, list[int]]:
    """The tree with text nodes cut into several, and which node each was.

    places: text node -> where it is cut, characters from its start, in order, neither at its start nor at its end.
    """
    more = [0] * (len(tree) + 1)  # how many nodes are added before each
    for node, cuts in places.items():
        more[node + 1] += len(cuts)
    more = list(accumulate(more))
    tags, texts, parents, ends, nodes = list[str](), list[str](), list[int](), list[int](), list[int]()
    for node in range(len(tree)):
        above, end, text = tree.parent[node], tree.end[node], tree.text[node]
        below, bounds = above + (more[above] if above >= 0 else 0), [0, *places.get(node, ()), len(text)]
        for start, stop in pairwise(bounds):
            last = end + more[end] if tree.tag[node] else len(tags) + 1
            _add(tags, tree.tag[node], texts, text[start:stop], parents, below, ends, last)
            nodes.append(node)
    return Tree(tags, texts, parents, ends), nodes
