"""The report's charts: curves drawn by matplotlib to SVG that takes its colours and type from the page around it.

Each chart is drawn for one width, and the page carries a wide and a narrow drawing, so that type keeps its size on a
phone instead of shrinking with the picture. Text stays text: small, searchable, and set in the page's own face.

Bars need no drawing: they are rows of the page, of which a deep model has hundreds.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from secateur.reports import display
from secateur.vocabulary import Cut, Evidence, Figure, Recovery

__all__ = ["Bar", "Line", "curves", "heat", "layers", "losses", "panels", "quality", "scatter"]

WIDE, NARROW = 7.2, 3.5
"""Inches; at 72 units per inch the page shows them at about 1.45 CSS pixels per unit, wide and narrow alike."""

# Stand-ins that no palette uses; each becomes a variable of the page's style sheet, so one SVG serves light and dark.
INK, MUTED, GRID, ACCENT, PAPER = (f"#0101{i:02x}" for i in range(1, 6))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", PAPER: "paper"}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}

_SMALL_RUN = 400
"""Points of a loss curve that are drawn; more can't be seen."""

_MOST_ROWS = 40
"""Rows of a panel that have room for words."""


Draw: TypeAlias = Callable[[Canvas, bool], int]
"""What fills a canvas, wide or narrow, and says how many rows its legend has."""


def _svg(draw: Draw, name: str, height: Callable[[bool], float]) -> str:
    """The wide and the narrow drawing of one chart."""
    return "".join(_one(draw, f"{name}-{'n' if narrow else 'w'}", height(narrow), narrow) for narrow in (False, True))


def _one(draw: Draw, name: str, height: float, narrow: bool) -> str:
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(NARROW if narrow else WIDE, height))
        canvas.patch.set_alpha(0.0)
        out, svg = io.StringIO(), FigureCanvasSVG(canvas)
        _place(canvas, draw(canvas, narrow))
        svg.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    # Several drawings share one page: their ids must not meet.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    kind = "narrow" if narrow else "wide"
    # Hidden from screen readers: the caption and the table beside each chart say the same in words.
    start = f'<svg class="chart {kind}" viewBox="{box[1]}" xmlns="http://www.w3.org/2000/svg" '
    start += 'xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true" focusable="false"'
    return start + ">" + re.sub(r"\n\s*", "\n", body)


def _place(canvas: Canvas, legend: int) -> None:
    """Axes of equal size in what their words leave free, with so many rows of a legend above them; all in points.

    matplotlib's own layouts draw everything once more to see how large it is: three times as long for each chart.
    """
    rows, columns = canvas.axes[0].get_subplotspec().get_geometry()[:2]  # type: ignore[union-attr]
    width, height = (72.0 * inches for inches in canvas.get_size_inches())
    title, below, above = 24.0, 30.0, 13.0 * legend + 2.0
    wide, high = 26.0, below + title  # between two columns, and between two rows
    for _ in range(2):  # which numbers stand at the ticks depends on the room they have
        words = [(_widest(axes.yaxis), _widest(axes.xaxis)) for axes in canvas.axes]
        left, right = max(y for y, _ in words) + 8.0, max(x for _, x in words) / 2 + 4.0
        each = (width - left - right - (columns - 1) * wide) / columns, (height - above - rows * high) / rows
        canvas.subplots_adjust(
            left=left / width, right=1 - right / width, bottom=below / height, top=1 - (above + title) / height,
            wspace=wide / each[0], hspace=high / each[1],
        )  # fmt: skip


def _widest(axis: Axis) -> float:
    """Points that the longest of the words at an axis's ticks takes."""
    labels = [label for label in axis.get_majorticklabels() if label.get_text() and label.get_visible()]
    sizes = (text_to_path.get_text_width_height_descent(one.get_text(), one.get_fontproperties(), False)
             for one in labels)  # fmt: skip
    return max((width for width, _, _ in sizes), default=0.0)


def _bare(axes: Axes, *, grid: str | None = "both") -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0, pad=4)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------- quality against speed and size


def quality(results: Sequence[Evidence], name: str) -> str:
    """Quality against speed and size: the original, each result, each baseline. Empty where quality is not known."""
    metric = next((m for m in display.order(k for r in results for k in {**r.after, **r.measured})
                   if display.measure(m).role == "quality"), None)  # fmt: skip
    if metric is None:
        return ""
    panels = [(label, points) for label, points in ((label, _points(results, metric, where)) for label, where in _AXES)
              if len({p[1].value for p in points}) > 1]  # fmt: skip
    if {label for label, _ in _AXES[1:]} <= {label for label, _ in panels}:
        panels.pop()  # what became physically smaller is told by its size
    if not panels:
        return ""

    def draw(canvas: Canvas, narrow: bool) -> int:
        shape = (len(panels), 1) if narrow else (1, len(panels))
        grid = canvas.subplots(*shape, squeeze=False, sharey=not narrow)
        for index, (axes, (label, points)) in enumerate(zip(grid.flat, panels, strict=True)):
            _scatter(axes, points, several=len(results) > 1)
            axes.set_xlabel(label)
            if index == 0 or narrow:
                word = display.measure(metric)
                arrow = {"more": ", higher is better", "less": ", lower is better"}.get(word.better, "")
                axes.set_title(f"{word.label}{arrow}", loc="left", fontsize=8, color=MUTED, pad=9)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        columns = 2 if narrow else min(4, len(labels))
        canvas.legend(handles, labels, loc="upper left", ncols=columns, frameon=False, fontsize=8, labelcolor=INK,
                      borderpad=0.2, borderaxespad=0.2, handletextpad=0.3, columnspacing=1.4)  # fmt: skip
        return math.ceil(len(labels) / columns)

    series = 1 + len({name for result in results for name in result.baselines}) + 1
    return _svg(draw, name, lambda narrow: 2.5 * len(panels) + 0.09 * series if narrow else 3.1)


Point = tuple[str, Figure, Figure, str, str]
"""Series, x, y, what it is (original, result or baseline), and a short name for it."""


def _speedup(figures: Mapping[str, Figure], before: Mapping[str, Figure]) -> Figure | None:
    if "speedup" in figures:
        return figures["speedup"]
    if "latency" in figures and "latency" in before and figures["latency"].value > 0:
        return Figure(before["latency"].value / figures["latency"].value)
    return None


def _share(figures: Mapping[str, Figure], before: Mapping[str, Figure]) -> Figure | None:
    for measure in ("params", "bytes", "tokens", "examples"):
        if measure in figures and measure in before and before[measure].value > 0:
            return Figure(figures[measure].value / before[measure].value * 100.0)
    return None


def _weights(figures: Mapping[str, Figure], before: Mapping[str, Figure]) -> Figure | None:
    if "weights" in figures and "weights" in before and before["weights"].value > 0:
        return Figure(figures["weights"].value / before["weights"].value * 100.0)
    return None


_AXES = (
    ("speedup, × the original", _speedup),
    ("size, % of the original", _share),
    ("weights that are not zero, % of the original", _weights),
)


def _points(results: Sequence[Evidence], metric: str, where: Callable[..., Figure | None]) -> list[Point]:
    points: list[Point] = []
    for result in results:
        rows = [("original", result.before, "original"), (result.recipe, {**result.after, **result.measured}, "result")]
        rows += [(baseline, figures, "baseline") for baseline, figures in result.baselines.items()]
        for label, figures, kind in rows:
            x = where(figures, result.before)
            if x is None and kind == "original" and result.before:
                x = Figure(1.0 if where is _speedup else 100.0)
            y = figures.get(metric) or (_perfect(metric) if kind == "original" else None)
            if kind == "original" and any(point[3] == "original" for point in points):
                continue
            if x is not None and y is not None and math.isfinite(x.value) and math.isfinite(y.value):
                points.append((_short(label), x, y, kind, _short(result.target.rpartition("=")[2])))
    return points


def _perfect(metric: str) -> Figure | None:
    """A fidelity to the original is 1 for the original itself, and need not be measured."""
    return Figure(1.0) if metric in ("spearman", "cosine") else None


def _short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _scatter(axes: Axes, points: Sequence[Point], *, several: bool) -> None:
    """One series per system, each with a marker of its own; a family is joined by a line."""
    _bare(axes)
    family = sorted((x.value, y.value) for _, x, y, kind, _ in points if kind != "baseline")
    axes.plot(*zip(*family, strict=True), color=ACCENT, linewidth=1.0, alpha=0.4, zorder=2)
    markers = iter("DsvP^X" * len(points))
    for series in dict.fromkeys(point[0] for point in points):
        members = [point for point in points if point[0] == series]
        kind = members[0][3]
        colour = {"original": INK, "result": ACCENT, "baseline": MUTED}[kind]
        marker = next(markers) if kind == "baseline" else "o"
        for _, x, y, _, short in members:
            for figure, across in ((x, True), (y, False)):
                if figure.low is not None and figure.high is not None:
                    ends, still = [figure.low, figure.high], [(y if across else x).value] * 2
                    place = (ends, still) if across else (still, ends)
                    axes.plot(*place, color=colour, linewidth=1.0, alpha=0.7, zorder=3, solid_capstyle="butt")
            if several and kind == "result":
                axes.annotate(short, (x.value, y.value), xytext=(0, 8), textcoords="offset points", ha="center",
                              color=ACCENT, fontsize=7.5, fontweight="bold", zorder=5)  # fmt: skip
        xs, ys = ([figure.value for figure in column] for column in list(zip(*members, strict=True))[1:3])
        if kind == "baseline" and len(members) > 1:
            axes.plot(*zip(*sorted(zip(xs, ys, strict=True)), strict=True), color=MUTED, linewidth=0.8, alpha=0.4)
        axes.scatter(xs, ys, label=series, marker=marker, s=44 if marker == "o" else 32, linewidths=1.2, zorder=4,
                     facecolors=ACCENT if kind == "result" else PAPER, edgecolors=colour)  # fmt: skip
    axes.margins(x=0.1, y=0.16)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))


# ------------------------------------------------------------------------------------------------ what was cut where

_LAYER = re.compile(r"layers\.(\d+)\.(\w+)$")
_WORDS = {"heads": "Attention heads kept", "kv_groups": "Key-value groups kept", "neurons": "FFN neurons kept"}


def layers(cut: Cut) -> dict[str, list[tuple[int, int] | None]]:
    """Kind -> per original layer (kept, there were), None where the receipt does not name the layer's site."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for site, (gone, count) in cut.removed.items():
        if match := _LAYER.search(site):
            found.setdefault(match[2], {})[int(match[1])] = (count - gone, count)
    deepest = max((layer for part in found.values() for layer in part), default=-1)
    depth = max(deepest + 1, cut.removed.get("layers", (0, 0))[1])
    return {kind: [part.get(layer) for layer in range(depth)] for kind, part in found.items()}


class Bar(NamedTuple):
    """One row of a panel: whose, the share that stays, in words, and whether nothing does."""

    name: str
    share: float
    words: str
    gone: bool


def panels(cut: Cut) -> list[tuple[str, list[Bar]]]:
    """What stayed: a title and a bar per layer for each kind of unit; without layers, one per site. None for a no-op.

    Of more than 40 rows only every eighth has a name, and none has words: they are lines.
    """
    if cut.is_noop:
        return []
    kinds = layers(cut)
    if {"heads", "kv_groups"} <= set(kinds) and not any(row and row[0] < row[1] for row in kinds["kv_groups"]):
        kinds.pop("kv_groups")  # whole groups stayed: the panel would say nothing
    if kinds:
        # Matrices of single weights are named as they are: "self attn q proj".
        titles = {kind: f"{kind} kept" if "_" not in kind else kind.replace("_", " ") for kind in kinds}
        drawn = {f"{_WORDS.get(kind, titles[kind])}, by layer": rows for kind, rows in kinds.items()}
        names = [str(layer) for layer in range(len(next(iter(kinds.values()))))]
    else:
        drawn = {"Kept": [(count - gone, count) for gone, count in cut.removed.values()]}
        names = [display.trim_left(site, 24) for site in cut.removed]
    whole = [all(row is not None and row[0] == 0 for row in rows) for rows in zip(*drawn.values(), strict=True)]
    if len(names) > _MOST_ROWS:
        names = [name if index % 8 == 0 else "" for index, name in enumerate(names)]
    return [
        (title, [_bar(name, row, gone, len(names)) for name, row, gone in zip(names, rows, whole, strict=True)])
        for title, rows in drawn.items()
    ]


def _bar(name: str, row: tuple[int, int] | None, whole: bool, rows: int) -> Bar:
    """`row` is kept and count, or None for a site the receipt does not name, which lost nothing."""
    kept, count = row if row is not None and row[1] else (1, 1)
    words = f"{display.thousands(kept)} / {display.thousands(count)}" if count < 1e5 else f"{kept / count:.1%}"
    if row is None:
        words = "all"
    elif kept == 0:
        words = "layer removed" if whole and rows > 1 else "removed"
    return Bar(name, kept / count, words if rows <= _MOST_ROWS else "", kept == 0)


# ------------------------------------------------------------------------------------------------------- recovery


def losses(recovery: Recovery, name: str) -> str:
    """The training loss over steps: the raw curve faint, a running median over it. Empty for fewer than two points."""
    points = [(step, loss) for step, loss in recovery.losses if math.isfinite(loss)]
    return _curve(tuple(points[:: math.ceil(len(points) / _SMALL_RUN)]), name) if len(points) > 1 else ""


@functools.lru_cache(maxsize=32)
def _curve(points: tuple[tuple[int, float], ...], name: str) -> str:
    """The drawing of `losses`; kept, as a run's report is written anew after each of its budgets."""
    steps, values = (np.asarray(column, dtype=float) for column in zip(*points, strict=True))
    window = max(3, len(values) // 24 * 2 + 1)
    smooth = np.asarray([np.median(values[max(0, i - window // 2) : i + window // 2 + 1]) for i in range(len(values))])
    noisy = len(values) >= 40

    def draw(canvas: Canvas, narrow: bool) -> int:
        axes = canvas.subplots()
        _bare(axes, grid="y")
        if noisy:
            axes.plot(steps, values, color=ACCENT, linewidth=0.7, alpha=0.35)
        axes.plot(steps, smooth if noisy else values, color=ACCENT, linewidth=1.6, solid_joinstyle="round")
        last = float(smooth[-1] if noisy else values[-1])
        axes.scatter(steps[-1], last, s=22, color=ACCENT, zorder=4)
        axes.annotate(f"{last:.3g}", (steps[-1], last), xytext=(0, 7), textcoords="offset points", ha="right",
                      color=INK, fontsize=8, fontweight="bold")  # fmt: skip
        if values.min() > 0 and values.max() / values.min() > 30:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # powers would need mathematical text
            axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.02, y=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7, integer=True))
        axes.set_xlabel("step")
        axes.set_title("training loss", loc="left", fontsize=8, color=MUTED, pad=7)
        return 0

    return _svg(draw, name, lambda narrow: 1.9 if narrow else 2.2)


# --------------------------------------------------------------------------------------------------------- studies


class Line(NamedTuple):
    """A curve of a study: its name, points (x, figure) by rising x, and how much of the accent it has, 0 to 1."""

    name: str
    points: Sequence[tuple[float, Figure]]
    weight: float = 1.0


def curves(
    panels: Mapping[str, Sequence[Line]], name: str, *, x: str, y: str, log: bool = False, mark: float | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> str:  # fmt: skip
    """Lines with their intervals, a panel for each title; all panels have the same lines, told by one legend.

    x, y: what the axes are called; log: x by its logarithm; mark: a value of x that is told apart; bounds:
    of what y can be, up to which whiskers are drawn.
    """
    columns = min(3, len(panels))

    def draw(canvas: Canvas, narrow: bool) -> int:
        wide = 1 if narrow else columns
        grid = canvas.subplots(math.ceil(len(panels) / wide), wide, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            _bare(axes, grid="y")
            ticks = sorted({place for line in lines for place, _ in line.points})
            if log:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            if mark is not None:
                axes.axvline(mark, color=INK, linewidth=0.8, linestyle=":", zorder=1)
            for line, marker in zip(lines, itertools.cycle("oDsvP^X"), strict=False):
                _line(axes, line, marker, bounds)
            axes.margins(x=0.05, y=0.08)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel(x)
            axes.set_title(f"{title}: {y}" if title else y, loc="left", fontsize=8, color=MUTED, pad=9)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        across = 2 if narrow else min(5, len(labels))
        canvas.legend(handles, labels, loc="upper left", ncols=across, frameon=False, fontsize=8, labelcolor=INK,
                      borderpad=0.2, borderaxespad=0.2, handletextpad=0.3, columnspacing=1.4)  # fmt: skip
        return math.ceil(len(labels) / across)

    most = max(len(lines) for lines in panels.values())
    return _svg(
        draw, name,
        lambda narrow: 2.2 * (len(panels) if narrow else math.ceil(len(panels) / columns)) + 0.09 * most + 0.3,
    )  # fmt: skip


def _line(axes: Axes, line: Line, marker: str, bounds: tuple[float, float]) -> None:
    """One curve: the fainter the less it weighs; whiskers where a point has an interval."""
    colour, alpha = (MUTED, 0.9) if not line.weight else (ACCENT, 0.35 + 0.65 * line.weight)
    xs, ys = [place for place, _ in line.points], [figure.value for _, figure in line.points]
    for place, figure in line.points:
        if figure.low is not None and figure.high is not None:
            ends = [max(bounds[0], figure.low), min(bounds[1], figure.high)]
            axes.plot([place, place], ends, color=colour, linewidth=0.9, alpha=0.5 * alpha, zorder=3,
                      solid_capstyle="butt")  # fmt: skip
    axes.plot(xs, ys, color=colour, alpha=alpha, linewidth=1.3, label=line.name, marker=marker, markersize=4.5,
              linestyle="-" if line.weight else "--", markeredgewidth=0, zorder=4)  # fmt: skip


def scatter(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], name: str, *, x: str, y: str, log: bool = False
) -> str:  # fmt: skip
    """Points (x, y) of several series, a panel for each title; all panels have the same series, told by one legend.

    x, y: what the axes are called; log: x by its logarithm. The first series is drawn in the accent.
    """
    columns = min(3, len(panels))

    def draw(canvas: Canvas, narrow: bool) -> int:
        wide = 1 if narrow else columns
        grid = canvas.subplots(math.ceil(len(panels) / wide), wide, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, series) in zip(grid.flat, panels.items(), strict=False):
            _bare(axes)
            if log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            for place, (label, points) in enumerate(series.items()):
                axes.scatter(
                    [at for at, _ in points], [value for _, value in points], label=label, marker="oDsvP^X"[place % 7],
                    s=22, color=MUTED if place else ACCENT, alpha=0.85, linewidths=0, zorder=4 - bool(place),
                )  # fmt: skip
            axes.margins(x=0.08, y=0.1)
            axes.set_xlabel(x)
            axes.set_title(f"{title}: {y}" if title else y, loc="left", fontsize=8, color=MUTED, pad=9)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        across = 2 if narrow else min(5, len(labels))
        canvas.legend(handles, labels, loc="upper left", ncols=across, frameon=False, fontsize=8, labelcolor=INK,
                      borderpad=0.2, borderaxespad=0.2, handletextpad=0.3, columnspacing=1.4)  # fmt: skip
        return math.ceil(len(labels) / across)

    most = max(len(series) for series in panels.values())
    return _svg(
        draw, name,
        lambda narrow: 2.2 * (len(panels) if narrow else math.ceil(len(panels) / columns)) + 0.09 * most + 0.3,
    )  # fmt: skip


def heat(
    panels: Mapping[str, Sequence[Sequence[float]]], name: str, *, rows: Sequence[str], columns: Sequence[str], x: str
) -> str:  # fmt: skip
    """Tables of numbers as fields of colour, one below the other: the larger, the stronger; what is below zero is grey.

    panels: title -> rows of numbers, NaN for none; each panel has its own scale, which its title tells.
    """

    def draw(canvas: Canvas, narrow: bool) -> int:
        grid = canvas.subplots(len(panels), 1, squeeze=False)
        for axes, (title, values) in zip(grid.flat, panels.items(), strict=True):
            _bare(axes, grid=None)
            most = max((abs(one) for row in values for one in row if math.isfinite(one)), default=0.0)
            for at, row in enumerate(values):
                for place, one in enumerate(row):
                    if math.isfinite(one) and one and most:
                        box = Rectangle((place + 0.04, at + 0.04), 0.92, 0.92, facecolor=ACCENT if one > 0 else MUTED,
                                        alpha=max(0.04, abs(one) / most), linewidth=0)  # fmt: skip
                        axes.add_patch(box)
            axes.set_xlim(0, len(columns))
            axes.set_ylim(len(rows), 0)
            step = max(1, math.ceil(len(columns) / (8 if narrow else 20)))
            axes.set_xticks([place + 0.5 for place in range(0, len(columns), step)], columns[::step])
            axes.set_yticks([at + 0.5 for at in range(len(rows))], rows)
            axes.set_xlabel(x)
            axes.set_title(f"{title}, up to {most:.2g}", loc="left", fontsize=8, color=MUTED, pad=7)
        return 0

    return _svg(draw, name, lambda narrow: len(panels) * (0.75 + 0.19 * len(rows)) + 0.1)
