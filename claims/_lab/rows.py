"""Rows of docs/evidence: one JSON file per claim, with figures per arm, the judged difference and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from claims._lab import ran, settings
from claims._lab.verdict import Better, Verdict, judge
from secateur._utils.disk import atomic_write
from secateur.vocabulary import Figure

__all__ = ["Difference", "Row", "path", "read", "read_all", "write"]


@dataclass(frozen=True)
class Difference:
    """Ours minus the baseline, in the judged measure; paired by seed, or from the intervals of both arms."""

    ours: str
    baseline: str
    figure: Figure
    paired: bool = True


@dataclass(frozen=True)
class Row:
    """What one claim asked and what came out. `arms`: arm -> measure -> figure over the seeds, with its interval."""

    recipe: str
    claim: str
    question: str
    setup: str
    measure: str
    better: Better
    margin: float
    arms: Mapping[str, Mapping[str, Figure]]
    difference: Difference | None
    seeds: tuple[int, ...]
    commit: str
    digest: str | None
    """Of the functions that the figures come from (`ran.digest`); None where it was not taken."""
    withdrawn: str = ""
    """Why the figures answer nothing, for an experiment that was wrong."""
    note: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    first: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Arm -> measure -> figure of the first seed: code that gives it again to the last digit gives the rest, too."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(our arm, baseline): each had to hold."""
    confirmed: str = ""
    """The commit at which the first seed was run again, and gave the same; "" where all seeds are of `commit`."""

    @property
    def card(self) -> tuple[object, ...]:
        """What was asked, as it stood before the first judged run."""
        return self.question, self.setup, self.measure, self.better, self.margin, self.seeds, self.pairs

    @property
    def verdict(self) -> Verdict:
        """By the one rule of `judge`."""
        if self.withdrawn:
            return "withdrawn"
        if self.difference is None:
            return "undecided"
        return judge(self.difference.figure, self.better, self.margin)

    @cached_property
    def stale(self) -> bool:
        """Whether the code that the figures depend on has changed since; looked at once."""
        return self.digest is None or self.digest != ran.digest(self.recipe, self.claim)


def path(folder: Path, recipe: str, claim: str) -> Path:
    """Where the row of a claim lies."""
    return folder / f"{recipe}-{claim}.json"


def write(row: Row, folder: Path = settings.ROWS) -> Path:
    """Write a row; the same figures give the same bytes."""
    record = {**asdict(row), "verdict": row.verdict}
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    file = path(folder, row.recipe, row.claim)
    atomic_write(file, text + "\n")
    return file


def read(file: Path) -> Row:
    """Read a row. Raises `ValueError` where its verdict is not that of its figures."""
    record = json.loads(file.read_text("utf-8"))
    verdict = record.pop("verdict")
    difference = record.pop("difference")
    if difference is not None:
        difference = Difference(**{**difference, "figure": Figure(**difference["figure"])})
    arms = {
        arm: {measure: Figure(**figure) for measure, figure in measures.items()}
        for arm, measures in record.pop("arms").items()
    }
    row = Row(
        **{
            **record,
            "arms": arms,
            "difference": difference,
            "seeds": tuple(record["seeds"]),
            "pairs": tuple(map(tuple, record.get("pairs", ()))),
        }
    )
    if row.verdict != verdict:
        raise ValueError(f"{file.name} says {verdict!r}; by its interval it is {row.verdict!r}: run the claim again")
    return row


def read_all(folder: Path = settings.ROWS) -> list[Row]:
    """All rows of a folder, by recipe, the headline of each first."""
    rows = [read(file) for file in sorted(folder.glob("*.json"))]
    return sorted(rows, key=lambda row: (row.recipe, row.claim != "headline", row.claim))
