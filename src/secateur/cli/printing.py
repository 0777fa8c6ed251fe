"""What several commands print: evidence, estimates, and where a result stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from secateur._utils import distributed

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.runs.estimates import Estimate
    from secateur.vocabulary import Evidence

__all__ = ["console", "print_estimate", "print_evidence", "print_first", "print_folder", "print_lines", "print_places"]


def console() -> Console:
    """A console of rich, which takes time to load."""
    from rich.console import Console

    return Console()


def print_lines(*lines: str) -> None:
    """Print lines as they are: numbers uncoloured, brackets no markup."""
    console().print(*lines, sep="\n", highlight=False, markup=False)


def print_evidence(row: Evidence) -> None:
    """Print the table of one budget, what was cut, and the verdict."""
    from secateur.reports import evidence

    console().print(evidence.rich_table(evidence.table(row), title=f"{row.recipe}, {row.target}"))
    if row.cut:
        print_lines(f"cut: {row.cut.describe()}", *(f"note: {note}" for note in row.cut.notes))
    print_lines(f"verdict: {evidence.describe_verdict(row)}")


def print_first(row: Evidence) -> None:
    """Print the evidence of one budget; of several processes the first does."""
    if distributed.index() == 0:
        print_evidence(row)


def print_places(rows: Sequence[Evidence], out: str | Path) -> None:
    """Print where the results stand; a target that was missed ends the command with 1."""
    page = Path(out) / "report.html"
    places = {  # a cut that removed nothing is not saved
        "result": out if any(row.cut is None or not row.cut.is_noop for row in rows) else None,
        "report": page if page.is_file() else None,
    }
    lines = [f"{name}  {place}" for name, place in places.items() if place is not None]
    if lines and distributed.index() == 0:
        print_lines("", *lines)
    if any(row.verdict != "met" for row in rows):
        raise typer.Exit(1)


def print_folder(place: Path, notes: Sequence[str]) -> Path:
    """What was said of a folder that was written, and its path on a line of its own, for scripts; the path."""
    for note in notes:
        print(f"note: {note}")
    print(place)
    return place


def print_estimate(estimate: Estimate) -> None:
    """Print what a dry run of `prune-context` found."""
    from secateur.reports import evidence

    console().print(evidence.rich_table(estimate.rows(), title=estimate.title))
    if estimate.failed:
        print_lines(f"note: {estimate.failed} of {estimate.tried} lines would have an error")
    print_lines("verdict: dry run")
