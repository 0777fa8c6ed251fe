"""Pictures of networks, drawn from made-up boxes and read back as XML."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

from secateur.reports import pictures
from secateur.reports.pictures import Box

SVG = "{http://www.w3.org/2000/svg}"
BOXES = [
    Box("input", "input", shape=(1, 3, 8, 8)),
    Box("module", "stem", "Conv2d 3x3", parts=(("stem.channels", 64, 32),), before=(0,), hint="<a & b>"),
    Box("module", "left", "Conv2d 1x1", parts=(("left.channels", 32, 32),), before=(1,)),
    Box("module", "right", "Conv2d 1x1", parts=(("left.channels", 32, 32), ("", 8, 8)), before=(1,)),
    Box("join", "+", before=(2, 3)),
    Box("join", "x", before=(4, 1)),
    Box("module", "a.very.long.path.to.a.module.that.does.not.fit", "Linear", parts=(("", 10, 10),), before=(5,)),
    Box("output", "output", shape=(1, 10), before=(6,)),
]
SITES = [("stem.channels", 64, 32), ("left.channels", 32, 32)]
STAYS = [("reaches the output of the network & is long enough to be broken into lines", "fc.weight[0]")]


def drawing() -> ElementTree.Element:
    return ElementTree.fromstring(pictures.network(BOXES, "Net <1>", ["a line"], SITES, STAYS))


def cards(root: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    found = []
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect[@class='card']")
        if rect is not None:
            x, y = map(float, re.findall(r"[-\d.]+", group.get("transform", "")))
            found.append((x, y, x + float(rect.get("width", 0)), y + float(rect.get("height", 0))))
    return found


def test_the_picture_needs_nothing_and_says_what_goes() -> None:
    text = pictures.network(BOXES, "Net <1>", ["a line"], SITES, STAYS)
    assert not re.search(r"(href|src|url\()", text)
    words = ["".join(node.itertext()).strip() for node in drawing().iter(f"{SVG}text")]
    assert {"Net <1>", "a line", "stem", "input 1 x 3 x 8 x 8", "64 → 32  [1]", "32  [2]", "10 stay"} <= set(words)
    assert "40  [2]" in words, "two parts of one module stand in one bar"
    assert "fc.weight[0]" in words
    assert any(word.startswith("…") and word.endswith("that.does.not.fit") for word in words)
    assert pictures.network(BOXES, "Net <1>", ["a line"], SITES, STAYS) == text


def test_boxes_do_not_overlap_and_stand_below_what_they_read() -> None:
    found = cards(drawing())
    assert len(found) == len(BOXES)
    for a, b in combinations(found, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for box, place in zip(BOXES, found, strict=True):
        assert all(found[one][3] < place[1] for one in box.before)
    assert len(list(drawing().iter(f"{SVG}path"))) == sum(len(box.before) for box in BOXES)


def test_bars_are_as_long_as_what_stays_and_goes() -> None:
    root = drawing()
    keeps = [float(one.get("width", 0)) for one in root.iter(f"{SVG}rect") if one.get("class") == "keeps"]
    gone = [float(one.get("width", 0)) for one in root.iter(f"{SVG}rect") if one.get("class") == "gone"]
    assert len(gone) == 1
    assert abs(keeps[0] - gone[0]) < 0.02
    assert len({round(one, 1) for one in keeps}) == 1, "64 to 32, 32 and 32 keep the same"


def test_a_page_and_an_empty_picture() -> None:
    assert pictures.page("<svg/>", "a & b").startswith("<!doctype html>")
    assert ElementTree.fromstring(pictures.network([], "nothing")).tag == f"{SVG}svg"


def test_what_goes_whole_is_dashed_with_what_flows_there() -> None:
    boxes = [
        Box("input", "input", shape=(1, 3)),
        Box("module", "long", "Linear", parts=(("long", 8, 8),), before=(0,)),
        Box("module", "fed", "Linear", parts=(("", 8, 0),), before=(0,), gone=True),
        Box("module", "short", "Linear", parts=(("short", 8, 0),), before=(2,), gone=True),
        Box("join", "+", before=(1, 3)),
    ]
    text = pictures.network(boxes, "Net", (), [("long", 72, 72), ("short", 72, 0)], heading="What can be erased")
    root = ElementTree.fromstring(text)
    pale = [group for group in root.iter(f"{SVG}g") if group.get("class") == "box off"]
    assert ["".join(group.itertext()) for group in pale] == ["fedLinear8 → 0", "shortLinear8 → 0  [2]"]
    assert sum(path.get("class") == "flow off" for path in root.iter(f"{SVG}path")) == 3
    assert sum(path.get("class") == "flow" for path in root.iter(f"{SVG}path")) == 2
    assert "What can be erased" in text
    assert "72 → 0" in text
