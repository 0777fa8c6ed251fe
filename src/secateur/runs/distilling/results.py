"""What a run of distilling leaves: the student, its model card, and the figures that a resumed run goes on with."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.reports import evidence
from secateur.runs import exporting
from secateur.runs.backends import Trade
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Evidence, Figure

__all__ = ["figures", "integers", "plain", "save"]

Row = dict[str, Figure]


def plain(row: Row, known: Row, why: str) -> list[Any]:
    """What was measured before training, as JSON holds it; `figures` reads the rows."""
    return [*({name: asdict(figure) for name, figure in one.items()} for one in (row, known)), why]


def figures(row: Mapping[str, Any]) -> Row:
    """A row that was made `plain`."""
    return {name: Figure(**figure) for name, figure in row.items()}


def integers(subject: Transformer, folder: Path, bits: int) -> tuple[Transformer, tuple[str, ...]]:
    """(a student that was trained in so many bits, written to `folder` as such and read again; notes)."""
    shutil.rmtree(folder, ignore_errors=True)
    notes = exporting.write(subject, folder, f"int{bits}", bound=math.inf)  # its floats were asked by nobody
    found = open_subject(folder, quantised=True)
    for module in (found.model, *found.head):
        module.to(subject.model.device)
    return found, notes


def save(trade: Trade, subject: Any, row: Evidence, name: str, folder: Path, written: Path | None = None) -> None:
    """Write the student, or what is `written` already, and its card into `folder`, which readers know as `name`."""
    if written is None:
        trade.save(subject, folder)
    else:
        shutil.copytree(written, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(_card(row, trade.loading(folder, name)), encoding="utf-8")


def _card(row: Evidence, load: str) -> str:
    """The model card: who was taught by whom, what came of it, and how to load it."""
    student = Path(str(row.settings["model"])).name
    above = " and ".join(Path(str(one)).name for one in row.settings["teachers"])
    steps = row.recovery.steps if row.recovery else 0
    return "\n\n".join([
        f"---\nlibrary_name: {load.split()[1].replace('_', '-')}\ntags: [secateur, distilled]\n---",
        f"# {student} taught by {above}",
        f"Distilled from {above} by secateur, in {steps} steps. Verdict: {row.verdict}.",
        "## Evidence",
        evidence.markdown(evidence.table(row)),
        f"Measured at {row.environment.get('measured_at')}.",
        "## How to load it",
        f"```python\n{load}\n```",
    ]) + "\n"  # fmt: skip
