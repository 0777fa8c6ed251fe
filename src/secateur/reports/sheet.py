"""study.json and study.html: the results of a study as tables and a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from secateur._utils.disk import atomic_write
from secateur.measure.statistics import to_percent
from secateur.reports import charts, display, evidence
from secateur.vocabulary import Figure

__all__ = ["Chart", "Heat", "Scatter", "Sheet", "Table", "over", "percent", "points", "render", "write"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, the header first, under a title; `words` say how to read them.

    A cell may end with an interval in square brackets, which the page sets below the value.
    """

    title: str
    rows: Sequence[Sequence[str]]
    words: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """What `charts.curves` draws: panels of lines over one axis; `words` say what is seen."""

    title: str
    panels: Mapping[str, Sequence[charts.Line]]
    x: str
    y: str
    words: str = ""
    log: bool = False
    mark: float | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Of what y can be: whiskers are drawn up to there, whatever a few seeds' interval says."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """What `charts.scatter` draws: panels of named points; `words` say what is seen."""

    title: str
    panels: Mapping[str, Sequence[charts.Dots]]
    x: str
    y: str
    words: str = ""
    log: bool = False


@dataclass(frozen=True, slots=True)
class Heat:
    """What `charts.heat` draws: panels of numbers in rows and columns; `words` say what is seen."""

    title: str
    panels: Mapping[str, Sequence[Sequence[float]]]
    rows: Sequence[str]
    columns: Sequence[str]
    x: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A study's answer: one for the terminal, the page and the file."""

    study: str
    headline: str
    tables: Sequence[Table]
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What study.json keeps: seed by seed, with means and intervals."""
    notes: Sequence[str] = ()
    chart: Chart | Scatter | None = None
    items: Sequence[Mapping[str, Any]] = ()
    """What items.jsonl keeps beside it, a line each."""
    more: Sequence[Scatter | Heat] = ()
    """Drawings behind the chart."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files beside study.json: name -> text."""


def percent(share: Figure, *, signed: bool = False) -> str:
    """A share, or a difference of shares, as `points` shows it."""
    return points(to_percent(share), signed=signed)


def points(figure: Figure, *, signed: bool = False) -> str:
    """Percent, or percentage points, as tables show them: "93.1 [92.0 to 94.2]", with a sign where asked for."""
    form = "+.1f" if signed else ".1f"
    ends = [] if figure.low is None or figure.high is None else [f"[{figure.low:{form}} to {figure.high:{form}}]"]
    return " ".join([f"{figure.value:{form}}", *ends]).replace("-", "−")


def over(seeds: Sequence[int]) -> str:
    """What the figures of a table are: means with intervals, or those of the one seed there was."""
    return f"Mean over {len(seeds)} seeds with its 95 % interval" if len(seeds) > 1 else f"Of seed {seeds[0]} alone"


def render(sheet: Sheet, *, about: Sequence[str] = (), run_yaml: str = "") -> str:
    """The page as text; about: names of the model and the data. All is escaped but our own drawing."""
    drawn = "" if sheet.chart is None else _draw(sheet.chart)
    more = [(one, Markup(_draw(one, f"more-{number}-"))) for number, one in enumerate(sheet.more, 1)]
    return display.fill_template(
        "sheet.html.j2", sheet=sheet, about=about, run_yaml=run_yaml, chart=Markup(drawn), more=more
    )


def _draw(one: Chart | Scatter | Heat, prefix: str = "") -> str:
    if isinstance(one, Heat):
        return charts.heat(one.panels, f"{prefix}heat", rows=one.rows, columns=one.columns, x=one.x)
    if isinstance(one, Scatter):
        return charts.scatter(one.panels, f"{prefix}scatter", x=one.x, y=one.y, log=one.log)
    return charts.curves(one.panels, f"{prefix}curves", x=one.x, y=one.y, log=one.log, mark=one.mark, bounds=one.bounds)


def write(
    folder: str | Path,
    sheet: Sheet,
    settings: Mapping[str, object],
    *,
    environment: Mapping[str, object],
    run_yaml: str = "",
) -> None:
    """Write study.json and study.html into `folder`, each whole or not at all."""
    document = {
        "format": FORMAT, "study": sheet.study, "headline": sheet.headline, "notes": list(sheet.notes),
        "settings": settings, "figures": sheet.figures, "environment": environment,
    }  # fmt: skip
    text = json.dumps(evidence.plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(Path(folder) / "study.json", text + "\n")
    if sheet.items:
        # In plain ASCII: models write half letters, and what other readers take for the end of a line.
        lines = (json.dumps(evidence.plain(item), allow_nan=False) for item in sheet.items)
        atomic_write(Path(folder) / "items.jsonl", "".join(f"{line}\n" for line in lines))
    for name, text in sheet.files.items():
        atomic_write(Path(folder) / name, text)
    about = [Path(str(settings[name])).name for name in ("model", "data") if settings.get(name)]
    atomic_write(Path(folder) / "study.html", render(sheet, about=about, run_yaml=run_yaml))
