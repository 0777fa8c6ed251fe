"""Picture of a network as one SVG: its modules in order of data flow, with the share of each that would be cut.

Boxes stand in layers, from the input down; long connections run beside them. A bar's length is the module's channels,
its colour the site with which they can go, the pale rest what would go; grey stays whatever happens. Boxes that would
go whole are dashed and pale, with what flows to and from them.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import isotonic_regression

from secateur.reports import display
from secateur.reports.folding import Stack, fold_blocks

__all__ = ["Box", "network", "page"]

_COLOURS = (
    "#2f7ed8", "#d9730d", "#2f9e63", "#b8449c", "#8a6d00", "#0f9aa8",
    "#c23b3b", "#6a55c9", "#5b8c1a", "#a0582c", "#3f6c8f", "#d04a78",
)  # fmt: skip
_WIDE, _TALL, _PLAIN, _JOIN, _GAP, _ROW = 268.0, 58.0, 26.0, 24.0, 26.0, 26.0
_BAR = 150.0
_LEGEND = 300

_STYLE = """
svg.network { --ink: #1b1f24; --muted: #5c6773; --line: #9aa5b1; --paper: #ffffff; --card: #f6f8fa; --stays: #aab4be;
  background: var(--paper); font-family: "DejaVu Sans", "Segoe UI", Helvetica, Arial, sans-serif; }
@media (prefers-color-scheme: dark) { svg.network { --ink: #e6edf3; --muted: #9aa5b1; --line: #57606a;
  --paper: #0d1117; --card: #161b22; --stays: #57606a; } }
svg.network text { fill: var(--ink); font-size: 11px; }
svg.network .name { font-size: 12px; font-weight: 600; }
svg.network .small { fill: var(--muted); font-size: 10.5px; }
svg.network .title { font-size: 17px; font-weight: 600; }
svg.network .card { fill: var(--card); stroke: var(--line); stroke-width: 1; }
svg.network .flow { fill: none; stroke: var(--line); stroke-width: 1.4; }
svg.network .stays { fill: var(--stays); }
svg.network .off { opacity: 0.5; }
svg.network .off .card, svg.network .flow.off { stroke-dasharray: 5 4; }
svg.network .off .name { text-decoration: line-through; }
svg.network .frame { fill: none; stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 7 4; }
svg.network .paper { fill: var(--paper); }
svg.network .times { font-size: 14px; font-weight: 600; }
svg.network .gone { fill-opacity: 0.22; stroke-width: 1; stroke-dasharray: 2 2; }
""".strip()


@dataclass(frozen=True)
class Box:
    """What the picture knows of a module, a join or an end."""

    kind: str
    """module, plain, join, input or output"""
    name: str
    detail: str = ""
    shape: tuple[int, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()
    """(site, channels, of which stay), the site "" where they stay whatever happens"""
    before: tuple[int, ...] = ()
    hint: str = ""
    """Shown where a pointer rests."""
    gone: bool = False
    """Whether it would go whole."""


@dataclass
class _Layout:
    x: dict[int, float] = field(default_factory=dict)
    y: dict[int, float] = field(default_factory=dict)
    paths: list[list[int]] = field(default_factory=list)
    """Edges, as the places they run through."""
    size: dict[int, tuple[float, float]] = field(default_factory=dict)
    width: float = 0.0
    height: float = 0.0


def network(
    boxes: Sequence[Box], title: str, lines: Sequence[str] = (), sites: Sequence[tuple[str, int, int]] = (),
    stays: Sequence[tuple[str, str]] = (), heading: str = "What can go, site by site",
) -> str:  # fmt: skip
    """The SVG.

    boxes: each after those it reads from. lines: under the title. sites: (name, how many, of which stay), in the order
    of their colours, under `heading`. stays: (why, of what). Equal blocks in a row are drawn once, in a frame.
    """
    boxes, stacks = fold_blocks(boxes)
    sites = _fold_sites(boxes, stacks, sites)
    layout = _arrange(boxes)
    colour = {name: _COLOURS[index % len(_COLOURS)] for index, (name, _, _) in enumerate(sites)}
    tag = {name: str(index + 1) for index, (name, _, _) in enumerate(sites)}
    top = 62.0 + 17 * len(lines)
    most = max((sum(part[1] for part in box.parts) for box in boxes if any(part[0] for part in box.parts)), default=1)
    folded = [(f"{stack.times} equal blocks, drawn once", stack.name) for stack in stacks]
    left, legend = 24.0, [*_legend(sites, colour, tag, heading), *_reasons(folded, "In a frame"), *_reasons(stays)]
    beside = left + layout.width + 40
    width = max(beside + _LEGEND + 24, 24 + 7.4 * max(map(len, [title, *lines]), default=0))
    height = max(top + layout.height + 24, top + sum(tall for tall, _ in legend) + 24)
    out = [
        f'<svg class="network" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{_text(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" style="fill: var(--paper)"/>',
        f'<text class="title" x="{left:g}" y="34">{_text(title)}</text>',
        *(f'<text x="{left:g}" y="{56 + 17 * index}">{_text(line)}</text>' for index, line in enumerate(lines)),
        f'<g transform="translate({left:g} {top:g})">',
        *(_draw_frame(stack, layout) for stack in stacks),
        *(
            f'<path class="flow{_off(boxes[path[0]].gone or boxes[path[-1]].gone)}" d="{_curve(layout, path)}"/>'
            for path in layout.paths
        ),
        *(_draw_box(box, layout, index, most, colour, tag) for index, box in enumerate(boxes)),
        f'</g><g transform="translate({beside:g} {top:g})">',
    ]
    y = 0.0
    for tall, part in legend:
        out.append(f'<g transform="translate(0 {y:g})">{part}</g>')
        y += tall
    return "\n".join([*out, "</g></svg>"]) + "\n"


def page(svg: str, title: str) -> str:
    """The picture as an HTML page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title><style>'
        "body { margin: 0; } @media (prefers-color-scheme: dark) { body { background: #0d1117; } }"
        f"</style></head><body>\n{svg}</body></html>\n"
    )


# ---------------------------------------------------------------------------------------------------------- layout


def _arrange(boxes: Sequence[Box]) -> _Layout:
    """Layers by the longest way from the input; within a layer, near to what each box is connected with."""
    rank: dict[int, int] = {}
    for index, box in enumerate(boxes):
        rank[index] = 1 + max((rank[one] for one in box.before), default=-1)
    for index in reversed(range(len(boxes))):  # what has no input of its own stands just above what reads it
        after = [rank[other] for other, box in enumerate(boxes) if index in box.before]
        if not boxes[index].before and after:
            rank[index] = min(after) - 1
    layout, links = _Layout(), dict[int, list[int]]()
    layout.size = {index: _size(box) for index, box in enumerate(boxes)}
    rows: list[list[int]] = [[] for _ in range(max(rank.values(), default=0) + 1)]
    for index in range(len(boxes)):
        rows[rank[index]].append(index)
    fresh = len(boxes)
    for index, box in enumerate(boxes):
        for one in box.before:
            path = [one]
            for level in range(rank[one] + 1, rank[index]):
                rows[level].append(fresh)
                layout.size[fresh] = (10.0, 0.0)
                path.append(fresh)
                fresh += 1
            path.append(index)
            layout.paths.append(path)
            for a, b in itertools.pairwise(path):
                links.setdefault(a, []).append(b)
                links.setdefault(b, []).append(a)
    _order_rows(rows, links)
    _place_boxes(rows, links, layout)
    y = 0.0
    for row in rows:
        tall = max((layout.size[one][1] for one in row), default=0.0)
        for one in row:
            layout.y[one] = y + tall / 2
            if one >= len(boxes):  # a long connection runs straight beside the boxes of a row
                layout.size[one] = (layout.size[one][0], tall)
        y += tall + _ROW
    layout.height = max(0.0, y - _ROW)
    return layout


def _size(box: Box) -> tuple[float, float]:
    if box.kind == "module":
        return _WIDE, _TALL
    if box.kind == "join":
        return max(_JOIN, 7.0 * len(box.name) + 14), _JOIN
    return _WIDE * 0.7, _PLAIN


def _order_rows(rows: list[list[int]], links: dict[int, list[int]]) -> None:
    """Each row sorted by the mean place of its neighbours in the row above, and then below, a few times."""
    place = {one: index for row in rows for index, one in enumerate(row)}
    level = {one: index for index, row in enumerate(rows) for one in row}

    def middle(one: int, side: int) -> float:
        near = [place[other] for other in links.get(one, ()) if level[other] == side]
        return float(np.mean(near)) if near else float(place[one])

    for turn in range(8):
        step = 1 if turn % 2 == 0 else -1
        for index in range(len(rows))[::step]:
            rows[index].sort(key=lambda one: middle(one, index - step))
            place.update({one: number for number, one in enumerate(rows[index])})


def _place_boxes(rows: list[list[int]], links: dict[int, list[int]], layout: _Layout) -> None:
    """Coordinates: each near the mean of what it is connected with, none over another."""
    x = dict.fromkeys((one for row in rows for one in row), 0.0)

    def near(one: int) -> float:
        # What two boxes pass directly stands in line; long connections give way.
        weight = [1.0 if layout.size[one][1] and layout.size[other][1] else 0.02 for other in links[one]]
        return float(np.average([x[other] for other in links[one]], weights=weight))

    for turn in range(60):
        for row in rows if turn % 2 == 0 else reversed(rows):
            # A little towards the middle, or a chain of boxes would wander off.
            wanted = [0.85 * near(one) if one in links else 0.0 for one in row]
            offsets, at = [], 0.0
            for number, one in enumerate(row):
                if number:
                    at += (layout.size[row[number - 1]][0] + layout.size[one][0]) / 2 + _GAP
                offsets.append(at)
            weight = [1.0 if layout.size[one][1] else 0.02 for one in row]
            found = isotonic_regression(np.array(wanted) - np.array(offsets), weights=np.array(weight)).x
            x.update(zip(row, (found + np.array(offsets)).tolist(), strict=True))
    low = min((x[one] - layout.size[one][0] / 2 for one in x), default=0.0)
    layout.x = {one: value - low for one, value in x.items()}
    layout.width = max((layout.x[one] + layout.size[one][0] / 2 for one in x), default=0.0)


def _curve(layout: _Layout, path: Sequence[int]) -> str:
    first = path[0]
    x, y = layout.x[first], layout.y[first] + layout.size[first][1] / 2
    parts = [f"M{x:.1f} {y:.1f}"]
    for one in path[1:]:
        to, down = layout.x[one], layout.y[one] - layout.size[one][1] / 2
        half = (y + down) / 2
        parts.append(f"C{x:.1f} {half:.1f} {to:.1f} {half:.1f} {to:.1f} {down:.1f}")
        x, y = to, layout.y[one] + layout.size[one][1] / 2
        if one != path[-1]:
            parts.append(f"V{y:.1f}")
    return " ".join(parts)


# --------------------------------------------------------------------------------------------------------- drawing


def _draw_box(box: Box, layout: _Layout, index: int, most: int, colour: dict[str, str], tag: dict[str, str]) -> str:
    wide, tall = layout.size[index]
    x, y = layout.x[index] - wide / 2, layout.y[index] - tall / 2
    hint = f"<title>{_text(box.hint)}</title>" if box.hint else ""
    radius = tall / 2 if box.kind != "module" else 6
    out = [
        f'<g class="box{_off(box.gone)}" transform="translate({x:.1f} {y:.1f})">{hint}',
        f'<rect class="card" width="{wide:.1f}" height="{tall:.1f}" rx="{radius:g}"/>',
    ]
    if box.kind != "module":
        words = box.name if box.kind == "join" else " ".join(filter(None, [box.name, _short(box.detail, 22)]))
        if box.kind in ("input", "output"):
            words = f"{box.name} {' x '.join(map(str, box.shape))}"
        shown = _text(display.trim_left(words, 28))
        out.append(f'<text x="{wide / 2:.1f}" y="{tall / 2 + 4:.1f}" text-anchor="middle">{shown}</text>')
        return "".join([*out, "</g>"])
    out.append(f'<text class="name" x="10" y="17">{_text(display.trim_left(box.name, 33))}</text>')
    out.append(f'<text class="small" x="10" y="32">{_text(_short(box.detail, 42))}</text>')
    total, kept = sum(part[1] for part in box.parts), sum(part[2] for part in box.parts)
    at, scale = 10.0, _BAR / max(most, total)
    for site, count, stay in box.parts:
        fill = f'style="fill: {colour[site]}; stroke: {colour[site]}"' if site in colour else ""
        length, solid = count * scale, stay * scale
        kind = "keeps" if site in colour else "stays"
        if solid:
            out.append(f'<rect class="{kind}" x="{at:.2f}" y="40" width="{solid:.2f}" height="10" {fill}/>')
        if stay < count:
            out.append(
                f'<rect class="gone" x="{at + solid:.2f}" y="40" width="{length - solid:.2f}" height="10" {fill}/>'
            )
        at += length
    if box.parts:
        numbers = (
            display.thousands(total) if kept == total else f"{display.thousands(total)} → {display.thousands(kept)}"
        )
        marks = ", ".join(tag[site] for site, _, _ in box.parts if site in tag)
        words = f"{numbers}  [{_short(marks, 8)}]" if marks else numbers + " stay" * (kept == total)
        out.append(f'<text x="{at + 7:.1f}" y="49">{_text(words)}</text>')
    return "".join([*out, "</g>"])


def _draw_frame(stack: Stack, layout: _Layout) -> str:
    """Around the boxes of a block that stands for several, what they are and how many."""
    lefts = [layout.x[place] - layout.size[place][0] / 2 for place in stack.places]
    rights = [layout.x[place] + layout.size[place][0] / 2 for place in stack.places]
    tops = [layout.y[place] - layout.size[place][1] / 2 for place in stack.places]
    ends = [layout.y[place] + layout.size[place][1] / 2 for place in stack.places]
    x, y = min(lefts) - 10, min(tops) - 10
    wide, tall = max(rights) - x + 10, max(ends) - y + 10
    label = f"× {stack.times}"
    return (
        f"<g><title>{_text(stack.name)}: {stack.times} equal blocks</title>"
        f'<rect class="frame" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="10"/>'
        f'<rect class="paper" x="{x + 10:.1f}" y="{y - 9:.1f}" width="{8.5 * len(label):.1f}" height="18"/>'
        f'<text class="times" x="{x + 13:.1f}" y="{y + 5:.1f}">{label}</text></g>'
    )


def _fold_sites(
    boxes: Sequence[Box], stacks: Sequence[Stack], sites: Sequence[tuple[str, int, int]]
) -> list[tuple[str, int, int]]:
    """The sites that are drawn: of equal blocks those of the first."""
    drawn = {part[0] for box in boxes for part in box.parts}
    return [row for row in sites if not stacks or row[0] in drawn]


def _off(gone: bool) -> str:
    return " off" if gone else ""


def _legend(
    sites: Sequence[tuple[str, int, int]], colour: dict[str, str], tag: dict[str, str], heading: str
) -> list[tuple[float, str]]:
    out = [(20.0, f'<text class="name" y="10">{_text(heading)}</text>')]
    for name, count, stay in sites:
        words = f"{display.thousands(count)} → {display.thousands(stay)}" if stay < count else display.thousands(count)
        swatch = f'<rect width="12" height="12" rx="2" style="fill: {colour[name]}"/>'
        text = f'<text x="18" y="10">{tag[name]}</text><text x="42" y="10">{_text(display.trim_left(name, 32))}</text>'
        out.append((17.0, f'{swatch}{text}<text class="small" x="{_LEGEND}" y="10" text-anchor="end">{words}</text>'))
    return [*out, (14.0, "")]


def _reasons(stays: Sequence[tuple[str, str]], heading: str = "What stays, and why") -> list[tuple[float, str]]:
    out = [(20.0, f'<text class="name" y="10">{heading}</text>')] if stays else []
    for why, what in stays:
        out += [(14.0, f'<text y="10">{_text(line)}</text>') for line in _wrap_text(why, 46)]
        out += [(14.0, f'<text class="small" x="10" y="10">{_text(line)}</text>') for line in _wrap_text(what, 46)]
        out.append((6.0, ""))
    return [*out, (8.0, "")] if out else out


def _wrap_text(text: str, most: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > most:
            lines.append(line)
            line = ""
        line = f"{line} {display.trim_left(word, most)}".strip()
    return [*lines, line] if line else lines


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
