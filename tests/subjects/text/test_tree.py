"""Trees as arrays: elements put around siblings, and texts cut into several."""

from __future__ import annotations

import pytest

pytest.importorskip("selectolax")

from secateur.subjects.text import markup, tree
from subjects.text.test_markup import sound


def test_elements_around_siblings_and_texts_in_several():
    page = markup.parse("<div>one two<b>three</b>four<p>five</p>six</div>")
    (div,) = [node for node in range(len(page)) if page.tag[node] == "div"]
    children = page.children(div)
    cut, nodes = tree.split_texts(page, {children[0]: [4]})
    sound(cut)
    assert [page.text[node] for node in nodes if not page.tag[node]].count("one two") == 2
    assert markup.write(cut) == markup.write(page)
    (div,) = [node for node in range(len(cut)) if cut.tag[node] == "div"]
    first, second, bold, four, _, six = cut.children(div)
    boxed, nodes = tree.wrap_ranges(cut, [(first, second), (second, four + 1), (six, six + 1)], "x")
    sound(boxed)
    inner = "<div><x>one </x><x>two<b>three</b>four</x><p>five</p><x>six</x></div>"
    assert inner in markup.write(boxed)
    assert [cut.tag[node] for tag, node in zip(boxed.tag, nodes, strict=True) if tag == "x"] == ["", "", ""]
    assert bold in nodes
