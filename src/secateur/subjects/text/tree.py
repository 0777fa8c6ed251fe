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
    tags, texts, ends = tree.tag, tree.text, tree.end
    tag, text, parent, end, nodes = list[str](), list[str](), list[int](), list[int](), list[int]()
    opened = list[tuple[int, int]]()  # kept elements around the node: where each ends, and as it now is numbered
    node, count, above, until = 0, len(tags), -1, len(tags)
    while node < count:
        while until <= node and opened:
            opened.pop()
            end[above] = len(tag)
            until, above = opened[-1] if opened else (count, -1)
        if gone[node]:
            node = ends[node]
            continue
        if not unwrapped[node]:
            nodes.append(node)
            tag.append(tags[node])
            text.append(texts[node])
            parent.append(above)
            end.append(len(tag))
            if ends[node] > node + 1:
                until, above = ends[node], len(tag) - 1
                opened.append((until, above))
        node += 1
    for _, place in opened:
        end[place] = len(tag)
    return Tree(tag, text, parent, end), nodes


def wrap_ranges(tree: Tree, ranges: Sequence[tuple[int, int]], tag: str) -> tuple[Tree, list[int]]:
    """The tree with an element of `tag` around each range of siblings, and which node each was; of a new one the first.

    ranges: (first node, end of the last), in order, apart from one another and none inside another.
    """
    starts = [0] * (len(tree) + 1)  # how many ranges begin before each node
    for first, _ in ranges:
        starts[first + 1] += 1
    starts = list(accumulate(starts))
    shifted = [above + starts[above + 1] if above >= 0 else above for above in tree.parent]
    stops = [end + starts[end] for end in tree.end]
    tags, texts, parents, ends, nodes = list[str](), list[str](), list[int](), list[int](), list[int]()

    def copy(first: int, end: int) -> None:
        tags.extend(tree.tag[first:end])
        texts.extend(tree.text[first:end])
        parents.extend(shifted[first:end])
        ends.extend(stops[first:end])
        nodes.extend(range(first, end))

    before = 0
    for first, until in ranges:
        copy(before, first)
        box = len(tags)
        tags.append(tag)
        texts.append("")
        parents.append(shifted[first])
        ends.append(until + starts[until])
        nodes.append(first)
        copy(first, until)
        for child in range(first, until):
            if tree.parent[child] < first:
                parents[box + 1 + child - first] = box
        before = until
    copy(before, len(tree))
    return Tree(tags, texts, parents, ends), nodes


def split_texts(tree: Tree, places: Mapping[int, Sequence[int]]) -> tuple[Tree, list[int]]:
    """The tree with text nodes cut into several, and which node each was.

    places: text node -> where it is cut, characters from its start, in order, neither at its start nor at its end.
    """
    more = [0] * (len(tree) + 1)  # how many nodes are added before each
    for node, cuts in places.items():
        more[node + 1] += len(cuts)
    more = list(accumulate(more))
    shifted = [above + more[above] if above >= 0 else above for above in tree.parent]
    stops = [end + more[end] for end in tree.end]
    tags, texts, parents, ends, nodes = list[str](), list[str](), list[int](), list[int](), list[int]()
    before = 0
    for node in [*sorted(places), len(tree)]:
        tags += tree.tag[before:node]
        texts += tree.text[before:node]
        parents += shifted[before:node]
        ends += stops[before:node]
        nodes += range(before, node)
        for start, stop in pairwise([0, *places[node], len(tree.text[node])] if node < len(tree) else []):
            tags.append(tree.tag[node])
            texts.append(tree.text[node][start:stop])
            parents.append(shifted[node])
            ends.append(len(tags))
            nodes.append(node)
        before = node + 1
    return Tree(tags, texts, parents, ends), nodes
